"""Commands that tell where the warehouse stands: status, healthcheck, doctor."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piper.commands.context import JsonOption, globals_of, say, settings_of
from piper.errors import EX_FAILURE, PiperError
from piper.exits import UsageError, print_json

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from piper.settings import Settings

WATCH_SECONDS = 2.0
HOSTS_SECONDS = 10.0
"""How often a watched status asks the views about hosts: each time they list all chunks."""


def status(
    ctx: typer.Context,
    seconds: Annotated[
        float | None, typer.Argument(metavar="[SECONDS]", help=f"With --watch: how often. Default: {WATCH_SECONDS:g}.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Who writes the warehouse, what is unread, what is in it, which hosts lag, what is wrong."""
    from piper.ops import screen

    if seconds is not None and (not watch or not 0.1 <= seconds <= 86_400):
        raise UsageError("SECONDS goes with --watch, from 0.1 on", hint="Say `piper status --watch 5`.")
    settings = settings_of(ctx)
    found = _look(settings)
    if watch:
        _watch(settings, found, seconds or WATCH_SECONDS, as_json=as_json)
    elif as_json:
        print_json(found)
    else:
        out = screen.console()
        out.print(_screen(found, out), soft_wrap=True)


def _look(settings: Settings, seen: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """The status with its hosts (`seen`: what the views hold of them, if known) and problems, ready for JSON."""
    from piper.ops.doctor import open_problems
    from piper.ops.hosts import merged, read_hosts
    from piper.ops.status import read_status

    found = read_status(settings)
    found["hosts"] = merged(read_hosts(settings) if seen is None else seen, found.get("hosts", {}))
    found["open_problems"] = [check.as_row() for check in open_problems(settings, found)]
    return found


def _screen(found: dict[str, Any], out: Console) -> RenderableType:
    from piper.ops.status_screen import HOSTS_MAX, status_screen

    return status_screen(found, hosts_max=max(HOSTS_MAX, out.height - 22 if out.is_terminal else 0))


def _watch(settings: Settings, found: dict[str, Any], seconds: float, *, as_json: bool) -> None:
    """Show `found`, then what is there after every pause. A look that fails is shown too: it may work the next time."""
    from piper.interrupts import Interrupts
    from piper.ops.hosts import read_hosts

    seen: dict[str, dict[str, Any]] = {}
    seen_at = -HOSTS_SECONDS
    with Interrupts() as interrupts, _display(as_json=as_json) as show:
        while True:
            show(found)
            if interrupts.wait(seconds):
                return
            try:
                if time.monotonic() - seen_at >= HOSTS_SECONDS:
                    seen, seen_at = read_hosts(settings), time.monotonic()
                found = _look(settings, seen)
            except PiperError as error:
                found = {"error": {"message": error.message, "hint": error.hint}}
            except OSError as error:
                found = {"error": {"message": str(error), "hint": "Check the mount; the next look may do."}}


@contextmanager
def _display(*, as_json: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What shows one look after the other: in place on a terminal, as lines with the time elsewhere."""
    from rich.live import Live
    from rich.text import Text

    from piper.ops import screen

    out = screen.console()

    def drawn(found: dict[str, Any]) -> RenderableType:
        if "error" in found:
            return Text(f"{found['error']['message']}\n{found['error']['hint']}", "bold red")
        return _screen(found, out)

    def write(found: dict[str, Any]) -> None:
        if as_json:
            sys.stdout.write(json.dumps(found, default=str) + "\n")
        else:
            out.print(Text(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"), drawn(found), "", soft_wrap=True)
        sys.stdout.flush()

    if as_json or not out.is_terminal:
        yield write
        return
    with Live(console=out, auto_refresh=False) as live:
        yield lambda found: live.update(drawn(found), refresh=True)


def healthcheck(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Ask the running piperd whether its loops turn, for Docker and other supervisors. Exit 0 alive, 1 not."""
    from piper.ops.healthcheck import ask_health

    found = ask_health(globals_of(ctx).load().settings)
    print_json(asdict(found)) if as_json else say(str(found))
    if not found.alive:
        raise typer.Exit(EX_FAILURE)


def doctor(
    ctx: typer.Context,
    textfile: Annotated[
        Path | None, typer.Option("--textfile", metavar="FILE", help="Write the result for node_exporter as well.")
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every value of silver, for chunks that are damaged inside.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check freshness, volume, invalid rate, clock skew, lag and the ground. Exit 0 PASS, 1 WARN, 2 FAIL."""
    from piper.ops import screen
    from piper.ops.doctor import EXIT_CODES, examine, worst

    with screen.byte_progress("chunks", visible=deep and sys.stderr.isatty() and not as_json) as progress:
        checks = examine(settings_of(ctx), deep=deep, on_progress=progress)
    if as_json:
        print_json({"status": worst(checks).value, "checks": [check.as_row() for check in checks]})
    else:
        screen.show_checks(screen.console(), checks)
    if textfile is not None:
        from piper.ops.textfile import write_textfile

        write_textfile(textfile, checks)
    raise typer.Exit(EXIT_CODES[worst(checks)])
