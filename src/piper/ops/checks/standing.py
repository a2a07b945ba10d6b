"""The standing: what the writer, or the manifest of a warehouse at rest, says of itself."""

from __future__ import annotations

import re
from typing import Any

from piper import __version__
from piper.ops.checks import Check, Level, grade, judged
from piper.ops.words import duration, size, some

READER_ENGINE = "1.5.4"
"""The DuckDB inside the Grafana plugin: what readers open must be within what it reads."""

UNREAD_WARN_SECONDS, UNREAD_FAIL_SECONDS = 60, 900
"""The daemon reads what it sees within a second: a minute is overload, a quarter of an hour a hang."""
IDLE_UNREAD_WARN_SECONDS, IDLE_UNREAD_FAIL_SECONDS = 24 * 3600, 5 * 24 * 3600
"""Without a daemon a nightly `piper ingest` is fine; writers delete their files after 7 days, so 5 are urgent."""

FULL_WARN_DAYS, FULL_FAIL_DAYS = 30, 7
"""A disk is ordered, delivered and built in within a month; a week is left for deleting."""
CHUNKS_WARN = 20_000
"""A query lists every chunk of its dataset before it reads any."""
DATES_WARN = 4000
"""Eleven years: more is no history but somebody who makes up dates."""
_EVERYDAY = {"renamed", "vanished"}


def describe_writer(status: dict[str, Any]) -> str:
    """Who writes this warehouse now, in words."""
    if status["state"] == "busy":
        return f"{status['holder']} is at work"
    if status["state"] == "stopped":
        return "piperd is not running; nobody writes"
    pid = f", PID {status['pid']}" if "pid" in status else ""
    uptime = f", up {duration(status['uptime_seconds'])}" if "uptime_seconds" in status else ""
    return f"piperd is {status['state']}{pid}{uptime}"


def check_writer(status: dict[str, Any]) -> Check:
    """Is there a daemon, and is it well?"""
    problems = "; ".join(problem["reason"] for problem in status.get("problems", []))
    if problems:
        hint = "It keeps trying and picks up by itself; its log says more (journalctl -u piperd)."
        return Check("writer", Level.WARN, f"{describe_writer(status)}: {problems}", hint)
    return Check("writer", Level.PASS, describe_writer(status))


def days_until_full(status: dict[str, Any]) -> float | None:
    """At the pace of the last weeks; None when silver does not grow."""
    per_day = status["chunks"]["bytes_per_day"]
    return status["disk"]["free_bytes"] / per_day if per_day else None


def check_disk_forecast(status: dict[str, Any]) -> Check:
    """When will silver have filled the disk?"""
    days = days_until_full(status)
    if days is None:
        return Check("disk_forecast", Level.PASS, "not judged: no whole day of chunks yet")
    level = grade(-days, -FULL_WARN_DAYS, -FULL_FAIL_DAYS)
    when = f"{days:,.0f} days" if days < 1000 else "years"
    value = f"full in {when}: silver grows by {size(status['chunks']['bytes_per_day'])} a day"
    return judged("disk_forecast", level, value, "Get a larger disk, or lower retention; other things fill it too.")


def check_chunks(status: dict[str, Any]) -> Check:
    """Are there so many chunks that listing them slows queries down?"""
    counts = status["chunks"]["by_dataset"]
    value = f"{status['chunks']['files']:,} files, {size(status['chunks']['bytes'])}"
    if counts:
        most = max(counts, key=lambda dataset: counts[dataset])
        value += f"; most in {most}: {counts[most]:,}"
    dates = status["chunks"].get("dates", 0)
    if dates > DATES_WARN:
        hint = "Somebody writes events of made-up dates: top source_file of the oldest event_date in silver_events."
        return Check("chunks", Level.WARN, f"{value}; of {dates:,} dates", hint)
    level = grade(max(counts.values(), default=0), CHUNKS_WARN, None)
    return judged("chunks", level, value, "Queries on silver_events list them all; dashboards should read gold.")


def check_chunk_files(found: dict[str, Any] | None, *, deep: bool) -> Check:
    """Is every chunk in its place and whole, and is there no other?"""
    if found is None:
        return Check("chunk_files", Level.PASS, "not judged: another command is at work, or nothing was sealed yet")
    if found["broken"]:
        worst = found["examples"][0]
        value = f"{found['broken']:,} of {found['chunks']:,} are broken, such as {worst['path']}: {worst['detail']}"
        hint = "Put them back from a backup, or run `piper repair`: it makes their rows again from raw."
        return Check("chunk_files", Level.FAIL, value, hint)
    if found["unfinished_repair"]:
        return Check("chunk_files", Level.WARN, "a repair was not finished", "Run `piper repair`: it goes on.")
    how = "and can be read" if deep else "with the size that they were sealed with"
    return Check("chunk_files", Level.PASS, f"{found['chunks']:,} in their places, {how}")


