"""What happens at a simulated studio: plausible events of all 18 types, in no dialect yet.

A `Studio` is asked for one event at a time and remembers a little (recent render jobs, the buckets of a
running storage scan), so that its events fit together: render statistics name jobs that were spooled, a
scan's summary adds up its buckets. Durations are lognormal, error rates differ by type and by show, the farm
follows a day curve, storage grows with the date. All randomness comes from the `random.Random` it was given;
the same calls give the same events. Times are POSIX seconds.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Any, Literal

from piper.demo.world import (
    ENGINE_URL,
    FAILURES,
    FARM,
    GROWTH_EPOCH,
    JOBS_REMEMBERED,
    KINDS,
    SCAN,
    SHOWS,
    SLOTS_PER_BLADE,
    STORAGE_TARGETS,
    TOTAL_BLADES,
    Failure,
    Show,
    activity,
    farm_load,
    utc_text,
)

Fields = dict[str, Any]
Role = Literal["artist", "farm", "storage"]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened; who wrote it, when, and in which dialect is the writer's business."""

    event_type: str
    status: str
    payload: Fields
    metrics: Fields
    scope: dict[str, str] | None = None
    dcc: str | None = None
    failure: Failure | None = None

    @property
    def role(self) -> Role:
        """Which kind of writer emits this type."""
        if self.event_type.startswith("storage."):
            return "storage"
        return "farm" if self.event_type in ("tractor.farm.snapshot", "render.stats.summary") else "artist"


