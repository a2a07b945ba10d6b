"""One line of a spool judged and projected in plain Python: slow, obvious, and sharing no code with piper.

Choices that the contract leaves open, made here once (those about casts are in gold_reference):
- Of duplicate keys the FIRST counts, at every level: DuckDB's JSON reader takes the first, Python's takes the last.
- An escape that is a lone surrogate (`"\\ud800"`) makes the line invalid JSON: it is no character.
- A blank line is one of JSON white space only; it is nothing. A BOM is stripped at offset 0 of a file, by the tailer,
  and is invalid JSON anywhere else.
- A line is flat when it has no schema_version key but occurred_at, or else a flat host key and no occurred_at_utc.
- The first problem counts, in this order: schema_version, a field missing (or empty, or null), a field of the wrong
  type, the form of event_type, status, the optional objects, the time, the clock.
- A time is RFC 3339, or without seconds, with a space, a comma or `+05`; no 24:00, no leap second, no fraction of more
  than nine digits, and not before the year 1 in UTC. Digits after the sixth are cut off.
- Optional text fields take any JSON value as its text. A top-level duration_ms counts in both dialects; where it
  is the one that counts it is kept among the metrics, so that payload and metrics alone give every other dataset.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

from tests.support import gold_reference as raw

sys.set_int_max_str_digits(0)  # JSON has integers of any length

Row = dict[str, Any]
LINE_BYTES_MAX = 1 << 20
DEEP = "[" * 10_000 + "]" * 10_000
"""What Python cannot parse for its depth; `judge` looks at a shallow stand-in for this very text."""
STAND_IN = "[[10000]]"

NESTED_REQUIRED = "event_id event_type occurred_at_utc status pipeline.name host.hostname host.user session.session_id"
FLAT_REQUIRED = "event_id event_type occurred_at status action_id hostname host_user"
OBJECTS = ("payload", "metrics", "scope", "error")

DURATION = "metrics.duration_ms metrics.launch_duration_ms payload.duration_ms duration_ms"
_WHO_WHEN = "event_id occurred_at_utc event_date status hostname=host_hostname username=host_user"
_SCOPE = "show=scope_show sequence=scope_sequence shot=scope_shot"
_SUBJECT = f"dcc=pipeline_dcc {_SCOPE} asset=scope_asset department=scope_department"
_ERROR = "error_code error_message"


@dataclass(frozen=True)
class Rejected:
    """What quarantine must say of a line."""

    reason: str
    field: str = ""


@dataclass(frozen=True)
class Accepted:
    """An event: its row of silver/events (JSON columns as `canonical` has them), its other dataset, that row."""

    event: Row
    violates: bool
    dataset: str
    row: Row


class JsonFloat(float):
    """A number with a fraction or an exponent, with its text."""

    text: str

    @classmethod
    def of(cls, text: str) -> JsonFloat:
        value = cls(text)
        value.text = text
        return value


def judge(line: bytes, now: datetime) -> Accepted | Rejected | None:
    """What becomes of a line (without its newline) that is read at `now`, naive UTC; None = blank, nothing."""
    if len(line) > LINE_BYTES_MAX:
        return Rejected("line_too_long")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return Rejected("invalid_utf8")
    if not text.strip(" \t\r\n"):
        return None
    text = text.replace(DEEP, STAND_IN)
    try:
        event = _first_of_each(text)
        json.dumps(_pairs(text), ensure_ascii=False).encode()
    except ValueError:  # also what a lone surrogate raises
        return Rejected("invalid_json")
    if not isinstance(event, dict):
        return Rejected("not_an_object")
    flat = _is_flat(event)
    problem = _problem(event, now, flat=flat)
    return problem or _accepted(event, JsonObject(_pairs(text)), flat=flat)


def canonical(text: str | None) -> str | None:
    """A JSON text with everything in it in order, but without its spelling: for comparing."""
    return None if text is None else repr(_pairs(text.replace(DEEP, STAND_IN)))


def _first_of_each(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse, parse_float=JsonFloat.of, object_pairs_hook=JsonObject)


class JsonObject(dict[str, Any]):
    """The first of each key; `pairs` has them all."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs[::-1])
        self.pairs = pairs


def _pairs(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse, object_pairs_hook=lambda pairs: pairs)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _is_flat(event: Row) -> bool:
    if "schema_version" in event:
        return False
    return "occurred_at" in event or ("occurred_at_utc" not in event and ("hostname" in event or "host_user" in event))


