"""What a running piperd does for commands: the handlers behind the control socket.

A handler is the daemon's side of a command. It works through `Running`, the part of the daemon that it may touch, and
refuses with PiperError; every other exception is a bug and ends piperd (see `ops.control`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date, datetime
from typing import Any, Protocol

import anyio
import anyio.from_thread
import anyio.to_thread
import duckdb

from piper import __version__
from piper.backfill.replay import Replay
from piper.backfill.run import Backfill, within_retention
from piper.backfill.scope import Scope
from piper.backfill.state import State
from piper.compaction import CompactionRun
from piper.errors import PiperError
from piper.events.quarantine import Reason
from piper.gold.models import load_models
from piper.layout import Layout
from piper.ops.control import Handler, Progress
from piper.ops.health import Health
from piper.ops.jobs import Jobs, refused
from piper.ops.metrics import Metrics
from piper.ops.rejected import Only
from piper.ops.status import collect_status
from piper.reload import Reloader
from piper.repair import Repair, verification
from piper.repair import read_state as read_repair
from piper.retention import prune as prune_due
from piper.settings import Settings
from piper.upkeep import Hands, Upkeep
from piper.writer import Writer


class Running(Protocol):
    """What handlers see of the daemon."""

    settings: Settings
    layout: Layout
    health: Health
    metrics: Metrics
    started_at: float
    jobs: Jobs
    gold_lock: anyio.Lock
    reloader: Reloader
    upkeep: Upkeep

    @property
    def writer(self) -> Writer | None:
        """The open data root; None while it is opened anew."""

    async def refresh_gold(self, *, rebuild: bool = False, models: list[str] | None = None) -> bool:
        """Bring gold up to date, with `gold_lock` held; returns whether anything was written."""


def control_handlers(daemon: Running) -> Mapping[str, Handler]:
    """Every command that piperd answers."""

    async def status(_args: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        return await _status(daemon)

    async def materialize(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
        return await _materialize(daemon, args.get("model"), progress)

    async def reload(_args: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        return (await daemon.reloader.reload()).as_json()

    async def compact(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
        return await _compact(daemon, args, progress)

    async def prune(args: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        return await _prune(daemon, dry_run=bool(args.get("dry_run")))

    backfill_lock = anyio.Lock()

    async def backfill(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
        async with backfill_lock:
            return await _backfill(daemon, args, progress)

    async def verify(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
        return await _verify(daemon, progress, deep=bool(args.get("deep")))

    async def repair(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
        async with backfill_lock:
            return await _repair(daemon, args, progress)

    async def replay(args: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        async with backfill_lock:
            return await _replay(daemon, args)

    return {
        "backfill": backfill,
        "replay": replay,
        "repair": repair,
        "verify": verify,
        "status": status,
        "materialize": materialize,
        "reload": reload,
        "compact": compact,
        "prune": prune,
    }


async def _status(daemon: Running) -> dict[str, Any]:
    ready, unready = daemon.health.readiness()
    status = await daemon.jobs.do(collect_status) if daemon.writer is not None else {}
    return {
        "state": "running" if ready else "degraded",
        "pid": os.getpid(),
        "version": __version__,
        "uptime_seconds": round(time.time() - daemon.started_at, 1),
        "problems": unready,
        **status,
    }


async def _materialize(daemon: Running, model: str | None, progress: Progress) -> dict[str, Any]:
    """Rebuild gold (one model or all) and the catalog; answers when it is published."""
    known = [found.name for found in load_models()]
    if model is not None and model not in known:
        raise PiperError(f"no gold model is called {model!r}", hint=f"Models: {', '.join(known)}")
    async with daemon.gold_lock:
        await progress({"step": "gold"})
        written = await daemon.refresh_gold(rebuild=True, models=[model] if model else None)
        writer = daemon.writer
        if not written or writer is None:
            raise PiperError("gold could not be rebuilt", hint="The daemon's log says why.")
        await progress({"step": "catalog"})
        try:
            await anyio.to_thread.run_sync(writer.warehouse.rewrite_catalog)
        except (duckdb.Error, OSError) as error:
            raise refused(error) from error
    return {"models": [model] if model else known, "catalog": str(daemon.layout.catalog)}


async def _compact(daemon: Running, args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Merge the chunks of these days, piece by piece between the daemon's own duties."""
    run = CompactionRun(_day(args, "start"), _day(args, "end") or date.max)
    await daemon.upkeep.do(run.plan)
    if not args.get("dry_run"):
        while await daemon.upkeep.do(run.step):
            await progress({"done": run.done.bytes_before, "total": run.planned.bytes_before})
    return run.summary(dry_run=bool(args.get("dry_run")))


