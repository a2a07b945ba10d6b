"""Commands that tidy the warehouse: compact, prune. While piperd runs, it does them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piper.commands.context import JsonOption, settings_of
from piper.errors import EX_FAILURE
from piper.exits import UsageError, print_json

if TYPE_CHECKING:
    from piper.settings import Settings

_DAY = "%Y-%m-%d"
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Change nothing, say what would be done.")]


def compact(
    ctx: typer.Context,
    start: Annotated[
        datetime | None, typer.Option("--start", formats=[_DAY], metavar="DATE", help="First day. Default: all.")
    ] = None,
    end: Annotated[
        datetime | None,
        typer.Option("--end", formats=[_DAY], metavar="DATE", help="Last day. Default: yesterday, in UTC."),
    ] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Merge the Parquet chunks of past days now, one a partition. piperd does it by itself, off-peak."""
    from piper.ops import screen

    first = start.date() if start else None
    last = end.date() if end else datetime.now(UTC).date() - timedelta(days=1)
    if first is not None and first > last:
        raise UsageError(f"--start {first} is after --end {last}", hint="Both days are included.")
    settings = settings_of(ctx, run_log="compact")
    started = time.monotonic()
    with screen.byte_progress("compact", visible=sys.stderr.isatty() and not as_json) as progress:
        done = _compact(settings, first, last, progress, dry_run=dry_run)
    done |= {"dry_run": dry_run, "seconds": round(time.monotonic() - started, 3)}
    print_json(done) if as_json else screen.show_compaction(screen.console(), done)
    if done["failed"]:
        raise typer.Exit(EX_FAILURE)


def _compact(
    settings: Settings, first: date | None, last: date, progress: Callable[[int, int], None], *, dry_run: bool
) -> dict[str, Any]:
    """Have piperd do it, or do it here when there is none."""
    from piper import oneshot
    from piper.compaction import CompactionRun
    from piper.layout import Layout
    from piper.ops.control import DaemonNotRunningError, ask

    def tell(news: dict[str, Any]) -> None:
        progress(news["done"], news["total"])

    args = {"start": first.isoformat() if first else None, "end": last.isoformat(), "dry_run": dry_run}
    try:
        done = ask(Layout.of(settings).control_socket, "compact", args, tell, timeout_seconds=None)
        return {"by": "piperd", **done}
    except DaemonNotRunningError:
        run = CompactionRun(first, last)
        oneshot.compact(settings, run, progress, dry_run=dry_run)
        return {"by": "piper", **run.summary(dry_run=dry_run)}


def prune(ctx: typer.Context, dry_run: DryRunOption = False, as_json: JsonOption = False) -> None:
    """Delete what the retention settings say now. piperd does it by itself, once an hour."""
    from piper import oneshot
    from piper.layout import Layout
    from piper.ops import screen
    from piper.ops.control import DaemonNotRunningError, ask

    settings = settings_of(ctx, run_log="prune")
    started = time.monotonic()
    done: dict[str, Any]
    try:
        answer = ask(Layout.of(settings).control_socket, "prune", {"dry_run": dry_run}, timeout_seconds=None)
        done = {"by": "piperd", **answer}
    except DaemonNotRunningError:
        pruned = oneshot.prune(settings, dry_run=dry_run)
        done = {"by": "piper", **{kind: asdict(found) for kind, found in pruned.items()}}
    done |= {"dry_run": dry_run, "seconds": round(time.monotonic() - started, 3)}
    print_json(done) if as_json else screen.show_pruned(screen.console(), done)
