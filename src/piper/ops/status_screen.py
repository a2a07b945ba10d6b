"""`piper status` as a screen: one for a terminal, which `--watch` draws again and again, and plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from piper.ops.checks import Level
from piper.ops.checks.standing import days_until_full, describe_writer
from piper.ops.screen import STYLES, with_reasons
from piper.ops.terminal import one_line
from piper.ops.words import duration, size

FILES_MAX = 3
HOSTS_MAX = 4
"""So that all of it fits into 24 lines; `--json` has every host."""

AHEAD_SECONDS = 2.0
"""Less is not told: the times of events are whole seconds, and clocks differ by as much."""

Row = tuple[str, str, str]
"""Name, value and style of one line."""


def status_screen(status: dict[str, Any], *, hosts_max: int = HOSTS_MAX, now: datetime | None = None) -> RenderableType:
    """One screen of a status with `hosts` (rows) and `open_problems`. Text only: it folds, and greps, as lines do."""
    moment = now or datetime.now(UTC)
    rows: list[Row] = [
        ("spool", status["paths"]["raw_root"], ""),
        ("data root", status["paths"]["data_root"], ""),
        ("disk", _disk(status), ""),
    ]
    if "commits" in status:
        rows += _spool_rows(status) + _warehouse_rows(status, moment)
    rows += [("problem", problem["reason"], "bold red") for problem in status.get("problems", [])]
    for row in status["open_problems"]:
        rows.append(("problem", f"{row['name']}: {row['value']}", STYLES[Level(row["status"])]))
    parts: list[RenderableType] = [Text(describe_writer(status), style="bold"), _facts(rows)]
    if status.get("hosts"):
        parts.append(_hosts(status["hosts"], hosts_max, moment))
    if status.get("spool", {}).get("behind"):
        parts.append(_files(status["spool"]["behind"]))
    return Group(*parts)


def _facts(rows: Sequence[Row]) -> Text:
    width = max(len(name) for name, _, _ in rows)
    lines = [Text.assemble((f"  {name:<{width}}  ", "dim"), (one_line(value), style)) for name, value, style in rows]
    return Text("\n").join(lines)


def _disk(status: dict[str, Any]) -> str:
    disk = status["disk"]
    text = f"{size(disk['free_bytes'])} free of {size(disk['size_bytes'])}"
    days = days_until_full(status) if "chunks" in status else None
    return text if days is None or days > 3650 else f"{text}, full in {days:,.0f} days at this pace"


def _spool_rows(status: dict[str, Any]) -> list[Row]:
    spool, files, rates = status["spool"], status["files"], status["rates"]
    known = f"{files['tracked']:,} known, {files['vanished']:,} vanished, {files['doubtful']:,} doubtful"
    unread = "nothing"
    if not spool["reachable"]:
        unread = f"unknown, the spool cannot be read: {spool['error']}"
    elif spool["unread_files"]:
        age = duration(spool["oldest_unread_seconds"])
        unread = f"{size(spool['unread_bytes'])} in {spool['unread_files']:,} files, oldest {age}"
    rows = [("files", known, ""), ("unread", unread, "")]
    if rates is not None:
        pace = f"{rates['events_per_second']:,.1f} events/s, {size(rates['bytes_per_second'])}/s"
        rows.append(("rate", f"{pace} over {duration(rates['seconds'])}", ""))
    return rows


def _warehouse_rows(status: dict[str, Any], now: datetime) -> list[Row]:
    commits, events, chunks = status["commits"], status["events"], status["chunks"]
    refreshed = [moment for moment in status["gold"].values() if moment]
    gold = (
        f"{len(refreshed)} models, the oldest refreshed {ago(min(refreshed), now)}" if refreshed else "never refreshed"
    )
    today = sum(status["quarantined_today"].values())
    quarantined = with_reasons(events["quarantined"], status["quarantined_by_reason"])
    return [
        ("accepted", f"{events['accepted']:,} events, {events['duplicates']:,} duplicates left out", ""),
        ("quarantined", f"{quarantined}; today {today:,}" if today else quarantined, ""),
        ("last commit", f"{ago(commits['last_commit_utc'], now)} (number {commits['commit_seq']:,})", ""),
        ("published", ago(status["last_publish_utc"], now), ""),
        ("last seal", f"{ago(commits['last_seal_utc'], now)}; {status['tail_rows']:,} rows wait in the tail", ""),
        ("silver", f"{chunks['files']:,} chunks, {size(chunks['bytes'])}", ""),
        ("gold", gold, ""),
    ]


def _hosts(hosts: Sequence[dict[str, Any]], most: int, now: datetime) -> Text:
    shown = [("host", "last event", "lag", "last hour", "unread")]
    for row in hosts[:most]:
        lag = "–" if row["lag_seconds"] is None else duration(max(0.0, row["lag_seconds"]))
        events = f"{row['events_last_hour']:,}"
        shown.append((one_line(row["host"]), ago(row["last_event_utc"], now), lag, events, _unread(row)))
    widths = [max(len(cells[place]) for cells in shown) for place in range(len(shown[0]))]
    lines = []
    for number, (host, *cells) in enumerate(shown):
        text = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        lines.append(Text(f"  {host:<{widths[0]}}  {text}", "" if number else "dim"))
    if len(hosts) > most:
        lines.append(Text(f"  and {len(hosts) - most:,} more hosts", "dim"))
    return Text("\n").join(lines)


def _unread(row: dict[str, Any]) -> str:
    if not row["unread_files"]:
        return "–"
    return f"{size(row['unread_bytes'])} for {duration(row['oldest_unread_seconds'])}"


def _files(behind: Sequence[dict[str, Any]]) -> Text:
    return _facts(
        [
            ("behind", f"{size(file['unread_bytes'])} for {duration(file['seconds'])}: {file['source_file']}", "")
            for file in behind[:FILES_MAX]
        ]
    )


def ago(iso: str | None, now: datetime) -> str:
    """How long ago a time of a status was, in words."""
    if iso is None:
        return "never"
    seconds = (now - datetime.fromisoformat(iso)).total_seconds()
    if seconds < -AHEAD_SECONDS:
        return f"{duration(-seconds)} ahead"
    return f"{duration(max(0.0, seconds))} ago"
