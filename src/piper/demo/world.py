"""The studio that the demo simulates: its shows, its types of event, how they fail, its curves.

Constants and pure functions only; `events` draws from them. Times are POSIX seconds, days and hours are UTC.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import cos, pi


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an event has status `error`: a code of the type's registry entry."""

    code: str
    exception_type: str
    message: str


@dataclass(frozen=True, slots=True)
class Show:
    """`weight`: share of the work; `trouble`: factor on every error rate."""

    name: str
    weight: float
    trouble: float
    sequences: tuple[str, ...]
    shots_per_sequence: int
    assets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """How often a type happens, how long it takes (median, sigma of a lognormal) and how often it fails."""

    weight: float
    median_ms: float
    sigma: float
    trouble: float
    dccs: tuple[str, ...] = ()


SHOWS = (
    Show(
        "sandwich",
        5.0,
        1.0,
        ("A", "B", "C", "D"),
        24,
        ("bread", "tomato", "lettuce", "chef", "kitchen", "knife"),
    ),
    Show("picnic", 3.0, 1.9, ("P", "Q", "R"), 16, ("basket", "blanket", "ant", "meadow", "kite")),
    Show("lunchbox", 2.0, 0.5, ("X", "Y"), 12, ("robot", "box", "thermos", "school")),
)
SCAN = "storage.scan.summary"
FARM = "tractor.farm.snapshot"
KINDS = {
    "dcc.launch": Kind(8, 14_000, 0.5, 0.8, ("maya", "maya", "houdini", "nuke", "substance_painter")),
    "file.open": Kind(18, 6_000, 0.8, 0.5, ("maya", "maya", "houdini", "nuke")),
    "file.create": Kind(6, 2_500, 0.6, 0.4, ("maya", "houdini", "nuke")),
    "shot.setup": Kind(4, 22_000, 0.5, 0.9, ("maya", "houdini")),
    "publish.asset.usd": Kind(4, 48_000, 0.7, 1.4, ("maya", "houdini")),
    "publish.anim.usd": Kind(6, 75_000, 0.6, 1.6, ("maya",)),
    "publish.camera.usd": Kind(2, 9_000, 0.5, 0.5, ("maya", "houdini")),
    "publish.customanim.usd": Kind(2, 60_000, 0.7, 2.2, ("maya",)),
    "publish.previs_asset.usd": Kind(1.5, 20_000, 0.6, 0.8, ("maya",)),
    "build.houdini.component": Kind(4, 65_000, 0.6, 1.8, ("houdini",)),
    "texture.export.substance": Kind(4, 90_000, 0.6, 1.0, ("substance_painter",)),
    "texture.convert.tex": Kind(5, 130_000, 0.8, 0.9, ("maya", "houdini")),
    "playblast.create": Kind(9, 35_000, 0.7, 1.1, ("maya",)),
    "tractor.job.spool": Kind(8, 3_500, 0.6, 0.7, ("houdini", "maya", "nuke")),
    "render.stats.summary": Kind(7, 1_200, 0.4, 0.6),
    FARM: Kind(8, 700, 0.5, 0.4),
    SCAN: Kind(0.5, 900_000, 0.4, 1.0),
}
FAILURES: dict[str, tuple[Failure, ...]] = {
    "dcc.launch": (
        Failure("DCC_LAUNCH_FAILED", "FileNotFoundError", "licence server did not answer: “rlm-01” timed out"),
    ),
    "publish": (
        Failure("PUBLISH_PRECHECK_FAILED", "ValidationError", "non-manifold geometry in 'geo/mesh_Öse' (3 faces)"),
        Failure("USD_EXPORT_FAILED", "RuntimeError", 'mayaUSDExport failed: "no default prim" at /root'),
        Failure("PUBLISH_COPY_FAILED", "OSError", "[Errno 28] No space left on device"),
        Failure("WINDOWS_MOVE_FAILED", "PermissionError", r"[WinError 32] P:\groups\publish\v012.usd is in use"),
    ),
    "build.houdini.component": (
        Failure(
            "HOUDINI_BUILD_FAILED",
            "OperationFailed",
            "cook error on /obj/component_output: naïve variant merge",
        ),
        Failure(
            "HOUDINI_BUILD_RESULT_PARSE_FAILED",
            "JSONDecodeError",
            "Expecting value: line 1 column 1 (char 0)",
        ),
    ),
    "texture.export.substance": (
        Failure("TEXTURE_EXPORT_FAILED", "RuntimeError", "texture set “métal” has no UDIM 1001"),
    ),
    "texture.convert.tex": (
        Failure("TEXTURE_CONVERSION_FAILED", "CalledProcessError", "txmake returned 255: 读取失败"),
    ),
    "file.open": (Failure("FILE_OPEN_FAILED", "RuntimeError", "Unknown file type or plug-in 'xgenToolkit' missing"),),
    "file.create": (Failure("FILE_CREATE_FAILED", "PermissionError", "[Errno 13] Permission denied"),),
    "shot.setup": (Failure("SHOT_SETUP_FAILED", "KeyError", "'cut_in'"),),
    "playblast.create": (Failure("PLAYBLAST_FAILED", "RuntimeError", "ffmpeg exited with 1: Invalid data\tfound\n"),),
    "tractor.job.spool": (Failure("TRACTOR_SPOOL_FAILED", "ConnectionError", "engine refused the job: HTTP 503"),),
    FARM: (Failure("TRACTOR_SNAPSHOT_FAILED", "TimeoutError", "no answer from the engine within 10 s"),),
    "render.stats.summary": (Failure("RENDER_STATS_HARVEST_FAILED", "ValueError", "task log of a frame is empty"),),
    SCAN: (Failure("STORAGE_SCAN_FAILED", "OSError", "[Errno 116] Stale file handle: '/groups'"),),
}
ENGINE_URL = "http://tractor-engine"
TOTAL_BLADES = 96
SLOTS_PER_BLADE = 8
JOBS_REMEMBERED = 500
GROWTH_EPOCH = 1_735_689_600
"""2025-01-01: storage sizes are a function of the days since then, so that two runs continue one curve."""
_HOUR_ACTIVITY = (3, 2, 2, 2, 2, 3, 6, 15, 45, 85, 100, 100, 70, 80, 100, 100, 95, 80, 50, 30, 18, 12, 8, 5)
_WEEKEND = 0.15


