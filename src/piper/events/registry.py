"""The event registry: which types exist, to which group and dataset they belong, and what a good event of each carries.

An event that breaks its registry entry is accepted and counted as a contract violation; a type that is not here is
accepted, kept in silver/events only, and reported. Labels of metrics come from GROUPS, never from a spool.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUPS = ("publish", "tool", "farm", "render", "storage", "other")

PUBLISH_KINDS = ("asset", "anim", "camera", "customanim", "previs_asset")
"""`payload.kind` of a flat `publish.usd`, and the middle word of the nested `publish.<kind>.usd`."""

STATUSES = ("success", "error", "warning", "info")


@dataclass(frozen=True, slots=True)
class EventType:
    """One registered type: the statuses that it may have and the fields that it must carry."""

    name: str
    group: str
    dataset: str
    statuses: tuple[str, ...]
    payload_fields: tuple[str, ...]
    metrics_fields: tuple[str, ...] = ()


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_PUBLISH = [
    EventType(
        f"publish.{kind}.usd",
        "publish",
        "publish_usd",
        ("success", "error"),
        ("publish_type", "publish_path"),
        ("duration_ms",),
    )
    for kind in PUBLISH_KINDS
]


def _tool(name: str, payload: str, *, metrics: tuple[str, ...] = (), statuses: str = "success error") -> EventType:
    return EventType(name, "tool", "tool_events", _words(statuses), _words(payload), metrics)


_TOOLS = [
    _tool("dcc.launch", "command_basename arg_count env_keys_set", statuses="info success error"),
    _tool("build.houdini.component", "mode variant warnings_count errors_count", metrics=("duration_ms",)),
    _tool(
        "texture.export.substance",
        "asset geo_variant material_variant renderman_variant texture_set_count udim_set_count",
    ),
    _tool("texture.convert.tex", "source_count converted_tex_count converted_preview_count batch_size"),
    _tool("file.open", "entity_type entity_code path versioned"),
    _tool("file.create", "entity_type entity_code path versioned"),
    _tool("shot.setup", "entity_type entity_code path department"),
    _tool("playblast.create", "preset output_count frame_start frame_end fps", metrics=("duration_ms",)),
]

_FARM_RENDER_STORAGE = [
    EventType(
        "tractor.job.spool",
        "farm",
        "tractor_job_spool",
        ("success", "error"),
        _words("job_id job_title engine_url service priority renderer frame_start frame_end frame_step tile_count"),
    ),
    EventType(
        "tractor.farm.snapshot",
        "farm",
        "tractor_farm_snapshot",
        ("info", "error"),
        _words("engine_url waiting_jobs running_jobs busy_slots total_slots active_blades total_blades"),
    ),
    EventType(
        "render.stats.summary",
        "render",
        "render_stats_summary",
        ("success", "error"),
        _words(
            "job_id renderer service total_frames failed_frames frame_time_p50_ms frame_time_p90_ms memory_peak_gb"
            " retry_count_total queue_wait_ms"
        ),
    ),
    EventType(
        "storage.scan.summary",
        "storage",
        "storage_scan_summary",
        ("success", "error"),
        _words(
            "scan_id scan_window_start_utc scan_window_end_utc roots_scanned_count buckets_emitted_count"
            " scan_duration_ms"
        ),
        ("size_bytes_total", "file_count_total", "dir_count_total"),
    ),
    EventType(
        "storage.scan.bucket",
        "storage",
        "storage_scan_bucket",
        ("info",),
        _words("bucket_id category path scan_window_start_utc scan_window_end_utc scope_type scope_code"),
        ("size_bytes", "file_count", "dir_count"),
    ),
]

EVENT_TYPES: dict[str, EventType] = {entry.name: entry for entry in [*_PUBLISH, *_TOOLS, *_FARM_RENDER_STORAGE]}

ALTERNATIVES: dict[str, tuple[str, ...]] = {
    "payload.publish_path": ("payload.publish_path", "payload.output_path"),
    "payload.publish_type": ("payload.publish_type", "payload.kind"),
    "payload.running_jobs": ("payload.running_jobs", "payload.active_jobs"),
    "payload.total_frames": ("payload.total_frames", "payload.frame_count"),
    "payload.memory_peak_gb": ("payload.memory_peak_gb", "metrics.peak_memory_gb"),
    "payload.buckets_emitted_count": ("payload.buckets_emitted_count", "payload.bucket_count"),
    "payload.scan_duration_ms": ("payload.scan_duration_ms", "metrics.scan_duration_s", "payload.duration_ms"),
    "payload.category": ("payload.bucket", "payload.category"),
    "payload.path": ("payload.path", "payload.root_path"),
    "metrics.duration_ms": (
        "metrics.duration_ms",
        "metrics.launch_duration_ms",
        "payload.duration_ms",
        "event.duration_ms",
    ),
    "metrics.size_bytes_total": ("metrics.size_bytes_total", "metrics.total_size_bytes"),
    "metrics.file_count_total": ("metrics.file_count_total", "payload.total_file_count"),
    "metrics.size_bytes": ("metrics.size_bytes", "metrics.total_size_bytes", "payload.size_bytes"),
    "metrics.file_count": ("metrics.file_count", "payload.file_count"),
    "metrics.dir_count": ("metrics.dir_count", "payload.dir_count"),
}
"""Other names under which writers send a required field (the preference table of the contract)."""