def check_versions(status: dict[str, Any], storage: dict[str, str]) -> Check:
    """Do writer, command and Grafana's engine fit together? `storage`: the oldest DuckDB for each readers' file."""
    writer, ours = status["versions"], __version__
    value = (
        f"piper {writer['piper']} with DuckDB {writer['duckdb']}, manifest schema {status['schema_version']},"
        f" files for DuckDB {some(sorted({version for version in storage.values() if version}))} and later"
    )
    if writer["piper"] != ours:
        value = f"piperd is {writer['piper']}, this command {ours}; {value}"
        return Check("versions", Level.WARN, value, "Restart piperd after an upgrade (systemctl restart piperd).")
    newer = [name for name, version in storage.items() if _numbers(version) > _numbers(READER_ENGINE)]
    if newer:
        hint = f"Grafana's plugin brings DuckDB {READER_ENGINE}. Run piper with the DuckDB that it asks for (<2)."
        return Check("versions", Level.WARN, f"{some(newer)} cannot be read by Grafana; {value}", hint)
    return Check("versions", Level.PASS, value)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def check_backlog(status: dict[str, Any]) -> Check:
    """What waits on the spool, and for how long?"""
    spool = status["spool"]
    if not spool["reachable"]:
        return Check("backlog", Level.WARN, f"unknown: {spool['error']}", "See the check `spool`.")
    age = spool["oldest_unread_seconds"]
    if status["state"] == "stopped":
        level, hint = (
            grade(age, IDLE_UNREAD_WARN_SECONDS, IDLE_UNREAD_FAIL_SECONDS),
            "Run `piper ingest`, or start piperd.",
        )
    else:
        level = grade(age, UNREAD_WARN_SECONDS, UNREAD_FAIL_SECONDS)
        hint = "piperd does not keep up: see its log, the disk, and whether one file floods."
    value = f"{size(spool['unread_bytes'])} in {spool['unread_files']:,} files, oldest {duration(age)}"
    return judged("backlog", level, value if spool["unread_files"] else "nothing unread", hint)


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


def check_spool_files(status: dict[str, Any]) -> Check:
    """What is odd on the spool: what cannot be read, what is no file, and what files went through?"""
    spool = status["spool"]
    unreadable, special = spool.get("unreadable_files", 0), spool.get("special_files", 0)
    events = {kind: count for kind, count in spool.get("file_events", {}).items() if kind not in _EVERYDAY}
    told = [f"{special:,} links, pipes or the like that are not followed"] if special else []
    if old := spool.get("old_events", 0):
        told.append(f"{old:,} events over a year old since piperd started: a wrong clock, or somebody brings history")
    if counts := [*events.items(), *spool.get("errors", {}).items()]:
        told.append(f"since piperd started: {', '.join(f'{name} {count:,}' for name, count in counts)}")
    if unreadable:
        told.insert(0, f"{unreadable:,} files or directories cannot be read: {some(spool['unreadable'])}")
    hint = "Check permissions and the mount; it is tried again at every look. docs/operations.md has each file event."
    value = "; ".join(told) or "nothing odd"
    return judged("spool_files", Level.WARN if unreadable else Level.PASS, value, hint)


def check_privacy(status: dict[str, Any]) -> Check:
    """Do readers see of names what privacy.mask_users says, in history too?"""
    privacy = status["privacy"]
    if privacy is None:
        return Check("privacy", Level.PASS, "not known yet: the next piperd or `piper ingest` says it")
    value = "user names are masked" if privacy["mask_users"] else "user names are shown"
    if privacy["history"] == "done":
        if privacy["mask_users"] and privacy["names_not_searched"]:
            value += f"; history is searched for {privacy['names_not_searched']:,} later names once a day"
        return Check("privacy", Level.PASS, value)
    hint = "piperd in the background, or the next `piper ingest`, sees to it; docs/privacy.md says what that takes."
    if privacy["history"] == "cleaning":
        return Check("privacy", Level.WARN, f"{value}; files of the other form are about to be deleted", hint)
    return Check("privacy", Level.WARN, f"{value} in new events, older ones may still have the other form", hint)