def activity(at: float) -> float:
    """How busy people are at this time, above 0 and up to 1: office hours in UTC, quiet weekends."""
    moment = time.gmtime(at)
    return _HOUR_ACTIVITY[moment.tm_hour] / 100 * (_WEEKEND if moment.tm_wday >= 5 else 1.0)


def farm_load(at: float) -> float:
    """Mean share of the farm's slots in use, 0.15 to 0.95: highest in the evening, lowest before noon."""
    return 0.55 + 0.4 * cos((at % 86_400 / 3_600 - 22) / 24 * 2 * pi)


def utc_text(at: float) -> str:
    """One-second precision, as every writer of the pipeline sends it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def _storage_targets() -> list[tuple[str, str, str, str]]:
    """Category, scope type, scope code and path of every bucket that a scan reports."""
    targets = []
    for show in SHOWS:
        top = f"/groups/{show.name}"
        targets += [
            ("render", "show", show.name, f"{top}/06_renders"),
            ("usd", "show", show.name, f"{top}/05_production"),
        ]
        targets += [("texture", "asset", asset, f"{top}/05_production/asset/{asset}/tex") for asset in show.assets[:2]]
        targets += [("cache", "sequence", code, f"{top}/05_production/cache/{code}") for code in show.sequences[:2]]
    return targets


STORAGE_TARGETS = _storage_targets()
