"""What commands share: the options before the command, the settings that follow from them, and talking to a person."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from piper import __version__
from piper.errors import EX_FAILURE, EX_OK
from piper.exits import UsageError

if TYPE_CHECKING:
    from piper.settings import Settings
    from piper.settings_sources import LoadedSettings


@dataclass(frozen=True, slots=True)
class Globals:
    """The options before the command."""

    config: Path | None = None
    data_root: Path | None = None
    raw_root: Path | None = None

    def load(self) -> LoadedSettings:
        """The settings in force. Raises ConfigError."""
        from piper.settings_sources import CONFIG_FILE_VARIABLE, load_settings

        env = dict(os.environ)
        if self.config is not None:
            env[CONFIG_FILE_VARIABLE] = str(self.config)
        return load_settings({"paths.data_root": self.data_root, "paths.raw_root": self.raw_root}, env=env)


def _show_version(wanted: bool) -> None:
    if wanted:
        versions = f"DuckDB {metadata.version('duckdb')}, Python {sys.version.split()[0]}"
        typer.echo(f"piper {__version__} ({versions})")
        raise typer.Exit(EX_OK)


ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML file of settings, instead of the one in PIPER_CONFIG_FILE."),
]
DataRootOption = Annotated[
    Path | None, typer.Option("--data-root", metavar="DIR", help="What piper writes (paths.data_root).")
]
RawRootOption = Annotated[
    Path | None, typer.Option("--raw-root", metavar="DIR", help="The spool that piper reads (paths.raw_root).")
]
VersionOption = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the versions and exit.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, errors included.")]


def globals_of(ctx: typer.Context) -> Globals:
    """The options before the command."""
    found = ctx.find_object(Globals)
    return found if found is not None else Globals()


def settings_of(ctx: typer.Context, *, run_log: str | None = None) -> Settings:
    """The settings; logging is set up by them. `run_log` names the run log file of a command that does work."""
    from piper.files import narrow_umask
    from piper.ops.logging import RunLog, configure_logging

    if run_log is not None:
        narrow_umask()
    settings = globals_of(ctx).load().settings
    on_terminal = sys.stderr.isatty()
    quiet = run_log is None or on_terminal
    configure_logging(
        settings.logging.level,
        "text" if on_terminal else settings.logging.format,
        None if run_log is None else RunLog(settings.paths.data_root, run_log),
        stderr_level="warning" if quiet else None,
    )
    return settings


def say(text: str, *, unless: bool = False) -> None:
    """One line on stdout."""
    if not unless:
        typer.echo(text)


def confirm(question: str, *, as_json: bool) -> None:
    """Go on only if a person says yes; raises UsageError where nobody can be asked."""
    if as_json or not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on whether you mean it", hint="Add --yes.")
    if not typer.confirm(question):
        raise typer.Exit(EX_FAILURE)


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Gives whether SIGINT or SIGTERM came; a second one ends the process at once."""
    seen: list[int] = []

    def note(number: int, _frame: object) -> None:
        seen.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
