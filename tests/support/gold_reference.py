"""Gold recomputed in plain Python from raw events: slow, obvious, and sharing no code with piper.

Models that need more than raw events (files, the time of ingest, the clock) are in `gold_live_reference`.

`recompute` takes accepted events in commit order; of several with one event_id the first counts. Choices that
the contract leaves open, made here once:
- A name is *present* when its value is not null; the first present name decides, castable or not.
- An integer column takes integers, numbers without a fraction, and strings of either; a number column takes
  finite numbers and such strings. A string counts when it spells a number as JSON does (leading zeros allowed):
  no white space, no plus sign, no nan. Booleans are no numbers. What does not fit 64 bits is NULL. A string
  without an exponent is read exactly, every other number as the nearest double.
- A value that is no text, in a text column, is its JSON text.
- A required field of the registry counts as there under any of the names that its column may have; null does not.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

Event = Mapping[str, Any]
Row = dict[str, Any]

UNCHECKED = {
    "gold_data_quality_daily": ("p95_ingest_lag_s", "max_clock_skew_s"),
    "gold_activity_daily": ("last_ingested_at",),
}
"""Columns that depend on when piper ingested the events; `recompute` leaves them out."""

TOOL_TYPES = frozenset(
    {
        "dcc.launch",
        "build.houdini.component",
        "texture.export.substance",
        "texture.convert.tex",
        "file.open",
        "file.create",
        "shot.setup",
        "playblast.create",
    }
)

ALIASES = {
    "publish_path": "payload.publish_path payload.output_path",
    "duration_ms": "metrics.duration_ms metrics.launch_duration_ms payload.duration_ms duration_ms",
    "publish_type": "payload.publish_type payload.kind",
    "running_jobs": "payload.running_jobs payload.active_jobs",
    "total_frames": "payload.total_frames payload.frame_count",
    "memory_peak_gb": "payload.memory_peak_gb metrics.peak_memory_gb",
    "buckets_emitted_count": "payload.buckets_emitted_count payload.bucket_count",
    "scan_duration_ms": "payload.scan_duration_ms metrics.scan_duration_s payload.duration_ms",
    "size_bytes_total": "metrics.size_bytes_total metrics.total_size_bytes",
    "file_count_total": "metrics.file_count_total payload.total_file_count",
    "category": "payload.bucket payload.category",
    "path": "payload.path payload.root_path",
    "size_bytes": "metrics.size_bytes metrics.total_size_bytes payload.size_bytes",
    "file_count": "metrics.file_count payload.file_count",
    "dir_count": "metrics.dir_count payload.dir_count",
}

OUTPUT_SIZE = "metrics.output_size_bytes payload.output_size_bytes"
_PUBLISH = ("success error", "publish_type publish_path", "duration_ms")
_JOB = "job_id renderer service"
_FRAMES = "total_frames failed_frames frame_time_p50_ms frame_time_p90_ms"
_WINDOW = "scan_window_start_utc scan_window_end_utc"
_ENTITY = "entity_type entity_code path"
REGISTRY: dict[str, tuple[str, str, str]] = {
    "dcc.launch": ("info success error", "command_basename arg_count env_keys_set", ""),
    **{f"publish.{kind}.usd": _PUBLISH for kind in ("asset", "anim", "camera", "customanim", "previs_asset")},
    "build.houdini.component": ("success error", "mode variant warnings_count errors_count", "duration_ms"),
    "texture.export.substance": (
        "success error",
        "asset geo_variant material_variant renderman_variant texture_set_count udim_set_count",
        "",
    ),
    "texture.convert.tex": (
        "success error",
        "source_count converted_tex_count converted_preview_count batch_size",
        "",
    ),
    "file.open": ("success error", f"{_ENTITY} versioned", ""),
    "file.create": ("success error", f"{_ENTITY} versioned", ""),
    "shot.setup": ("success error", f"{_ENTITY} department", ""),
    "playblast.create": ("success error", "preset output_count frame_start frame_end fps", "duration_ms"),
    "tractor.job.spool": (
        "success error",
        f"{_JOB} job_title engine_url priority frame_start frame_end frame_step tile_count",
        "",
    ),
    "tractor.farm.snapshot": (
        "info error",
        "engine_url waiting_jobs running_jobs busy_slots total_slots active_blades total_blades",
        "",
    ),
    "render.stats.summary": (
        "success error",
        f"{_JOB} {_FRAMES} memory_peak_gb retry_count_total queue_wait_ms",
        "",
    ),
    "storage.scan.summary": (
        "success error",
        f"scan_id {_WINDOW} roots_scanned_count buckets_emitted_count scan_duration_ms",
        "size_bytes_total file_count_total dir_count_total",
    ),
    "storage.scan.bucket": (
        "info",
        f"bucket_id category path {_WINDOW} scope_type scope_code",
        "size_bytes file_count dir_count",
    ),
}
"""Allowed status values, required payload fields, required metrics fields of every known type."""


def recompute(
    events: Iterable[Event],
    *,
    quarantined: Mapping[date, int] | None = None,
    duplicates: Mapping[date, int] | None = None,
    breaks_contract: Callable[[Event], bool] | None = None,
) -> dict[str, list[Row]]:
    """Give every model's rows (column name to value; dates as `date`), sorted by key, NULLs first."""
    unique: dict[str, Event] = {}
    for event in events:
        unique.setdefault(event["event_id"], event)
    rows = list(unique.values())
    of_type = _by_dataset(rows)
    counts = (quarantined or {}, duplicates or {})
    models = {
        "gold_publish_health_daily": _publish_health(of_type["publish"]),
        "gold_render_health_daily": _render_health(of_type["render"]),
        "gold_farm_pressure_daily": _farm_pressure(of_type["farm"]),
        "gold_tool_reliability_daily": _tool_reliability(of_type["tool"]),
        "gold_storage_growth_weekly": _storage_growth(of_type["bucket"]),
        "gold_data_quality_daily": _data_quality(rows, *counts, breaks_contract or breaks_registry),
        "gold_activity_daily": _activity(rows),
    }
    return {name: sort_rows(result) for name, result in models.items()}


