"""What a running piperd does for commands: the handlers behind the control socket.

A handler is the daemon's side of a command. It works through `Running`, the part of the daemon that it may touch, and
refuses with PiperError; every other exception is a bug and ends piperd (see `ops.control`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, Protocol

import anyio
import anyio.to_thread
import duckdb

from piper import __version__
from piper.errors import PiperError
from piper.gold.models import load_models
from piper.layout import Layout
from piper.ops.control import Handler, Progress
from piper.ops.health import Health
from piper.ops.jobs import Jobs, refused
from piper.ops.status import collect_status
from piper.reload import Reloader
from piper.writer import Writer


class Running(Protocol):
    """What handlers see of the daemon."""

    layout: Layout
    health: Health
    started_at: float
    jobs: Jobs
    gold_lock: anyio.Lock
    reloader: Reloader

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

    return {"status": status, "materialize": materialize, "reload": reload}


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
            await anyio.to_thread.run_sync(writer.rewrite_catalog)
        except (duckdb.Error, OSError) as error:
            raise refused(error) from error
    return {"models": [model] if model else known, "catalog": str(daemon.layout.catalog)}
