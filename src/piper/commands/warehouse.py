"""Commands that write the warehouse: init, ingest, materialize, rebuild."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from piper.commands.context import JsonOption, confirm, say, settings_of
from piper.errors import EX_FAILURE, WriterLockedError
from piper.exits import UsageError, print_json


def init(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Create the directories, the manifest and the catalog that are missing. Safe to repeat."""
    from piper import oneshot
    from piper.layout import Layout

    settings = settings_of(ctx, run_log="init")
    try:
        summary = oneshot.init(settings)
    except WriterLockedError as error:
        if not Layout.of(settings).catalog.exists():
            raise
        summary = oneshot.InitSummary(str(settings.paths.data_root), str(Layout.of(settings).catalog), [])
        say(f"in use by {error.holder}", unless=as_json)
    if as_json:
        print_json(asdict(summary))
        return
    for path in summary.created:
        say(f"created {path}")
    say(f"{summary.data_root} is ready" if summary.created else f"{summary.data_root} was ready, nothing to do")
    say(f"Readers open {summary.catalog}, read-only.")


def ingest(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Read everything unread on the spool once; then seal, publish and refresh gold."""
    from piper import oneshot
    from piper.ops import screen

    settings = settings_of(ctx, run_log="ingest")
    try:
        with screen.byte_progress("ingest", visible=sys.stderr.isatty() and not as_json) as progress:
            summary = oneshot.ingest(settings, progress)
    except WriterLockedError as error:
        if not oneshot.makes_ingest_needless(error.holder):
            raise
        _step_aside(error.holder, "nothing was read here; what is unread is read by it, or by the next run", as_json)
        return
    if as_json:
        print_json({"running": False, **asdict(summary)})
    else:
        screen.show_ingest(screen.console(), summary)
    if summary.gold_failed:
        raise typer.Exit(EX_FAILURE)


def _step_aside(holder: str, outcome: str, as_json: bool) -> None:
    print_json({"running": True, "holder": holder}) if as_json else say(f"{holder} is running: {outcome}")


def materialize(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="Only this gold model.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Rebuild gold from scratch, and the catalog's views. While piperd runs, it does it."""
    from piper import oneshot
    from piper.layout import Layout
    from piper.ops.control import DaemonNotRunningError, ask
    from piper.ops.metric_list import GOLD_MODELS

    if model is not None and model not in GOLD_MODELS:
        raise UsageError(f"there is no gold model {model!r}", hint=f"The models are {', '.join(GOLD_MODELS)}.")
    settings = settings_of(ctx, run_log="materialize")
    try:
        done = {
            "by": "piperd",
            **ask(Layout.of(settings).control_socket, "materialize", {"model": model}, timeout_seconds=None),
        }
    except DaemonNotRunningError:
        try:
            done = {"by": "piper", **asdict(oneshot.materialize(settings, None if model is None else [model]))}
        except WriterLockedError as error:
            if not oneshot.makes_materialize_needless(error.holder):
                raise
            _step_aside(error.holder, "it brings gold up to date, and nothing was rebuilt here", as_json)
            return
    if as_json:
        print_json(done)
    else:
        say(f"{done['by']} rebuilt {', '.join(done.get('models', [model or 'gold']))} and the catalog")
        for name in done.get("failed", []):
            say(f"FAILED: {name} keeps its old rows; the log says why (gold_refresh_failed)")
    if done.get("failed"):
        raise typer.Exit(EX_FAILURE)


def rebuild(
    ctx: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Also if the data root belongs to a manifest elsewhere.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a new manifest from silver and the raw spool, when the old one is damaged or lost."""
    from piper import oneshot
    from piper.ops import screen

    settings = settings_of(ctx, run_log="rebuild")
    if not yes:
        confirm(f"Set the manifest of {settings.paths.data_root} aside and make a new one?", as_json=as_json)
    visible = sys.stderr.isatty() and not as_json
    with screen.step_progress(visible=visible) as on_step, screen.byte_progress("raw", visible=visible) as on_bytes:
        done = oneshot.rebuild(settings, on_step, on_bytes, take_over=take_over)
    if as_json:
        print_json(asdict(done))
    else:
        screen.show_rebuild(screen.console(), done)
    if done.read.gold_failed:
        raise typer.Exit(EX_FAILURE)