def sort_rows(rows: Iterable[Row]) -> list[Row]:
    """Sort rows by all their values in column order, NULLs first: a total order for comparing tables."""
    return sorted(rows, key=lambda row: [(value is not None, str(value)) for value in row.values()])


def rows_agree(left: Sequence[Row], right: Sequence[Row]) -> bool:
    """Compare two sorted tables: exact, floats to nine digits."""
    return len(left) == len(right) and all(map(_row_agrees, left, right))


def quantile(values: Sequence[float], q: float) -> float | None:
    """Give the linearly interpolated quantile between the closest ranks, None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))


def event_type_of(event: Event) -> str:
    """Give the nested name of the type: flat `publish.usd` with a known kind is `publish.<kind>.usd`."""
    name = str(event["event_type"])
    kind = lookup(event, "payload.kind")
    if is_flat(event) and name == "publish.usd" and f"publish.{kind}.usd" in REGISTRY:
        return f"publish.{kind}.usd"
    return name


def is_flat(event: Event) -> bool:
    """Tell the dialect."""
    return "schema_version" not in event


def occurred_at(event: Event) -> datetime:
    """Give the time of the event, aware and in UTC."""
    text = event["occurred_at"] if is_flat(event) else event["occurred_at_utc"]
    return datetime.fromisoformat(text).astimezone(UTC)


def user_of(event: Event) -> str:
    """Give the user name."""
    return str(event["host_user"] if is_flat(event) else event["host"]["user"])


def host_of(event: Event) -> str:
    """Give the host name."""
    return str(event["hostname"] if is_flat(event) else event["host"]["hostname"])


def lookup(event: Event, names: str) -> Any:
    """Give the value under the first name (dotted path, space separated) that is present and not null."""
    for name in names.split():
        value: Any = event
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    return None


def integer(event: Event, names: str) -> int | None:
    """Give the value as a 64-bit integer, None when it is none."""
    value = lookup(event, names)
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", value):
        whole, _, fraction = value.partition(".")
        value = None if fraction.strip("0") else int(whole)
    if not isinstance(value, int):
        numeric = _number(value)
        value = int(numeric) if numeric is not None and numeric.is_integer() else None
    return value if value is not None and not isinstance(value, bool) and -(2**63) <= value < 2**63 else None


def number(event: Event, names: str) -> float | None:
    """Give the value as a float, None when it is none."""
    return _number(lookup(event, names))


def text(event: Event, names: str) -> str | None:
    """Give the value as text, None when it is not there."""
    value = lookup(event, names)
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def breaks_registry(event: Event) -> bool:
    """Tell whether an event of a known type has a status or lacks a field that the registry asks for."""
    known = REGISTRY.get(event_type_of(event))
    if known is None:
        return False
    statuses, payload_fields, metrics_fields = known
    wanted = [ALIASES.get(name, f"payload.{name}") for name in payload_fields.split()]
    wanted += [ALIASES.get(name, f"metrics.{name}") for name in metrics_fields.split()]
    return event["status"] not in statuses.split() or any(lookup(event, names) is None for names in wanted)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", value):
        return None
    try:
        result = float(value)
    except (ValueError, OverflowError):
        return None
    return result if math.isfinite(result) else None


def _row_agrees(left: Row, right: Row) -> bool:
    return left.keys() == right.keys() and all(_value_agrees(left[name], right[name]) for name in left)


def _value_agrees(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-9)
    return type(left) is type(right) and bool(left == right)


def _by_dataset(events: Iterable[Event]) -> dict[str, list[Event]]:
    datasets: dict[str, list[Event]] = defaultdict(list)
    names = {
        "render.stats.summary": "render",
        "tractor.farm.snapshot": "farm",
        "storage.scan.bucket": "bucket",
        **dict.fromkeys(TOOL_TYPES, "tool"),
    }
    for event in events:
        kind = event_type_of(event)
        if kind.startswith("publish.") and kind in REGISTRY:
            datasets["publish"].append(event)
        elif kind in names:
            datasets[names[kind]].append(event)
    return datasets


def _grouped(events: Iterable[Event], key: Callable[[Event], tuple[Any, ...]]) -> dict[tuple[Any, ...], list[Event]]:
    groups: dict[tuple[Any, ...], list[Event]] = defaultdict(list)
    for event in events:
        groups[key(event)].append(event)
    return groups


def _day(event: Event) -> date:
    return occurred_at(event).date()


def _having(status: str, events: Iterable[Event]) -> int:
    return sum(event["status"] == status for event in events)


def _known(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def _total(values: Iterable[Any]) -> Any:
    known = _known(values)
    total = math.fsum(known) if any(isinstance(value, float) for value in known) else sum(known)
    if not known or (isinstance(total, int) and not -(2**63) <= total < 2**63):
        return None
    return total


def _mean(values: Iterable[Any]) -> float | None:
    known = _known(values)
    return sum(known) / len(known) if known else None


def _largest(values: Iterable[Any]) -> Any:
    return max(_known(values), default=None)


def _rate(numerator: float, denominator: float) -> float | None:
    return 100 * numerator / denominator if denominator else None


def _counts(total_name: str, events: Sequence[Event]) -> Row:
    succeeded = _having("success", events)
    return {
        total_name: len(events),
        "success_count": succeeded,
        "error_count": _having("error", events),
        "success_rate_pct": _rate(succeeded, len(events)),
    }


def _publish_health(events: Iterable[Event]) -> list[Row]:
    rows = []
    keys = ("scope.show", "scope.sequence")
    for key, group in _grouped(
        events, lambda e: (_day(e), *(text(e, name) for name in keys), event_type_of(e))
    ).items():
        durations = _known(integer(event, ALIASES["duration_ms"]) for event in group)
        rows.append(
            {
                **dict(zip(("event_date", "show", "sequence", "event_type"), key, strict=True)),
                **_counts("total_publishes", group),
                "avg_duration_ms": _mean(durations),
                "p50_duration_ms": _as_float(quantile(durations, 0.5)),
                "p95_duration_ms": _as_float(quantile(durations, 0.95)),
                "total_output_bytes": _total(integer(event, OUTPUT_SIZE) for event in group),
            }
        )
    return rows


def _as_float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _tool_reliability(events: Iterable[Event]) -> list[Row]:
    rows = []
    for key, group in _grouped(events, lambda e: (_day(e), event_type_of(e))).items():
        durations = _known(integer(event, ALIASES["duration_ms"]) for event in group)
        rows.append(
            {
                **dict(zip(("event_date", "event_type"), key, strict=True)),
                **_counts("total_invocations", group),
                "avg_duration_ms": _mean(durations),
                "p95_duration_ms": _as_float(quantile(durations, 0.95)),
                "active_users": len({user_of(event) for event in group}),
            }
        )
    return rows


def _render_health(events: Iterable[Event]) -> list[Row]:
    rows = []
    for key, group in _grouped(events, lambda e: (_day(e), text(e, "scope.show"), text(e, "scope.sequence"))).items():
        frames = [integer(event, "payload.total_frames payload.frame_count") for event in group]
        failed = [integer(event, "payload.failed_frames") for event in group]
        times = [number(event, "payload.avg_render_time_s metrics.avg_render_time_s") for event in group]
        weighted = [(n, s) for n, s in zip(frames, times, strict=True) if n is not None and s is not None]
        weight = sum(n for n, _ in weighted)
        slow = _known(number(event, "payload.frame_time_p90_ms metrics.frame_time_p90_ms") for event in group)
        waits = _known(integer(event, "payload.queue_wait_ms metrics.queue_wait_ms") for event in group)
        rendered = sum(_known(frames))
        rows.append(
            {
                **dict(zip(("event_date", "show", "sequence"), key, strict=True)),
                **_counts("total_jobs", group),
                "total_frames": _total(frames),
                "total_failed_frames": _total(failed),
                "frame_success_rate_pct": _rate(rendered - sum(_known(failed)), rendered) if _known(failed) else None,
                "avg_render_time_s": math.fsum(n * s for n, s in weighted) / weight if weight else None,
                "p90_frame_time_s": _scaled(quantile(slow, 0.9)),
                "total_cpu_hours": _total(number(e, "payload.total_cpu_hours metrics.total_cpu_hours") for e in group),
                "peak_memory_gb": _largest(number(event, ALIASES["memory_peak_gb"]) for event in group),
                "avg_queue_wait_s": _scaled(_mean(waits)),
                "total_retries": _total(integer(event, "payload.retry_count_total") for event in group),
            }
        )
    return rows


def _scaled(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _farm_pressure(events: Iterable[Event]) -> list[Row]:
    rows = []
    for (day,), group in _grouped(events, lambda e: (_day(e),)).items():
        measured = [event for event in group if event["status"] in ("success", "info")]

        def counter(name: str, of: Sequence[Event] = measured) -> list[int | None]:
            return [integer(event, ALIASES.get(name, f"payload.{name}")) for event in of]

        slots = zip(counter("busy_slots"), counter("total_slots"), strict=True)
        pairs = [(busy, total) for busy, total in slots if busy is not None and total is not None]
        rows.append(
            {
                "event_date": day,
                "snapshot_count": len(group),
                "error_snapshot_count": _having("error", group),
                "avg_active_jobs": _mean(counter("running_jobs")),
                "peak_active_jobs": _largest(counter("running_jobs")),
                "avg_waiting_jobs": _mean(counter("waiting_jobs")),
                "peak_waiting_jobs": _largest(counter("waiting_jobs")),
                "avg_active_blades": _mean(counter("active_blades")),
                "peak_active_blades": _largest(counter("active_blades")),
                "total_blades": _largest(counter("total_blades")),
                "avg_slot_utilisation_pct": _rate(sum(b for b, _ in pairs), sum(t for _, t in pairs)),
                "peak_slot_utilisation_pct": _largest(_rate(busy, total) for busy, total in pairs),
                "peak_errored_jobs": _largest(counter("errored_jobs")),
            }
        )
    return rows


def _storage_growth(events: Iterable[Event]) -> list[Row]:
    names = ("payload.bucket payload.category", "payload.scope_type", "payload.scope_code", ALIASES["path"])

    def key(event: Event) -> tuple[Any, ...]:
        day = _day(event)
        return (day - timedelta(days=day.weekday()), *(text(event, name) for name in names))

    scans = [event for event in events if event["status"] in ("success", "info")]
    groups = _grouped(scans, key)
    latest = {
        group_key: max(group, key=lambda e: (occurred_at(e), str(e["event_id"]))) for group_key, group in groups.items()
    }
    rows = []
    for (week, *bucket), group in groups.items():
        size = integer(latest[week, *bucket], ALIASES["size_bytes"])
        before = latest.get((week - timedelta(days=7), *bucket))
        size_before = None if before is None else integer(before, ALIASES["size_bytes"])
        rows.append(
            {
                "week_start": week,
                **dict(zip(("bucket", "scope_type", "scope_code", "root_path"), bucket, strict=True)),
                "scan_count": len(group),
                "latest_size_bytes": size,
                "latest_file_count": integer(latest[week, *bucket], ALIASES["file_count"]),
                "latest_dir_count": integer(latest[week, *bucket], ALIASES["dir_count"]),
                "growth_bytes": None if size is None or size_before is None else size - size_before,
            }
        )
    return rows


def _activity(events: Iterable[Event]) -> list[Row]:
    rows = []
    for (day, known), group in _grouped(
        events, lambda e: (_day(e), event_type_of(e) if event_type_of(e) in REGISTRY else "unknown")
    ).items():
        last = max(occurred_at(event) for event in group).replace(tzinfo=None)
        counts = {"events": len(group), "errors": _having("error", group)}
        rows.append({"event_date": day, "event_type": known, **counts, "last_event_at": last})
    return rows


def _data_quality(
    events: Iterable[Event],
    quarantined: Mapping[date, int],
    duplicates: Mapping[date, int],
    breaks_contract: Callable[[Event], bool],
) -> list[Row]:
    groups = _grouped(events, lambda e: (_day(e),))
    days = {day for (day,) in groups}
    days |= {day for counts in (quarantined, duplicates) for day, count in counts.items() if count > 0}
    rows = []
    for day in days:
        group = groups.get((day,), [])
        rows.append(
            {
                "event_date": day,
                "total_events": len(group),
                "error_events": _having("error", group),
                "error_rate_pct": _rate(_having("error", group), len(group)),
                "active_users": len({user_of(event) for event in group}),
                "active_hosts": len({host_of(event) for event in group}),
                "active_event_types": len({event_type_of(event) for event in group}),
                "unknown_type_events": sum(event_type_of(event) not in REGISTRY for event in group),
                "contract_violations": sum(breaks_contract(event) for event in group),
                "quarantined_lines": quarantined.get(day, 0),
                "duplicate_events": duplicates.get(day, 0),
            }
        )
    return rows
