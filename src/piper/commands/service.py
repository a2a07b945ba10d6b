"""Commands around the service: reload the settings of a running piperd, install the systemd units."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from piper.commands.context import Globals, JsonOption, globals_of, say, settings_of
from piper.exits import UsageError, print_json

if TYPE_CHECKING:
    from piper.ops.units import Installation


def reload(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Have piperd read its settings again. Says what is in force now and what needs a restart."""
    from piper.layout import Layout
    from piper.ops.control import ask

    done = ask(Layout.of(settings_of(ctx)).control_socket, "reload", timeout_seconds=None)
    if as_json:
        print_json(done)
        return
    for change in done["applied"]:
        say(f"{change['key']}: {change['old']} is now {change['new']} ({change['source']})")
    for change in done["needs_restart"]:
        say(f"{change['key']}: still {change['old']}; {change['new']} ({change['source']}) needs a restart of piperd")
    if not done["applied"] and not done["needs_restart"]:
        say("no setting has changed")


def install_units(
    ctx: typer.Context,
    show: Annotated[bool, typer.Option("--print", help="Show the files; the default.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Write them, where they differ.")] = False,
    root: Annotated[
        Path, typer.Option("--root", metavar="DIR", help="Write below this directory instead of /.")
    ] = Path("/"),
    as_json: JsonOption = False,
) -> None:
    """The systemd units, sysusers and tmpfiles entries for this installation and its settings."""
    if show and write:
        raise UsageError("--print and --write exclude each other")
    from piper.ops import units

    installation, files = _plan(globals_of(ctx), root)
    steps = units.next_steps(installation)
    if not write:
        if as_json:
            print_json({"files": [{"path": str(path), "content": text} for path, text in files.items()], "next": steps})
            return
        for path, text in files.items():
            say(f"# ---- {path}\n\n{text}")
        return
    done = units.write(files, root)
    if as_json:
        print_json({"files": [{"path": str(path), "result": result} for path, result in done], "next": steps})
        return
    for path, result in done:
        say(f"{result} {path}")
    say("Now run:")
    for step in steps:
        say(f"  {step}")


def _plan(given: Globals, root: Path) -> tuple[Installation, dict[Path, str]]:
    """What units depend on, and all files to install. The settings file is one of them only where there is none yet."""
    from piper.ops import units

    named = given.config or os.environ.get("PIPER_CONFIG_FILE", "")
    settings_file = Path(named).expanduser().absolute() if named else units.SETTINGS_FILE
    found = settings_file if named else root / settings_file.relative_to("/")
    if named or found.exists():
        settings = Globals(found, given.data_root, given.raw_root).load()
        units.check_service_sees(settings, found)
        added = {}
    else:
        settings = units.for_service(given.load())
        added = {settings_file: units.settings_text(settings)}
    installation = units.Installation(settings.settings, settings_file, units.own_bin_directory())
    return installation, added | units.render(installation)