class Studio:
    """Endless supply of events.

    The first ones show each type once, so that a short demo fills every dashboard.
    """

    def __init__(self, rng: Random, *, error_ratio: float) -> None:
        self._rng = rng
        self._error_ratio = error_ratio
        self._types = list(KINDS)
        self._by_day = list(accumulate(kind.weight for kind in KINDS.values()))
        self._by_night = list(accumulate(kind.weight * (0.2 if kind.dccs else 1.0) for kind in KINDS.values()))
        self._show_weights = list(accumulate(show.weight for show in SHOWS))
        # The scan comes last: its buckets follow it, and they are the eighteenth type.
        others = [name for name in KINDS if name != SCAN]
        self._opening = deque([*rng.sample(others, len(others)), SCAN])
        self._buckets: deque[Event] = deque()
        self._jobs: deque[tuple[Fields, Show, dict[str, str]]] = deque(maxlen=JOBS_REMEMBERED)
        self._makers: dict[str, Callable[[float, Show], Event]] = {
            "dcc.launch": self._launch,
            "file.open": lambda _at, show: self._file("file.open", show),
            "file.create": lambda _at, show: self._file("file.create", show),
            "shot.setup": self._setup,
            "build.houdini.component": self._build,
            "texture.export.substance": self._texture_export,
            "texture.convert.tex": self._texture_convert,
            "playblast.create": self._playblast,
            "tractor.job.spool": self._job,
            "render.stats.summary": self._render_stats,
            FARM: self._snapshot,
            SCAN: self._scan,
        }

    def next_event(self, at: float) -> Event:
        """The next thing that happens, at this time."""
        if self._buckets:
            return self._buckets.popleft()
        rng = self._rng
        if self._opening:
            name = self._opening.popleft()
        else:
            weights = self._by_day if activity(at) > 0.2 else self._by_night
            name = rng.choices(self._types, cum_weights=weights)[0]
        show = rng.choices(SHOWS, cum_weights=self._show_weights)[0]
        maker = self._makers.get(name)
        return maker(at, show) if maker else self._publish(name, show)

    # ---- shared parts

    def _failure(self, name: str, show: Show, failures: Sequence[Failure] = ()) -> Failure | None:
        rng = self._rng
        if rng.random() >= min(0.95, self._error_ratio * KINDS[name].trouble * show.trouble):
            return None
        return rng.choice(failures or FAILURES[name])

    def _duration_ms(self, name: str) -> int:
        kind = KINDS[name]
        return max(1, int(kind.median_ms * self._rng.lognormvariate(0.0, kind.sigma)))

    def _bytes(self, median: float) -> int:
        return int(median * self._rng.lognormvariate(0.0, 0.9))

    def _shot(self, show: Show, department: str) -> dict[str, str]:
        rng = self._rng
        sequence = rng.choice(show.sequences)
        shot = f"{sequence}_{10 * rng.randint(1, show.shots_per_sequence):03d}"
        return {"show": show.name, "sequence": sequence, "shot": shot, "department": department}

    def _asset(self, show: Show, department: str) -> dict[str, str]:
        return {"show": show.name, "asset": self._rng.choice(show.assets), "department": department}

    def _entity(self, show: Show) -> tuple[dict[str, str], str, str, str]:
        """Scope, entity type, entity code and folder of a shot or an asset that someone works on."""
        if self._rng.random() < 0.7:
            scope = self._shot(show, self._rng.choice(("anim", "layout", "fx", "lighting", "comp")))
            return scope, "shot", scope["shot"], f"/groups/{show.name}/05_production/shot/{scope['shot']}"
        scope = self._asset(show, self._rng.choice(("model", "rig", "surfacing")))
        return scope, "asset", scope["asset"], f"/groups/{show.name}/05_production/asset/{scope['asset']}"

    def _event(
        self, name: str, payload: Fields, metrics: Fields, scope: dict[str, str], failure: Failure | None
    ) -> Event:
        """An event of an artist, in one of the DCCs that emit its type."""
        dcc = self._rng.choice(KINDS[name].dccs)
        return Event(name, "error" if failure else "success", payload, metrics, scope, dcc, failure)

    # ---- artists' events

    def _launch(self, _at: float, show: Show) -> Event:
        rng = self._rng
        failure = self._failure("dcc.launch", show)
        dcc = rng.choice(KINDS["dcc.launch"].dccs)
        payload = {
            "command_basename": dcc,
            "arg_count": rng.randint(1, 6),
            "env_keys_set": rng.randint(5, 40),
        }
        status = "error" if failure else rng.choice(("info", "info", "info", "success"))
        metrics = {"launch_duration_ms": self._duration_ms("dcc.launch")}
        return Event("dcc.launch", status, payload, metrics, self._entity(show)[0], dcc, failure)

    def _file(self, name: str, show: Show) -> Event:
        scope, entity_type, code, folder = self._entity(show)
        version = self._rng.randint(1, 60)
        path = f"{folder}/work/{code}_v{version:03d}.ma"
        payload = {"entity_type": entity_type, "entity_code": code, "path": path, "versioned": version > 1}
        failure = self._failure(name, show)
        return self._event(name, payload, {"duration_ms": self._duration_ms(name)}, scope, failure)

    def _setup(self, _at: float, show: Show) -> Event:
        department = self._rng.choice(("anim", "fx", "layout", "lighting"))
        scope = self._shot(show, department)
        folder = f"/groups/{show.name}/05_production/shot/{scope['shot']}/{department}"
        payload = {
            "entity_type": "shot",
            "entity_code": scope["shot"],
            "path": folder,
            "department": department,
        }
        metrics = {"duration_ms": self._duration_ms("shot.setup")}
        return self._event("shot.setup", payload, metrics, scope, self._failure("shot.setup", show))

    def _publish(self, name: str, show: Show) -> Event:
        kind = name.split(".")[1]
        of_asset = kind in ("asset", "previs_asset")
        entity = "asset" if of_asset else "shot"
        scope = self._asset(show, "model") if of_asset else self._shot(show, "anim")
        code = scope[entity]
        version = self._rng.randint(1, 80)
        path = f"/groups/{show.name}/05_production/{entity}/{code}/publish/v{version:03d}/{kind}.usd"
        failure = self._failure(name, show, FAILURES["publish"])
        metrics: Fields = {"duration_ms": self._duration_ms(name)}
        if failure is None:
            metrics["output_size_bytes"] = self._bytes(2e5 if kind == "camera" else 8e7)
        return self._event(name, {"publish_type": kind, "publish_path": path}, metrics, scope, failure)

    def _build(self, _at: float, show: Show) -> Event:
        rng = self._rng
        failure = self._failure("build.houdini.component", show)
        payload = {
            "mode": rng.choice(("build", "build", "update")),
            "variant": rng.choice(("main", "damaged", "wet")),
            "warnings_count": rng.randint(0, 3),
            "errors_count": rng.randint(1, 3) if failure else 0,
        }
        metrics: Fields = {"duration_ms": self._duration_ms("build.houdini.component")}
        if failure is None:
            metrics["output_size_bytes"] = self._bytes(1.5e8)
        return self._event("build.houdini.component", payload, metrics, self._asset(show, "model"), failure)

    def _texture_export(self, _at: float, show: Show) -> Event:
        rng = self._rng
        scope = self._asset(show, "surfacing")
        sets = rng.randint(1, 9)
        payload = {
            "asset": scope["asset"],
            "geo_variant": "main",
            "material_variant": rng.choice(("default", "dirty", "gold")),
            "renderman_variant": "default",
            "texture_set_count": sets,
            "udim_set_count": sets * rng.randint(1, 4),
            "duration_ms": self._duration_ms("texture.export.substance"),
        }
        failure = self._failure("texture.export.substance", show)
        metrics: Fields = {} if failure else {"output_size_bytes": self._bytes(9e8)}
        return self._event("texture.export.substance", payload, metrics, scope, failure)

    def _texture_convert(self, _at: float, show: Show) -> Event:
        sources = self._rng.randint(2, 64)
        failure = self._failure("texture.convert.tex", show)
        done = self._rng.randrange(sources) if failure else sources
        payload = {
            "source_count": sources,
            "converted_tex_count": done,
            "converted_preview_count": done,
            "batch_size": 8,
        }
        metrics: Fields = {"duration_ms": self._duration_ms("texture.convert.tex")}
        if done:
            metrics["output_size_bytes"] = self._bytes(2.5e7 * done)
        return self._event("texture.convert.tex", payload, metrics, self._asset(show, "surfacing"), failure)

    def _playblast(self, _at: float, show: Show) -> Event:
        rng = self._rng
        failure = self._failure("playblast.create", show)
        payload = {
            "preset": rng.choice(("web", "web", "hq", "review")),
            "output_count": 0 if failure else rng.randint(1, 2),
            "frame_start": 1001,
            "frame_end": 1001 + rng.randint(20, 220),
            "fps": 24,
        }
        metrics: Fields = {"duration_ms": self._duration_ms("playblast.create")}
        if failure is None:
            metrics["output_size_bytes"] = self._bytes(3e7)
        return self._event("playblast.create", payload, metrics, self._shot(show, "anim"), failure)

    def _job(self, _at: float, show: Show) -> Event:
        failure = self._failure("tractor.job.spool", show)
        payload, scope = self._spooled(show)
        if failure is None:
            self._jobs.append((payload, show, scope))
        metrics = {"duration_ms": self._duration_ms("tractor.job.spool")}
        return self._event("tractor.job.spool", payload, metrics, scope, failure)

    def _spooled(self, show: Show) -> tuple[Fields, dict[str, str]]:
        """Payload and scope of a new render job."""
        rng = self._rng
        scope = self._shot(show, rng.choice(("lighting", "lighting", "fx")))
        payload: Fields = {
            "job_id": str(rng.randint(10_000, 9_999_999)),
            "job_title": f"{scope['shot']} {scope['department']} beauty",
            "engine_url": ENGINE_URL,
            "service": "PixarRender",
            "priority": rng.choice((50, 100, 100, 200)),
            "renderer": rng.choice(("prman", "prman", "prman", "karma")),
            "frame_start": 1001,
            "frame_end": 1001 + rng.randint(8, 240),
            "frame_step": 1,
            "tile_count": rng.choice((1, 1, 1, 4)),
            "blade_count": rng.randint(4, 48),
        }
        return payload, scope

    # ---- monitors' events

    def _render_stats(self, at: float, show: Show) -> Event:
        rng = self._rng
        if self._jobs:
            job, show, scope = rng.choice(self._jobs)
        else:
            # Spooled before the simulation began.
            job, scope = self._spooled(show)
        failure = self._failure("render.stats.summary", show)
        frames = job["frame_end"] - job["frame_start"] + 1
        failed = sum(rng.random() < 0.02 * show.trouble for _ in range(frames))
        p50_ms = int(420_000 * rng.lognormvariate(0.0, 0.6))
        average_s = round(p50_ms / 1000 * rng.uniform(1.02, 1.3), 1)
        payload = {
            "job_id": job["job_id"],
            "renderer": job["renderer"],
            "service": "PixarRender",
            "total_frames": frames,
            "failed_frames": failed,
            "frame_time_p50_ms": p50_ms,
            "frame_time_p90_ms": int(p50_ms * rng.uniform(1.2, 2.6)),
            "memory_peak_gb": round(min(120.0, 14 * rng.lognormvariate(0.0, 0.5)), 2),
            "retry_count_total": failed + rng.randint(0, 4),
            "queue_wait_ms": int(600_000 * farm_load(at) * rng.lognormvariate(0.0, 0.9)),
        }
        metrics = {
            "avg_render_time_s": average_s,
            "total_cpu_hours": round(frames * average_s * SLOTS_PER_BLADE / 3_600, 2),
            "duration_ms": self._duration_ms("render.stats.summary"),
        }
        status = "error" if failure else "success"
        return Event("render.stats.summary", status, payload, metrics, scope, None, failure)

    def _snapshot(self, at: float, show: Show) -> Event:
        rng = self._rng
        failure = self._failure(FARM, show)
        load = min(1.0, max(0.0, farm_load(at) + rng.gauss(0.0, 0.03)))
        # An error snapshot has nothing to count: its counters are placeholders.
        up = 0 if failure else 1
        payload = {
            "engine_url": ENGINE_URL,
            "running_jobs": up * int(90 * load),
            "waiting_jobs": up * int(max(0.0, load - 0.5) * 160 + rng.randint(0, 5)),
            "errored_jobs": up * rng.choice((0, 0, 0, 1, 2, 5)),
            "busy_slots": up * int(TOTAL_BLADES * SLOTS_PER_BLADE * load),
            "total_slots": up * TOTAL_BLADES * SLOTS_PER_BLADE,
            "active_blades": up * min(TOTAL_BLADES, int(TOTAL_BLADES * load * 1.15)),
            "total_blades": up * TOTAL_BLADES,
        }
        metrics = {"duration_ms": self._duration_ms(FARM)}
        return Event(FARM, "error" if failure else "info", payload, metrics, None, None, failure)

    def _scan(self, at: float, show: Show) -> Event:
        """A scan's summary; its buckets are what `next_event` gives next."""
        rng = self._rng
        failure = self._failure(SCAN, show)
        duration_ms = self._duration_ms(SCAN)
        window = {
            "scan_id": f"scan-{rng.getrandbits(48):012x}",
            "scan_window_start_utc": utc_text(at - duration_ms / 1000),
            "scan_window_end_utc": utc_text(at),
            "scan_duration_ms": duration_ms,
        }
        buckets = [] if failure else [bucket_event(target, window, at) for target in STORAGE_TARGETS]
        self._buckets.extend(buckets)
        payload = window | {
            "roots_scanned_count": 0 if failure else len(SHOWS),
            "buckets_emitted_count": len(buckets),
        }
        metrics = {
            f"{name}_total": sum(bucket.metrics[name] for bucket in buckets)
            for name in ("size_bytes", "file_count", "dir_count")
        }
        return Event(SCAN, "error" if failure else "success", payload, metrics, None, None, failure)


def bucket_event(target: tuple[str, str, str, str], window: Fields, at: float) -> Event:
    """One bucket of a scan. Its size depends on path and time alone: it grows by its own amount every day."""
    category, scope_type, scope_code, path = target
    # crc32 and not hash(): a string's hash differs from process to process.
    draw = zlib.crc32(f"{category}:{path}".encode())
    days = max(0.0, (at - GROWTH_EPOCH) / 86_400)
    size_bytes = int((200 + draw % 1_800) * 1e9 + (0.5 + draw % 97 / 20) * 1e9 * days)
    file_count = size_bytes // (2_000_000 + draw % 30_000_000)
    payload = window | {
        "bucket_id": f"b{draw:08x}",
        "category": category,
        "path": path,
        "scope_type": scope_type,
        "scope_code": scope_code,
    }
    metrics = {"size_bytes": size_bytes, "file_count": file_count, "dir_count": file_count // 12 + 1}
    return Event("storage.scan.bucket", "info", payload, metrics)
