"""`piper doctor`: is the telemetry complete, correct and timely, and is the ground sound?

Numbers come from the published views, as Grafana sees them, and from the status (of the daemon, or of the manifest at
rest). The worst check is the exit code: 0 PASS, 1 WARN, 2 FAIL. Each threshold says why it is what it is.
"""

from __future__ import annotations

import enum
import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import mean
from typing import Any

import duckdb

from piper.errors import PiperError
from piper.layout import Layout
from piper.ops.facts import WINDOW_DAYS, Warehouse, network_file_system, read_warehouse, unwritable
from piper.ops.status import read_status
from piper.settings import Settings

GIB = 1 << 30
DISK_FAIL_BYTES, DISK_WARN_BYTES = 1 * GIB, 10 * GIB
"""A seal, a gold swap and what DuckDB spills fit into 1 GiB; 10 GiB is weeks of a busy studio, time to react."""
EVENT_WARN_SECONDS, EVENT_FAIL_SECONDS = 3600, 24 * 3600
"""The farm is sampled every few minutes day and night: an hour without any event is a broken writer or mount."""
VOLUME_MIN = 200
"""Below so many events a day the ratio to other days is noise."""
VOLUME_LOW, VOLUME_HIGH = 0.1, 10.0
"""A Sunday has a fifth of a working day; a tenth is no weekend any more, and tenfold is a writer in a loop."""
INVALID_WARN, INVALID_FAIL = 0.01, 0.1
"""Crashes cut a line in a thousand at most; 1 % is a broken writer, 10 % a release that speaks another dialect."""
SKEW_WARN_SECONDS, SKEW_FAIL_SECONDS = 60, 1800
"""With NTP a second is much; from an hour ahead on lines are quarantined, so half of that is urgent."""
LAG_WARN_SECONDS = 60
"""The daemon promises seconds, writers flush every second. Hours may be a host that came back: no FAIL."""
UNREAD_WARN_SECONDS, UNREAD_FAIL_SECONDS = 60, 900
"""The daemon reads what it sees within a second: a minute is overload, a quarter of an hour a hang."""
IDLE_UNREAD_WARN_SECONDS, IDLE_UNREAD_FAIL_SECONDS = 24 * 3600, 5 * 24 * 3600
"""Without a daemon a nightly `piper ingest` is fine; writers delete their files after 7 days, so 5 are urgent."""
VIOLATION_WARN = 0.01
"""Contract violations are kept whole; below 1 % they are a matter for the data-quality dashboard."""
GOLD_GRACE = timedelta(seconds=60)
"""Beyond three refresh intervals: what a refresh over a large batch may take."""


class Level(enum.StrEnum):
    """How bad it is."""

    PASS = "PASS"  # noqa: S105 - no password
    WARN = "WARN"
    FAIL = "FAIL"