def _problem(event: Row, now: datetime, *, flat: bool) -> Rejected | None:
    checks = [] if flat else [_schema_version_problem(event)]
    required = FLAT_REQUIRED if flat else NESTED_REQUIRED
    values = {name: raw.lookup(event, name) for name in required.split()}
    checks += [Rejected("missing_field", name) for name, value in values.items() if value is None or value == ""]
    checks += [Rejected("invalid_field", name) for name, value in values.items() if not isinstance(value, str)]
    first = next((check for check in checks if check), None)
    return first or _value_problem(event, now, "occurred_at" if flat else "occurred_at_utc")


def _schema_version_problem(event: Row) -> Rejected | None:
    version = event.get("schema_version")
    if version is None or version == "":
        return Rejected("missing_field", "schema_version")
    if not isinstance(version, str):
        return Rejected("invalid_field", "schema_version")
    if not re.fullmatch(r"1\.[0-9]+", version):
        return Rejected("unsupported_schema_version", "schema_version")
    return None


def _value_problem(event: Row, now: datetime, time_field: str) -> Rejected | None:
    name = raw.event_type_of(event)
    if len(name) > 128 or not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)+", name):
        return Rejected("invalid_field", "event_type")
    if event["status"] not in ("success", "error", "warning", "info"):
        return Rejected("invalid_field", "status")
    for part in OBJECTS:
        if not isinstance(event.get(part), dict | None):
            return Rejected("invalid_field", part)
    moment = utc_of(event[time_field])
    if moment is None:
        return Rejected("invalid_field", time_field)
    return Rejected("clock_skew", time_field) if moment > now + timedelta(hours=1) else None


_CONTROL = re.compile(r"(?<!\\)((?:\\\\)*\\u)(00[0-9a-f]{2})")
_BEYOND = datetime.max  # noqa: DTZ901


def utc_of(text: str) -> datetime | None:
    """The naive UTC time that a text spells, None where it spells none; the last moment of 9999 for what is later."""
    found = re.fullmatch(
        r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]{1,9}))?)?"
        r"(?:[Zz]|([+-])([0-9]{2})(?::?([0-9]{2}))?)",
        text,
    )
    if not found:
        return None
    year, month, day, hour, minute, second, fraction, sign, hours, minutes = found.groups()
    if int(hours or 0) > 23 or int(minutes or 0) > 59:
        return None
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0)) * (-1 if sign == "-" else 1)
    micros = int(((fraction or "") + "000000")[:6])
    try:
        moment = datetime(
            int(year), int(month), int(day), int(hour), int(minute), int(second or 0), micros, timezone(offset)
        )
    except ValueError:
        return None
    try:
        return moment.astimezone(UTC).replace(tzinfo=None)
    except OverflowError:
        return _BEYOND if int(year) == 9999 else None


def _accepted(event: Row, first_pairs: Row, *, flat: bool) -> Accepted:
    kind = raw.event_type_of(event)
    metrics = _stored_metrics(event, first_pairs)
    moment = utc_of(event["occurred_at" if flat else "occurred_at_utc"])
    assert moment is not None
    names = _FLAT_COLUMNS if flat else _NESTED_COLUMNS
    row: Row = {column: text_of(event, names.get(column, "")) for column in _ENVELOPE_COLUMNS.split()}
    row.update({f"scope_{name}": text_of(event, f"scope.{name}") for name in _SCOPE_FIELDS})
    row.update(
        event_type=kind,
        occurred_at_utc=moment,
        event_date=moment.date(),
        payload=None if event.get("payload") is None else repr(first_pairs["payload"]),
        metrics=metrics,
    )
    if flat:
        row.update(schema_version="flat", pipeline_name="sandwich-pipeline")
    dataset = DATASET_OF.get(kind, "")
    return Accepted(row, raw.breaks_registry(event), dataset, _projected(event, row, dataset))


_SCOPE_FIELDS = ("show", "sequence", "shot", "asset", "department", "task")
_ENVELOPE_COLUMNS = (
    "event_id schema_version status pipeline_name pipeline_dcc host_hostname host_user host_os session_id action_id"
    " error_code error_message"
)
_NESTED_COLUMNS = {
    "event_id": "event_id",
    "schema_version": "schema_version",
    "status": "status",
    "pipeline_name": "pipeline.name",
    "pipeline_dcc": "pipeline.dcc",
    "host_hostname": "host.hostname",
    "host_user": "host.user",
    "host_os": "host.os",
    "session_id": "session.session_id",
    "action_id": "session.action_id",
    "error_code": "error.code",
    "error_message": "error.message",
}
_FLAT_COLUMNS = {
    "event_id": "event_id",
    "status": "status",
    "pipeline_dcc": "dcc",
    "host_hostname": "hostname",
    "host_user": "host_user",
    "session_id": "action_id",
    "action_id": "action_id",
    "error_code": "error_code error.code",
    "error_message": "error_message error.message",
}


