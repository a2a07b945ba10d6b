"""Quarantine as people look at it: the records of the quarantine files, newest first, while piperd appends to them.

A record is found by its id: the first digits of a hash over source file, offset and content, which is what makes a
rejected line one and the same to piper. Lines that were rejected within the last second may not be in a file yet.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from piper.errors import PiperError
from piper.events.quarantine import Reason

ID_DIGITS = 12
STATS_MOST = 10
"""Rows of each list in the statistics."""

MEANING = {
    Reason.INVALID_UTF8: "The line is not UTF-8: the writer's encoding is wrong, or the file was damaged.",
    Reason.INVALID_JSON: "The line is no strict JSON: cut off by a crash, two writers in one file, or NaN in it.",
    Reason.NOT_AN_OBJECT: "The line is JSON, but no object.",
    Reason.MISSING_FIELD: "A field that every event needs is missing, null or empty.",
    Reason.INVALID_FIELD: "A field has the wrong type, or a value that is not allowed.",
    Reason.UNSUPPORTED_SCHEMA_VERSION: "The event speaks a schema version that this piper does not know.",
    Reason.CLOCK_SKEW: "The event is more than an hour in the future: the clock of that host is ahead.",
    Reason.LINE_TOO_LONG: "The line is longer than ingest.line_bytes_max; only its beginning was kept.",
    Reason.TRUNCATED_LINE: "The file ended within the line and is gone: the writer crashed.",
}


@dataclass(frozen=True, slots=True)
class Found:
    """One record with its id and the file that holds it (relative to the quarantine directory)."""

    id: str
    file: str
    record: dict[str, Any]

    @property
    def raw(self) -> bytes:
        """The line, as far as it was kept."""
        if "raw_base64" in self.record:
            return base64.b64decode(self.record["raw_base64"])
        return str(self.record["raw_text"]).encode()

    def as_row(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {"id": self.id, **self.record, "quarantine_file": self.file}


@dataclass(frozen=True, slots=True)
class Only:
    """Which records are meant: of one reason, since a moment (naive UTC); None means all."""

    reason: Reason | None = None
    since: datetime | None = None


def records(quarantine: Path, only: Only) -> Iterator[Found]:
    """The records, newest first. What is cut off (being written just now) or no record of ours is left out."""
    for path in sorted(quarantine.glob("*/*.jsonl"), key=_order, reverse=True):
        if only.since is not None and path.parent.name < only.since.date().isoformat():
            return
        for line in reversed(_lines(path)):
            record = _record(line)
            if record is not None and _is_meant(record, only):
                yield Found(record_id(record), str(path.relative_to(quarantine)), record)


def record_id(record: dict[str, Any]) -> str:
    """The id of a record."""
    identity = f"{record['source_file']}\0{record['source_offset']}\0{record['raw_md5']}"
    return hashlib.md5(identity.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()[:ID_DIGITS]


def find(quarantine: Path, start: str) -> Found:
    """The record whose id begins with `start`. Raises PiperError when there is none, or more than one."""
    found: dict[str, Found] = {}
    for candidate in records(quarantine, Only()):
        if candidate.id.startswith(start.lower()):
            found.setdefault(candidate.id, candidate)
            if len(start) >= ID_DIGITS:
                break
    if not found:
        raise PiperError(f"nothing in quarantine has the id {start!r}", hint="`piper quarantine list` shows ids.")
    if len(found) > 1:
        some = ", ".join(islice(found, 3))
        raise PiperError(f"{len(found)} records begin with {start!r}: {some}", hint="Give more of the id.")
    return next(iter(found.values()))


def statistics(quarantine: Path, only: Only) -> dict[str, Any]:
    """How many records there are: in all, by reason, field, host, day and source file (those with most)."""
    keys: dict[str, Callable[[dict[str, Any]], str | None]] = {
        "reasons": lambda record: record["reason"],
        "fields": lambda record: record["field"],
        "hosts": lambda record: record["source_file"].partition("/")[0],
        "days": lambda record: record["quarantined_at_utc"][:10],
        "files": lambda record: record["source_file"],
    }
    counts: dict[str, Counter[str]] = {name: Counter() for name in keys}
    lines = size_bytes = 0
    for found in records(quarantine, only):
        lines += 1
        size_bytes += found.record["raw_bytes"]
        for name, key in keys.items():
            if (value := key(found.record)) is not None:
                counts[name][value] += 1
    lists = {name: dict(counter.most_common(STATS_MOST)) for name, counter in counts.items() if name != "days"}
    return {"lines": lines, "bytes": size_bytes, **lists, "days": dict(sorted(counts["days"].items()))}


def _order(path: Path) -> tuple[str, int, str]:
    """By day, then by number, which has more digits from the 10,000th on."""
    return path.parent.name, len(path.name), path.name


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\n")
    except FileNotFoundError:  # retention, between the listing and here
        return []


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and {"source_file", "raw_md5", "reason"} <= record.keys() else None


def _is_meant(record: dict[str, Any], only: Only) -> bool:
    if only.reason is not None and record["reason"] != only.reason.value:
        return False
    return only.since is None or _moment(record) >= only.since


def _moment(record: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(record["quarantined_at_utc"]).astimezone(UTC).replace(tzinfo=None)