EXIT_CODES = {Level.PASS: 0, Level.WARN: 1, Level.FAIL: 2}


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer; `hint` says what to do and is empty for PASS."""

    name: str
    level: Level
    value: str
    hint: str = ""


def worst(checks: list[Check]) -> Level:
    """The level of the whole."""
    return max((check.level for check in checks), key=EXIT_CODES.__getitem__, default=Level.PASS)


def examine(settings: Settings, now: datetime | None = None) -> list[Check]:
    """Ask everything that can be asked. Never raises for what it finds. `now`: aware, defaults to the clock."""
    naive = (now or datetime.now(UTC)).astimezone(UTC).replace(tzinfo=None)
    layout = Layout.of(settings)
    checks = [check_spool(settings.paths.raw_root), check_data_root(layout), check_disk(layout), check_state(layout)]
    status, checked = _status(settings)
    checks.append(checked)
    if layout.catalog.exists():
        checks += _check_warehouse(settings, layout, status, naive)
    elif status is not None:
        hint = "Run `piper init` (or restart piperd): it makes the catalog anew."
        checks.append(Check("catalog", Level.FAIL, f"{layout.catalog} is missing", hint))
    if status is not None and "spool" in status:
        checks += [check_backlog(status), check_quarantine(status), check_lost(status), check_privacy(status)]
    return checks


def _status(settings: Settings) -> tuple[dict[str, Any] | None, Check]:
    try:
        status = read_status(settings)
    except PiperError as error:
        return None, Check("writer", Level.FAIL, error.message, error.hint)
    problems = "; ".join(problem["reason"] for problem in status.get("problems", []))
    if problems:
        hint = "It keeps trying and picks up by itself; its log says more (journalctl -u piperd)."
        return status, Check("writer", Level.WARN, f"{describe_writer(status)}: {problems}", hint)
    return status, Check("writer", Level.PASS, describe_writer(status))


def describe_writer(status: dict[str, Any]) -> str:
    """Who writes this warehouse now, in words."""
    if status["state"] == "busy":
        return f"{status['holder']} is at work"
    if status["state"] == "stopped":
        return "piperd is not running; nobody writes"
    pid = f", PID {status['pid']}" if "pid" in status else ""
    uptime = f", up {duration(status['uptime_seconds'])}" if "uptime_seconds" in status else ""
    return f"piperd is {status['state']}{pid}{uptime}"


def _check_warehouse(settings: Settings, layout: Layout, status: dict[str, Any] | None, now: datetime) -> list[Check]:
    grace = GOLD_GRACE + timedelta(seconds=3 * settings.gold.refresh_seconds)
    try:
        found = read_warehouse(layout, now, grace)
    except duckdb.Error as error:
        text = str(error).strip().splitlines()[0]
        hint = "Run `piper materialize`: it writes the catalog and gold anew. If that is not it, check the disk."
        return [Check("catalog", Level.FAIL, f"{layout.catalog}: {text}", hint)]
    catalog = check_catalog(found)
    if catalog.level is Level.FAIL:
        return [catalog]
    runs = status is not None and status["state"] not in {"busy", "stopped"}
    return [
        catalog,
        check_freshness(found, now),
        check_volume(found),
        check_invalid_rate(found),
        check_clock_skew(found),
        check_lag(found, daemon_runs=runs),
        check_unknown_types(found),
        check_contract(found),
        check_gold(found),
    ]


# ---- the ground ------------------------------------------------------------------------------------------------------


def check_spool(raw_root: Path) -> Check:
    """Can the spool be listed?"""
    try:
        with os.scandir(raw_root) as entries:
            hosts = sum(1 for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError as error:
        hint = "Check the mount and its permissions, or set paths.raw_root."
        return Check("spool", Level.FAIL, f"{raw_root}: {error.strerror}", hint)
    if not hosts:
        hint = "No host has written yet, or the share is not mounted there."
        return Check("spool", Level.WARN, f"{raw_root} is empty", hint)
    return Check("spool", Level.PASS, f"{raw_root}, {hosts} hosts")


def check_data_root(layout: Layout) -> Check:
    """Do the data root and the state directory take files?"""
    for path in dict.fromkeys((layout.data_root, layout.state)):
        if not path.is_dir():
            return Check("data_root", Level.FAIL, f"{path} is not there", "Run `piper init`, or check the mount.")
        if why := unwritable(path):
            hint = "Check mount, permissions and space; run doctor as the user that piperd runs as."
            return Check("data_root", Level.FAIL, f"{path} cannot be written: {why}", hint)
    return Check("data_root", Level.PASS, f"{layout.data_root} is writable")


def check_disk(layout: Layout) -> Check:
    """Is there room where piper writes?"""
    paths = [path for path in (layout.data_root, layout.state) if path.is_dir()]
    if not paths:
        return Check("disk", Level.PASS, "not judged: there is no data root")
    free, path = min((shutil.disk_usage(path).free, path) for path in paths)
    level = Level.FAIL if free < DISK_FAIL_BYTES else Level.WARN if free < DISK_WARN_BYTES else Level.PASS
    return _check("disk", level, f"{size(free)} free at {path}", "Make room: a full disk stops piper.")


def check_state(layout: Layout) -> Check:
    """Is the manifest on a local disk?"""
    try:
        mounts = Path("/proc/mounts").read_text("utf-8", "surrogateescape")
    except OSError:
        return Check("state", Level.PASS, f"{layout.state} (its file system is unknown here)")
    if kind := network_file_system(layout.state, mounts):
        hint = "Set paths.state_root to a local disk: commits get faster, and locks do not depend on the file server."
        return Check("state", Level.WARN, f"{layout.state} is on {kind}", hint)
    return Check("state", Level.PASS, f"{layout.state} is on a local file system")


# ---- the warehouse ---------------------------------------------------------------------------------------------------


def check_catalog(found: Warehouse) -> Check:
    """Does every view answer?"""
    if found.broken_views:
        view, error = next(iter(found.broken_views.items()))
        more = f" (and {len(found.broken_views) - 1} more)" if len(found.broken_views) > 1 else ""
        hint = "Run `piper materialize`: it writes the catalog and gold anew."
        return Check("catalog", Level.FAIL, f"{view}: {error}{more}", hint)
    return Check("catalog", Level.PASS, "all views answer")


def check_freshness(found: Warehouse, now: datetime) -> Check:
    """How old is the newest event, and how long ago was anything committed?"""
    if found.newest_event is None:
        hint = "Once DCCs write to the spool, piperd or `piper ingest` brings it here."
        return Check("freshness", Level.WARN, "no data yet", hint)
    age = max(0.0, (now - found.newest_event).total_seconds())
    ingested = "over a week ago"
    if found.last_ingest is not None:
        ingested = f"{duration(max(0.0, (now - found.last_ingest).total_seconds()))} ago"
    hint = "Is piperd running (`piper status`), is the spool mounted, do the hosts write?"
    value = f"newest event {duration(age)} old, last commit of events {ingested}"
    return _check("freshness", _grade(age, EVENT_WARN_SECONDS, EVENT_FAIL_SECONDS), value, hint)


def check_volume(found: Warehouse) -> Check:
    """Events of today against the same hours of the days before."""
    if not found.earlier_days:
        return Check("volume", Level.PASS, f"{found.events_today:,} events today, no earlier day to compare with")
    usual = mean(found.earlier_days)
    value = (
        f"{found.events_today:,} events today, {usual:,.0f} by this time on the {len(found.earlier_days)} days before"
    )
    if max(usual, found.events_today) < VOLUME_MIN:
        return Check("volume", Level.PASS, f"{value} (too few to judge)")
    if found.events_today > VOLUME_HIGH * usual:
        return Check("volume", Level.WARN, value, "Look for a writer in a loop: top source_file in silver_events.")
    level = Level.WARN if found.events_today < VOLUME_LOW * usual else Level.PASS
    return _check("volume", level, value, "Fewer than usual: see freshness, and which hosts are missing today.")


def check_invalid_rate(found: Warehouse) -> Check:
    """Quarantined lines among all that came in."""
    lines = found.ingested + found.quarantined
    if not lines:
        return Check("invalid_rate", Level.PASS, f"nothing came in during {WINDOW_DAYS} days")
    rate = found.quarantined / lines
    value = f"{100 * rate:.2f} % ({found.quarantined:,} of {lines:,} lines in {WINDOW_DAYS} days)"
    hint = "quarantine/invalid_jsonl has each line with its reason and file; the writer of that file needs a fix."
    return _check("invalid_rate", _grade(rate, INVALID_WARN, INVALID_FAIL), value, hint)


def check_clock_skew(found: Warehouse) -> Check:
    """How far ahead of the ingest was an event?"""
    level = _grade(found.clock_skew_seconds, SKEW_WARN_SECONDS, SKEW_FAIL_SECONDS)
    value = f"up to {duration(found.clock_skew_seconds)} ahead in {WINDOW_DAYS} days"
    hint = "A host's clock is ahead: check its NTP. From an hour on its lines are quarantined as clock_skew."
    return _check("clock_skew", level, value, hint)


def check_lag(found: Warehouse, *, daemon_runs: bool) -> Check:
    """From occurred to committed, of what was ingested in the last hour."""
    if not found.lag_events or found.lag_p95_seconds is None:
        return Check("lag", Level.PASS, "nothing ingested in the last hour")
    value = f"p95 {duration(max(0.0, found.lag_p95_seconds))} over {found.lag_events:,} events of the last hour"
    if not daemon_runs:
        return Check("lag", Level.PASS, f"{value}; not judged without piperd")
    hint = "Overloaded, or old files came in (a host that was offline, a restart): look at it again in an hour."
    return _check("lag", _grade(found.lag_p95_seconds, LAG_WARN_SECONDS, None), value, hint)


def check_unknown_types(found: Warehouse) -> Check:
    """Did writers send event types that the registry does not know?"""
    if not found.unknown_type_events:
        return Check("unknown_types", Level.PASS, f"none in {WINDOW_DAYS} days")
    names = ", ".join(found.unknown_types)
    hint = "They are kept in silver_events only. If they are meant, a newer piper or its registry must know them."
    return Check(
        "unknown_types", Level.WARN, f"{found.unknown_type_events:,} events in {WINDOW_DAYS} days: {names}", hint
    )


def check_contract(found: Warehouse) -> Check:
    """Do known types carry what the registry says?"""
    rate = found.contract_violations / max(1, found.events)
    value = f"{found.contract_violations:,} violations in {found.events:,} events ({WINDOW_DAYS} days)"
    hint = "gold_data_quality_daily has the days; the events are kept, with NULL where a field is missing."
    return _check("contract", _grade(rate, VIOLATION_WARN, None), value, hint)


def check_gold(found: Warehouse) -> Check:
    """Does gold have the events that silver has?"""
    if not found.gold_behind:
        return Check("gold", Level.PASS, "in step with silver")
    hint = "Its refresh fails or hangs: see the log for gold_refresh_failed, then run `piper materialize`."
    return Check("gold", Level.WARN, f"{found.gold_behind:,} events behind silver", hint)


# ---- the status ------------------------------------------------------------------------------------------------------


def check_backlog(status: dict[str, Any]) -> Check:
    """What waits on the spool, and for how long?"""
    spool = status["spool"]
    if not spool["reachable"]:
        return Check("backlog", Level.WARN, f"unknown: {spool['error']}", "See the check `spool`.")
    age = spool["oldest_unread_seconds"]
    if status["state"] == "stopped":
        level, hint = (
            _grade(age, IDLE_UNREAD_WARN_SECONDS, IDLE_UNREAD_FAIL_SECONDS),
            "Run `piper ingest`, or start piperd.",
        )
    else:
        level = _grade(age, UNREAD_WARN_SECONDS, UNREAD_FAIL_SECONDS)
        hint = "piperd does not keep up: see its log, the disk, and whether one file floods."
    value = f"{size(spool['unread_bytes'])} in {spool['unread_files']:,} files, oldest {duration(age)}"
    return _check("backlog", level, value if spool["unread_files"] else "nothing unread", hint)


def check_quarantine(status: dict[str, Any]) -> Check:
    """What was ever rejected, and is it all in its files?"""
    total = sum(status["quarantined_by_reason"].values())
    reasons = ", ".join(f"{reason} {lines:,}" for reason, lines in list(status["quarantined_by_reason"].items())[:4])
    value = f"{total:,} lines ever: {reasons}" if total else "no line was ever rejected"
    pending = status["quarantined_pending"]
    if pending and status["state"] == "stopped":
        hint = "Run `piper ingest`: it writes them. If they stay, the quarantine directory cannot be written."
        return Check("quarantine", Level.WARN, f"{value}; {pending:,} not in their file yet", hint)
    return Check("quarantine", Level.PASS, value)


def check_lost(status: dict[str, Any]) -> Check:
    """Did bytes go away before they were read?"""
    files, lost = status["files"], status["spool"]["lost_bytes"]
    value = f"{files['vanished']:,} files are gone from the spool, as they should be after 7 days"
    if lost:
        hint = "Writers deleted or cut files before piperd had read them: it was down or behind for too long."
        return Check("lost", Level.WARN, f"{size(lost)} seen and gone unread since piperd started; {value}", hint)
    return Check("lost", Level.PASS, value if files["vanished"] else "nothing vanished")


def check_privacy(status: dict[str, Any]) -> Check:
    """Do readers see of names what privacy.mask_users says, in history too?"""
    privacy = status["privacy"]
    if privacy is None:
        return Check("privacy", Level.PASS, "not known yet: the next piperd or `piper ingest` says it")
    value = "user names are masked" if privacy["mask_users"] else "user names are shown"
    if privacy["history"] == "done":
        later = privacy["names_not_searched"]
        value += (
            f"; history is searched for {later:,} later names once a day" if privacy["mask_users"] and later else ""
        )
        return Check("privacy", Level.PASS, value)
    hint = "piperd, or the next `piper ingest`, rewrites it in the background; docs/privacy.md says what that takes."
    if privacy["history"] == "cleaning":
        return Check("privacy", Level.WARN, f"{value}; files of the other form are about to be deleted", hint)
    return Check("privacy", Level.WARN, f"{value} in new events, older ones may still have the other form", hint)


# ---- words -----------------------------------------------------------------------------------------------------------


def _grade(value: float, warn: float, fail: float | None) -> Level:
    if fail is not None and value > fail:
        return Level.FAIL
    return Level.WARN if value > warn else Level.PASS


def _check(name: str, level: Level, value: str, hint: str) -> Check:
    return Check(name, level, value, "" if level is Level.PASS else hint)


def duration(seconds: float) -> str:
    """3.2 s, 5 min, 7.1 h, 12 days."""
    for limit, unit, text in ((90, 1, "{:.1f} s"), (90 * 60, 60, "{:.0f} min"), (48 * 3600, 3600, "{:.1f} h")):
        if seconds < limit:
            return text.format(seconds / unit)
    return f"{seconds / 86_400:.0f} days"


def size(size_bytes: float) -> str:
    """1.5 GiB and the like."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