def _stored_metrics(event: Row, first_pairs: Row) -> str | None:
    """The metrics, with a top-level duration_ms among them when no other duration counts before it: in front, or, where
    a null has its place, at the end."""
    pairs = None if event.get("metrics") is None else first_pairs["metrics"]
    if event.get("duration_ms") is None or raw.lookup(event, DURATION.removesuffix(" duration_ms")) is not None:
        return None if pairs is None else repr(pairs)
    value: Any = raw.integer(event, "duration_ms")
    if value is None:
        value = raw.number(event, "duration_ms")
    added = [("duration_ms", text_of(event, "duration_ms") if value is None else value)]
    others = [pair for pair in pairs or [] if pair[0] != "duration_ms"]
    return repr(others + added if len(others) < len(pairs or []) else added + others)


def text_of(event: Row, names: str) -> str | None:
    """A value as a text column holds it: text, or the shortest JSON of anything else."""
    value = raw.lookup(event, names) if names else None
    if isinstance(value, JsonFloat) and math.isfinite(value):
        return repr(float(value))  # a number by itself is cast; one within an array or object stays JSON
    return value if value is None or isinstance(value, str) else _json_text(value)


def _json_text(value: Any) -> str:
    if isinstance(value, JsonObject):
        return "{" + ",".join(f"{_json_text(name)}:{_json_text(item)}" for name, item in value.pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_json_text, value)) + "]"
    if isinstance(value, JsonFloat):
        return _double(value) if math.isfinite(value) else value.text
    # Control characters are escaped in capitals by DuckDB, in small letters by json.
    return _CONTROL.sub(lambda found: found[1] + found[2].upper(), json.dumps(value, ensure_ascii=False))


def _double(value: float) -> str:
    """The shortest digits that give it again, spelled as ECMAScript does (and a whole number with .0)."""
    sign, digits, exponent = Decimal(repr(float(value))).normalize().as_tuple()
    assert isinstance(exponent, int)
    point = len(digits) + exponent
    if -6 < point <= 21 or not value:
        text = f"{Decimal((sign, digits, exponent)):f}"
        return text if "." in text else text + ".0"
    first, *rest = map(str, digits)
    return "-" * sign + first + ("." + "".join(rest) if rest else "") + f"e{point - 1}"


DATASET_OF = {
    **{name: "publish_usd" for name in raw.REGISTRY if name.startswith("publish.")},
    **dict.fromkeys(raw.TOOL_TYPES, "tool_events"),
    "tractor.job.spool": "tractor_job_spool",
    "tractor.farm.snapshot": "tractor_farm_snapshot",
    "render.stats.summary": "render_stats_summary",
    "storage.scan.summary": "storage_scan_summary",
    "storage.scan.bucket": "storage_scan_bucket",
}

FIELDS: dict[str, tuple[str, str, str, str]] = {
    "publish_usd": (f"{_WHO_WHEN} event_type {_SUBJECT} {_ERROR}", "output_path", "duration_ms output_size_bytes", ""),
    "tool_events": (f"{_WHO_WHEN} event_type {_SUBJECT} {_ERROR}", "", "duration_ms output_size_bytes", ""),
    "tractor_job_spool": (
        f"{_WHO_WHEN} {_SCOPE} {_ERROR}",
        "job_id job_title engine_url service renderer",
        "frame_start frame_end frame_step tile_count blade_count spool_duration_ms",
        "priority",
    ),
    "tractor_farm_snapshot": (
        f"{_WHO_WHEN} {_ERROR}",
        "engine_url",
        "running_jobs waiting_jobs errored_jobs busy_slots total_slots active_blades total_blades snapshot_duration_ms",
        "",
    ),
    "render_stats_summary": (
        f"{_WHO_WHEN} {_SCOPE} {_ERROR}",
        "job_id renderer service",
        "frame_count failed_frames retry_count queue_wait_ms",
        "frame_time_p50_ms frame_time_p90_ms avg_render_time_s total_cpu_hours peak_memory_gb",
    ),
    "storage_scan_summary": (
        f"{_WHO_WHEN} {_ERROR}",
        "scan_id",
        "roots_scanned_count bucket_count total_size_bytes total_file_count total_dir_count",
        "",
    ),
    "storage_scan_bucket": (
        f"{_WHO_WHEN} {_ERROR}",
        "scan_id bucket_id bucket category scope_type scope_code root_path",
        "total_size_bytes file_count dir_count",
        "",
    ),
}
"""Columns of each dataset: taken from the envelope, text, integer, number. The two storage datasets have
scan_duration_s and publish_usd has publish_type besides."""

