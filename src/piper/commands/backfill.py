"""`piper backfill` and `piperd --backfill`: one command by two names. While piperd runs, it does it."""

from __future__ import annotations

import sys
import time
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piper.commands.context import JsonOption, settings_of
from piper.errors import EX_FAILURE
from piper.exits import UsageError, print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from piper.backfill.scope import Scope
    from piper.settings import Settings

StartOption = Annotated[
    datetime | None, typer.Option("--start", formats=["%Y-%m-%d"], metavar="DATE", help="First day, in UTC.")
]
EndOption = Annotated[
    datetime | None,
    typer.Option("--end", formats=["%Y-%m-%d"], metavar="DATE", help="Last day, in UTC. Default: today."),
]
AllOption = Annotated[bool, typer.Option("--all", help="Every day, from every file that is there.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Change nothing, say what would be read and which events would change.")
]


def backfill(
    ctx: typer.Context,
    start: StartOption = None,
    end: EndOption = None,
    everything: AllOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Read raw files of past days again: silver, then gold, as a fresh ingest of what is there would give."""
    from piper.ops import screen

    scope = _scope(start, end, everything=everything)
    settings = settings_of(ctx, run_log="backfill")
    started = time.monotonic()
    with screen.byte_progress("backfill", visible=sys.stderr.isatty() and not as_json) as progress:
        done = _backfill(settings, scope, progress, dry_run=dry_run)
    done |= {"dry_run": dry_run, "seconds": round(time.monotonic() - started, 3)}
    print_json(done) if as_json else screen.show_backfill(screen.console(), done)
    if done["unreadable"] or done["gold_failed"]:
        raise typer.Exit(EX_FAILURE)


def _scope(start: datetime | None, end: datetime | None, *, everything: bool) -> Scope:
    """The days that are meant. Raises UsageError."""
    from piper.backfill.scope import Scope

    today = datetime.now(UTC).date()
    if everything:
        if start or end:
            raise UsageError("--all is every day, --start and --end are some", hint="Give one or the other.")
        return Scope()
    if start is None:
        raise UsageError("which days?", hint="Give --start DATE and --end DATE (both included), or --all.")
    first, last = start.date(), end.date() if end else today
    _check_not_future(max(first, last), today)
    if first > last:
        raise UsageError(f"--start {first} is after --end {last}", hint="Both days are included.")
    return Scope(first, last)


def _check_not_future(day: date, today: date) -> None:
    if day > today:
        raise UsageError(f"{day} is in the future", hint=f"Today is {today}, in UTC.")


def _backfill(
    settings: Settings, scope: Scope, progress: Callable[[int, int], None], *, dry_run: bool
) -> dict[str, Any]:
    """Have piperd do it, or do it here when there is none."""
    from piper import oneshot
    from piper.layout import Layout
    from piper.ops.control import DaemonNotRunningError, ask

    def tell(news: dict[str, Any]) -> None:
        progress(news["done"], news["total"])

    args = {**scope.as_json(), "dry_run": dry_run}
    try:
        done = ask(Layout.of(settings).control_socket, "backfill", args, tell, timeout_seconds=None)
        return {"by": "piperd", **done}
    except DaemonNotRunningError:
        return {"by": "piper", **oneshot.backfill(settings, scope, progress, dry_run=dry_run)}
