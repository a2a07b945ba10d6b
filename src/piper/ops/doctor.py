"""`piper doctor`: is the telemetry complete, correct and timely, and is the ground sound?

Numbers come from the published views, as Grafana sees them, and from the status (of the daemon, or of the manifest at
rest). The worst check is the exit code: 0 PASS, 1 WARN, 2 FAIL. The questions, and why each threshold is what it is,
are in `piper.ops.checks`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb

from piper.errors import PiperError
from piper.layout import Layout
from piper.ops.checks import EXIT_CODES, Check, Level, data, ground, standing, worst
from piper.ops.chunks import verify_chunks
from piper.ops.facts import read_warehouse, storage_versions
from piper.ops.status import read_status
from piper.settings import Settings

__all__ = ["EXIT_CODES", "GOLD_GRACE", "Check", "Level", "examine", "open_problems", "worst"]

GOLD_GRACE = timedelta(seconds=60)
"""Beyond three refresh intervals: what a refresh over a large batch may take."""


def examine(
    settings: Settings,
    now: datetime | None = None,
    *,
    deep: bool = False,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[Check]:
    """Ask everything that can be asked. Never raises for what it finds. `now`: aware, defaults to the clock.

    `deep` reads every value of silver, and tells `on_progress` of it: (chunks done, chunks in all).
    """
    naive = (now or datetime.now(UTC)).astimezone(UTC).replace(tzinfo=None)
    layout = Layout.of(settings)
    status, writer = _status(settings)
    checks = [
        ground.check_spool(settings.paths.raw_root),
        ground.check_data_root(layout),
        ground.check_disk(layout),
        ground.check_state(layout),
    ]
    if layout.data_root.is_dir():
        checks.append(ground.check_permissions(layout))
    checks.append(writer)
    if status is not None and _is_whole(status):
        checks.append(standing.check_versions(status, storage_versions(layout)))
    if layout.catalog.exists():
        checks += _check_warehouse(settings, layout, status, naive)
    elif status is not None:
        hint = "Run `piper init` (or restart piperd): it makes the catalog anew."
        checks.append(Check("catalog", Level.FAIL, f"{layout.catalog} is missing", hint))
    if status is not None and _is_whole(status):
        checks.append(_check_chunk_files(settings, status, deep=deep, on_progress=on_progress))
        checks += _of_status(status)
    return checks


def _check_chunk_files(
    settings: Settings, status: dict[str, Any], *, deep: bool, on_progress: Callable[[int, int], None]
) -> Check:
    try:
        found = verify_chunks(settings, status["state"], deep=deep, on_progress=on_progress)
    except PiperError as error:
        return Check("chunk_files", Level.WARN, f"not judged: {error.message}", error.hint)
    return standing.check_chunk_files(found, deep=deep)


def open_problems(settings: Settings, status: dict[str, Any]) -> list[Check]:
    """What is not well, as far as a status and a look at the disk tell: at the cost of neither a query nor a write."""
    checks = [ground.check_disk(Layout.of(settings))]
    if _is_whole(status):
        checks += _of_status(status)
    return [check for check in checks if check.level is not Level.PASS]


def _is_whole(status: dict[str, Any]) -> bool:
    """Whether somebody could tell what is in the manifest: not while another command holds it."""
    return "commits" in status


def _of_status(status: dict[str, Any]) -> list[Check]:
    return [
        standing.check_disk_forecast(status),
        standing.check_chunks(status),
        standing.check_backlog(status),
        standing.check_quarantine(status),
        standing.check_lost(status),
        standing.check_spool_files(status),
        standing.check_privacy(status),
    ]


def _status(settings: Settings) -> tuple[dict[str, Any] | None, Check]:
    try:
        status = read_status(settings)
    except PiperError as error:
        return None, Check("writer", Level.FAIL, error.message, error.hint)
    return status, standing.check_writer(status)


def _check_warehouse(settings: Settings, layout: Layout, status: dict[str, Any] | None, now: datetime) -> list[Check]:
    grace = GOLD_GRACE + timedelta(seconds=3 * settings.gold.refresh_seconds)
    try:
        found = read_warehouse(settings, now, grace)
    except PiperError as error:
        return [Check("catalog", Level.FAIL, error.message, error.hint)]
    except duckdb.Error as error:
        text = str(error).strip().splitlines()[0]
        hint = "Run `piper materialize`: it writes the catalog and gold anew. If that is not it, check the disk."
        return [Check("catalog", Level.FAIL, f"{layout.catalog}: {text}", hint)]
    catalog = data.check_catalog(found)
    if catalog.level is Level.FAIL:
        return [catalog]
    runs = status is not None and status["state"] not in {"busy", "stopped"}
    return [
        catalog,
        data.check_freshness(found, now),
        data.check_volume(found),
        data.check_invalid_rate(found),
        data.check_clock_skew(found),
        data.check_lag(found, daemon_runs=runs),
        data.check_hosts(found),
        data.check_unknown_types(found),
        data.check_new_fields(found),
        data.check_contract(found),
        data.check_gold(found),
    ]