NAMES: dict[str, str] = {
    "output_path": "payload.publish_path payload.output_path",
    "duration_ms": DURATION,
    "running_jobs": "payload.running_jobs payload.active_jobs",
    "frame_count": "payload.total_frames payload.frame_count",
    "peak_memory_gb": "payload.memory_peak_gb metrics.peak_memory_gb",
    "retry_count": "payload.retry_count_total",
    "bucket_count": "payload.buckets_emitted_count payload.bucket_count",
    "storage_scan_summary.total_size_bytes": "metrics.size_bytes_total metrics.total_size_bytes",
    "total_file_count": "metrics.file_count_total payload.total_file_count",
    "total_dir_count": "metrics.dir_count_total",
    "bucket": "payload.bucket payload.category",
    "root_path": "payload.path payload.root_path",
    "storage_scan_bucket.total_size_bytes": "metrics.size_bytes metrics.total_size_bytes payload.size_bytes",
    "file_count": "metrics.file_count payload.file_count",
    "dir_count": "metrics.dir_count payload.dir_count",
    "output_size_bytes": "metrics.output_size_bytes payload.output_size_bytes",
    "blade_count": "payload.blade_count metrics.blade_count",
    "spool_duration_ms": f"metrics.spool_duration_ms payload.spool_duration_ms {DURATION}",
    "snapshot_duration_ms": f"metrics.snapshot_duration_ms payload.snapshot_duration_ms {DURATION}",
    "queue_wait_ms": "payload.queue_wait_ms metrics.queue_wait_ms",
    "frame_time_p50_ms": "payload.frame_time_p50_ms metrics.frame_time_p50_ms",
    "frame_time_p90_ms": "payload.frame_time_p90_ms metrics.frame_time_p90_ms",
    "avg_render_time_s": "payload.avg_render_time_s metrics.avg_render_time_s",
    "total_cpu_hours": "payload.total_cpu_hours metrics.total_cpu_hours",
}
"""Where a column is found when that is not `payload.<column>`: names in order of preference."""


def names_of(dataset: str, column: str) -> str:
    """The names of a column's field, in order of preference."""
    return NAMES.get(f"{dataset}.{column}") or NAMES.get(column) or f"payload.{column}"


def _projected(event: Row, envelope: Row, dataset: str) -> Row:
    if not dataset:
        return {}
    shared, texts, integers, numbers = FIELDS[dataset]
    row: Row = {}
    for pair in shared.split():
        column, _, source = pair.partition("=")
        row[column] = envelope[source or column]
    row |= {column: text_of(event, names_of(dataset, column)) for column in texts.split()}
    row |= {column: raw.integer(event, names_of(dataset, column)) for column in integers.split()}
    row |= {column: raw.number(event, names_of(dataset, column)) for column in numbers.split()}
    if dataset == "publish_usd":
        row["publish_type"] = text_of(event, "payload.publish_type") or _kind_unless_empty(event)
    if dataset.startswith("storage_scan_"):
        row["scan_duration_s"] = _scan_seconds(event)
    return row


def _kind_unless_empty(event: Row) -> str:
    return "" if raw.lookup(event, "payload.publish_type") == "" else raw.event_type_of(event).split(".")[1]


def _scan_seconds(event: Row) -> float | None:
    scales = {"payload.scan_duration_ms": 1000, "metrics.scan_duration_s": 1, "payload.duration_ms": 1000}
    for name, scale in scales.items():
        if raw.lookup(event, name) is not None:
            value = raw.number(event, name)
            return None if value is None else value / scale
    return None


def split_lines(content: bytes) -> Iterable[tuple[int, int, bytes]]:
    """(offset, number from 1, line without newline) of a file's complete lines; a BOM at its beginning is no part."""
    offset = 0
    lines = content.split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        skipped = 3 if number == 1 and line.startswith(b"\xef\xbb\xbf") else 0
        yield offset + skipped, number, line[skipped:]
        offset += len(line) + 1
