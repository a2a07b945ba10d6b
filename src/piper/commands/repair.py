"""`piper repair`. While piperd runs, it does it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piper.commands.context import JsonOption, settings_of
from piper.errors import EX_FAILURE
from piper.exits import print_json

if TYPE_CHECKING:
    from piper.settings import Settings


def repair(
    ctx: typer.Context,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every value of silver, instead of comparing names and sizes.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing, say what is broken.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Set broken chunks of silver aside, and make their rows again from raw. Exit 1 if some are lost."""
    from piper.ops import screen

    settings = settings_of(ctx, run_log="repair")
    started = time.monotonic()
    with screen.byte_progress("repair", visible=sys.stderr.isatty() and not as_json) as progress:
        done = _repair(settings, progress, deep=deep, dry_run=dry_run)
    done |= {"dry_run": dry_run, "seconds": round(time.monotonic() - started, 3)}
    print_json(done) if as_json else screen.show_repair(screen.console(), done)
    if done["lost"] or done["unreadable"] or done["gold_failed"]:
        raise typer.Exit(EX_FAILURE)


def _repair(settings: Settings, progress: Callable[[int, int], None], *, deep: bool, dry_run: bool) -> dict[str, Any]:
    """Have piperd do it, or do it here when there is none."""
    from piper import oneshot
    from piper.layout import Layout
    from piper.ops.control import DaemonNotRunningError, ask

    def tell(news: dict[str, Any]) -> None:
        progress(news["done"], news["total"])

    args = {"deep": deep, "dry_run": dry_run}
    try:
        done = ask(Layout.of(settings).control_socket, "repair", args, tell, timeout_seconds=None)
        return {"by": "piperd", **done}
    except DaemonNotRunningError:
        return {"by": "piper", **oneshot.repair(settings, progress, dry_run=dry_run, deep=deep)}