async def _prune(daemon: Running, *, dry_run: bool) -> dict[str, Any]:
    retention = daemon.settings.retention
    done = await daemon.upkeep.do(lambda hands: prune_due(hands, retention, dry_run=dry_run), gold_rests=True)
    return {kind: asdict(pruned) for kind, pruned in done.items()}


async def _backfill(daemon: Running, args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Backfill days beside ingest, some seconds at a time between the duties; an unfinished one goes first."""
    scope, run = Scope(_day(args, "start"), _day(args, "end")), Backfill(is_live=True, is_dry=bool(args.get("dry_run")))

    def begin(hands: Hands) -> State | None:
        wanted, earlier = within_retention(hands, scope), run.state(hands)
        if earlier is not None and not earlier.is_finished and earlier.scope != wanted:
            return None
        return run.begin(hands, scope)

    while (state := await daemon.upkeep.do(begin)) is None:
        await _step(daemon, run, progress)
    while await _step(daemon, run, progress):
        pass
    state = await daemon.upkeep.do(run.state) or state
    return run.summary(state) | {"gold_failed": [] if run.is_dry else await _show_gold(daemon)}


async def _step(daemon: Running, run: Backfill, progress: Progress) -> bool:
    done = await daemon.upkeep.do(run.step)
    if done is not None:
        await progress({"done": done[0], "total": done[1]})
    return done is not None


async def _verify(daemon: Running, progress: Progress, *, deep: bool) -> dict[str, Any]:
    """Look at every chunk, between the daemon's own duties."""

    async def send(done: int, total: int) -> None:
        await progress({"done": done, "total": total})

    def tell(done: int, total: int) -> None:
        if deep:
            anyio.from_thread.run(send, done, total)

    return await daemon.upkeep.do(lambda hands: verification(hands, deep=deep, on_progress=tell))


async def _repair(daemon: Running, args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Repair beside ingest, some seconds at a time between the duties."""
    run = Repair(is_live=True, is_deep=bool(args.get("deep")))
    if args.get("dry_run"):
        return await daemon.upkeep.do(run.check) | {"gold_failed": []}
    state = await daemon.upkeep.do(run.begin)
    if state.is_finished:
        return state.summary() | {"gold_failed": []}
    while (done := await daemon.upkeep.do(run.step)) is not None:
        await progress({"done": done[0], "total": done[1]})
    finished = await daemon.upkeep.do(lambda hands: read_repair(hands.con))
    return (finished or state).summary() | {"gold_failed": await _show_gold(daemon)}


async def _replay(daemon: Running, args: dict[str, Any]) -> dict[str, Any]:
    reason, since = args.get("reason"), args.get("since")
    run = Replay(
        Only(Reason(reason) if reason else None, datetime.fromisoformat(since) if since else None),
        is_dry=bool(args.get("dry_run")),
    )
    while await daemon.upkeep.do(run.step):
        pass
    return run.summary() | {"gold_failed": [] if args.get("dry_run") else await _show_gold(daemon)}


async def _show_gold(daemon: Running) -> list[str]:
    """Have gold show what was changed; returns the models that could not be refreshed."""

    def errors() -> dict[str, float]:
        name, registry = "piper_gold_refreshes_total", daemon.metrics.registry
        found = {m.name: registry.get_sample_value(name, {"model": m.name, "result": "error"}) for m in load_models()}
        return {model: count or 0.0 for model, count in found.items()}

    async with daemon.gold_lock:
        before = errors()
        await daemon.refresh_gold()
        return [model for model, count in errors().items() if count > before[model]]


def _day(args: Mapping[str, Any], name: str) -> date | None:
    """A date of the request."""
    value = args.get(name)
    try:
        return date.fromisoformat(value) if value is not None else None
    except (TypeError, ValueError):
        raise PiperError(f"{name} is no date: {value!r}", hint="Write it as 2026-11-22.") from None
