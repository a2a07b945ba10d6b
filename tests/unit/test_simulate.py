"""The simulated spool: what the summary promises is recounted here with nothing but `json`."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from piper.demo.events import Studio
from piper.demo.lines import _BREAKERS, _NESTED_BREAKERS, Origin, encode, record
from piper.demo.simulate import SimulateError, SimulateOptions, simulate
from piper.errors import DataRootError, PiperError

NOON = datetime(2026, 3, 11, 12, tzinfo=UTC).timestamp()
DAY = 86_400
PUBLISH = (
    {"success", "error"},
    "publish_type publish_path",
    "duration_ms",
    {
        "PUBLISH_PRECHECK_FAILED",
        "USD_EXPORT_FAILED",
        "PUBLISH_COPY_FAILED",
        "WINDOWS_MOVE_FAILED",
    },
)
STATS = (
    "job_id renderer service total_frames failed_frames frame_time_p50_ms frame_time_p90_ms memory_peak_gb"
    " retry_count_total queue_wait_ms"
)
SPOOL = "job_id job_title engine_url service priority renderer frame_start frame_end frame_step tile_count"
FILE = "entity_type entity_code path versioned"
WINDOW = "scan_window_start_utc scan_window_end_utc"
DONE = {"success", "error"}
REGISTRY: dict[str, tuple[set[str], str, str, set[str]]] = {
    "dcc.launch": ({"info", *DONE}, "command_basename arg_count env_keys_set", "", {"DCC_LAUNCH_FAILED"}),
    "publish.asset.usd": PUBLISH,
    "publish.anim.usd": PUBLISH,
    "publish.camera.usd": PUBLISH,
    "publish.customanim.usd": PUBLISH,
    "publish.previs_asset.usd": PUBLISH,
    "build.houdini.component": (
        DONE,
        "mode variant warnings_count errors_count",
        "duration_ms",
        {"HOUDINI_BUILD_FAILED", "HOUDINI_BUILD_RESULT_PARSE_FAILED"},
    ),
    "texture.export.substance": (
        DONE,
        "asset geo_variant material_variant renderman_variant texture_set_count udim_set_count",
        "",
        {"TEXTURE_EXPORT_FAILED"},
    ),
    "texture.convert.tex": (
        DONE,
        "source_count converted_tex_count converted_preview_count batch_size",
        "",
        {"TEXTURE_CONVERSION_FAILED"},
    ),
    "file.open": (DONE, FILE, "", {"FILE_OPEN_FAILED"}),
    "file.create": (DONE, FILE, "", {"FILE_CREATE_FAILED"}),
    "shot.setup": (DONE, "entity_type entity_code path department", "", {"SHOT_SETUP_FAILED"}),
    "playblast.create": (
        DONE,
        "preset output_count frame_start frame_end fps",
        "duration_ms",
        {"PLAYBLAST_FAILED"},
    ),
    "tractor.job.spool": (
        DONE,
        SPOOL,
        "",
        {"TRACTOR_SPOOL_FAILED"},
    ),
    "tractor.farm.snapshot": (
        {"info", "error"},
        "engine_url waiting_jobs running_jobs busy_slots total_slots active_blades total_blades",
        "",
        {"TRACTOR_SNAPSHOT_FAILED"},
    ),
    "render.stats.summary": (
        DONE,
        STATS,
        "",
        {"RENDER_STATS_HARVEST_FAILED"},
    ),
    "storage.scan.summary": (
        DONE,
        f"scan_id {WINDOW} roots_scanned_count buckets_emitted_count scan_duration_ms",
        "size_bytes_total file_count_total dir_count_total",
        {"STORAGE_SCAN_FAILED"},
    ),
    "storage.scan.bucket": (
        {"info"},
        f"bucket_id category path {WINDOW} scope_type scope_code",
        "size_bytes file_count dir_count",
        set(),
    ),
}


class FakeTime:
    """A clock that only waiting moves."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def clock(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def files_of(root: Path) -> list[Path]:
    return sorted(root.rglob("*.jsonl"))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in files_of(root)}


def lines_of(root: Path) -> list[bytes]:
    return [line for path in files_of(root) for line in path.read_bytes().split(b"\n")[:-1]]


def reject_constant(name: str) -> None:
    raise ValueError(name)


def accepted(line: bytes, now: float = NOON) -> dict[str, Any] | None:
    """The record, when CONTRACT lets the line in: a second reading of its rules."""
    try:
        fields = json.loads(line.decode(), parse_constant=reject_constant)
        if "schema_version" in fields:
            assert re.fullmatch(r"1\.\d+", fields["schema_version"])
            when = fields["occurred_at_utc"]
            names = [fields["pipeline"]["name"], fields["host"]["hostname"], fields["host"]["user"]]
            names.append(fields["session"]["session_id"])
        else:
            when = fields["occurred_at"]
            names = [fields[name] for name in ("action_id", "hostname", "host_user")]
        names += [fields["event_id"], fields["status"]]
        assert all(name and isinstance(name, str) for name in names)
        assert re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)+", fields["event_type"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", when)
        assert datetime.fromisoformat(when).timestamp() <= now + 3_600
    except (ValueError, KeyError, AssertionError):
        return None
    return dict(fields)


def plain(fields: dict[str, Any]) -> dict[str, Any]:
    """What both dialects say, under one name."""
    flat = "schema_version" not in fields
    event_type = fields["event_type"]
    if event_type == "publish.usd":
        event_type = f"publish.{fields['payload']['kind']}.usd"
    metrics = dict(fields.get("metrics", {}))
    if "duration_ms" in fields:
        metrics["duration_ms"] = fields["duration_ms"]
    return {
        "type": event_type,
        "status": fields["status"],
        "payload": fields["payload"],
        "metrics": metrics,
        "at": datetime.fromisoformat(fields["occurred_at" if flat else "occurred_at_utc"]).timestamp(),
        "code": fields.get("error_code") if flat else fields.get("error", {}).get("code"),
    }


def valid_events(root: Path) -> list[dict[str, Any]]:
    return [plain(fields) for fields in map(accepted, lines_of(root)) if fields is not None]


def history(root: Path, seed: int = 0, **changes: Any) -> Any:
    options = {"hosts": 3, "rate": 0, "events": 3_000, "days": 4, "seed": seed, **changes}
    return simulate(SimulateOptions(root=root, **options), clock=FakeTime().clock)


@pytest.mark.parametrize("dialect", ["nested", "flat", "mixed"])
@pytest.mark.parametrize("days", [0, 3])
def test_the_summary_is_what_a_recount_finds(tmp_path: Path, dialect: str, days: int) -> None:
    found = history(tmp_path, days=days, dialect=dialect, malformed_ratio=0.1, duplicate_ratio=0.1)

    ids = Counter(fields["event_id"] for fields in map(accepted, lines_of(tmp_path)) if fields is not None)
    assert found.valid == len(ids) == 3_000
    assert found.duplicates == ids.total() - len(ids) > 200
    assert found.malformed == len(lines_of(tmp_path)) - ids.total() > 200
    assert found.lines == found.valid + found.duplicates + found.malformed
    assert found.files == len(files_of(tmp_path))
    assert found.bytes == sum(path.stat().st_size for path in files_of(tmp_path))
    assert all(len(line) > 1 for line in lines_of(tmp_path))


@pytest.mark.parametrize("flat", [True, False])
def test_every_way_of_breaking_a_line_makes_one_that_is_rejected(flat: bool) -> None:
    rng = Random(1)
    studio = Studio(rng, error_ratio=0.1)
    origin = Origin("ws01", "maya", "Linux", "5.14", 7, "session", flat, 0)
    for breaker in _BREAKERS if flat else _NESTED_BREAKERS:
        for _ in range(50):
            fields = record(studio.next_event(NOON), NOON, origin, rng)
            assert accepted(encode(fields)) is not None
            line = breaker(fields, rng)
            assert line.endswith(b"\n")
            assert line.count(b"\n") == 1
            assert accepted(line) is None, (breaker, line)


@pytest.mark.parametrize("dialect", ["nested", "flat"])
def test_all_types_occur_and_keep_to_the_registry(tmp_path: Path, dialect: str) -> None:
    history(tmp_path, dialect=dialect, error_ratio=0.3)

    seen: dict[str, set[str]] = defaultdict(set)
    for event in valid_events(tmp_path):
        statuses, payload, metrics, codes = REGISTRY[event["type"]]
        seen[event["type"]].add(event["status"])
        assert event["status"] in statuses
        assert set(payload.split()) <= event["payload"].keys()
        assert set(metrics.split()) <= event["metrics"].keys()
        assert (event["code"] in codes) == (event["status"] == "error")
    assert seen == {name: statuses for name, (statuses, *_) in REGISTRY.items()}


def test_a_short_run_shows_every_type(tmp_path: Path) -> None:
    history(tmp_path, days=0, events=18, error_ratio=0)
    assert {event["type"] for event in valid_events(tmp_path)} == REGISTRY.keys()


def test_a_mixed_spool_has_one_dialect_per_process_and_both_in_all(tmp_path: Path) -> None:
    history(tmp_path, malformed_ratio=0, duplicate_ratio=0)

    dialects = [
        {"schema_version" in json.loads(line) for line in path.read_bytes().splitlines()}
        for path in files_of(tmp_path)
        if path.stat().st_size
    ]
    assert all(len(found) == 1 for found in dialects)
    assert set.union(*dialects) == {True, False}


def test_a_line_names_the_writer_in_whose_file_it_stands(tmp_path: Path) -> None:
    history(tmp_path, malformed_ratio=0, duplicate_ratio=0)

    for path in files_of(tmp_path):
        pid = int(path.stem.split("-")[2])
        for fields in map(json.loads, path.read_bytes().splitlines()):
            flat = "host" not in fields
            host = fields if flat else fields["host"]
            assert (host["hostname"], host["host_user" if flat else "user"]) == path.parts[-3:-1]
            assert flat or host["pid"] == pid


def test_flushes_cut_lines_and_the_next_ones_complete_them(tmp_path: Path) -> None:
    fake = FakeTime()
    snapshots: list[dict[str, bytes]] = []

    def wait(seconds: float) -> None:
        fake.wait(seconds)
        snapshots.append(contents(tmp_path))

    simulate(SimulateOptions(root=tmp_path, hosts=2, rate=100, events=1_000), clock=fake.clock, wait=wait)

    final = contents(tmp_path)
    assert all(data.endswith(b"\n") for data in final.values())
    assert all(final[name].startswith(data) for seen in snapshots for name, data in seen.items())
    cut = [data for seen in snapshots for data in seen.values() if data and not data.endswith(b"\n")]
    assert len({len(data) - data.rfind(b"\n") for data in cut}) > 5
    changed = [
        frozenset(name for name in after if after[name] != before.get(name, b""))
        for before, after in pairwise(snapshots)
    ]
    assert frozenset(final) not in changed, "the writers flush at moments of their own"


def test_a_full_file_is_followed_by_the_next_sequence_number(tmp_path: Path) -> None:
    history(tmp_path, hosts=1, users=1, days=0, rotate_bytes=50_000)

    files = files_of(tmp_path)
    assert [int(path.stem[-4:]) for path in files] == list(range(1, len(files) + 1))
    assert len({path.stem[:-5] for path in files}) == 1
    assert len(files) > 20
    for path in files:
        data = path.read_bytes()
        assert data.endswith(b"\n")
        assert len(data) <= 50_000
        assert re.fullmatch(r"telemetry-20260311T120000Z-\d+-\d{4}\.jsonl", path.name)


@pytest.mark.parametrize("days", [0, 3])
def test_the_same_seed_and_clock_give_the_same_bytes(tmp_path: Path, days: int) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        history(tmp_path / name, seed, days=days)

    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


@pytest.mark.parametrize("days", [0, 3])
def test_a_second_run_into_one_root_repeats_and_overwrites_nothing(tmp_path: Path, days: int) -> None:
    first = history(tmp_path, days=days)
    before = contents(tmp_path)
    second = history(tmp_path, days=days)

    after = contents(tmp_path)
    assert before.items() <= after.items()
    assert len(after) == first.files + second.files
    ids = {fields["event_id"] for fields in map(accepted, lines_of(tmp_path)) if fields is not None}
    assert len(ids) == first.valid + second.valid


def test_history_ascends_per_file_and_fills_its_window_mostly_in_office_hours(tmp_path: Path) -> None:
    found = history(tmp_path, days=7, events=5_000, hosts=6, malformed_ratio=0, duplicate_ratio=0)

    assert found.valid == 5_000
    by_hour: Counter[int] = Counter()
    for path in files_of(tmp_path):
        times = [plain(json.loads(line))["at"] for line in path.read_bytes().splitlines()]
        assert times == sorted(times)
        assert all(NOON - 7 * DAY - 5 <= at <= NOON + 5 for at in times)
        assert not times or abs(path.stat().st_mtime - times[-1]) <= 5
        by_hour.update(datetime.fromtimestamp(at, UTC).hour for at in times)
    assert sum(by_hour[hour] for hour in range(8, 18)) > 0.7 * 5_000
    # Seven days back from noon touch eight dates.
    assert len({path.name[10:18] for path in files_of(tmp_path)}) == 8


def test_the_pace_is_the_rate_and_a_clock_that_steps_back_does_not_stop_it(tmp_path: Path) -> None:
    fake = FakeTime()
    waited = 0.0

    def wait(seconds: float) -> None:
        nonlocal waited
        waited += seconds
        fake.now += seconds if waited < 5 or waited > 5.05 else -3_600

    found = simulate(SimulateOptions(root=tmp_path, rate=50, events=500), clock=fake.clock, wait=wait)

    assert found.valid == 500
    assert waited == pytest.approx(10, abs=0.3)


def test_a_stop_ends_the_run_with_every_buffered_byte_written(tmp_path: Path) -> None:
    fake, progress = FakeTime(), [0]
    options = SimulateOptions(root=tmp_path, rate=200)
    stop = lambda: progress[-1] >= 700  # noqa: E731
    found = simulate(options, stop=stop, on_progress=progress.append, clock=fake.clock, wait=fake.wait)

    assert found.valid == progress[-1] < 720
    assert len(lines_of(tmp_path)) == found.lines
    assert len(valid_events(tmp_path)) == found.valid + found.duplicates
    assert found.files == 10


def test_a_storage_scan_adds_up_its_buckets_and_grows_with_the_days(tmp_path: Path) -> None:
    history(tmp_path, days=20, events=6_000, malformed_ratio=0, duplicate_ratio=0, error_ratio=0)

    sizes: dict[str, Counter[float]] = defaultdict(Counter)
    totals: Counter[str] = Counter()
    summaries = {}
    for event in valid_events(tmp_path):
        if event["type"] == "storage.scan.bucket":
            sizes[event["payload"]["bucket_id"]][event["at"]] = event["metrics"]["size_bytes"]
            totals[event["payload"]["scan_id"]] += event["metrics"]["size_bytes"]
        elif event["type"] == "storage.scan.summary":
            summaries[event["payload"]["scan_id"]] = event["metrics"]["size_bytes_total"]
    assert len(summaries) > 10
    # The last scan may be cut off by the end of the run.
    assert sum(summaries[scan] == totals[scan] for scan in summaries) >= len(summaries) - 1
    for by_time in sizes.values():
        grown = [size for _, size in sorted(by_time.items())]
        assert grown == sorted(grown)
        assert grown[-1] > grown[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"hosts": 0},
        {"users": -1},
        {"rate": -1.0},
        {"rate": float("nan")},
        {"days": -1},
        {"events": -5},
        {"rate": 0.0},
        {"malformed_ratio": 1.5},
        {"rotate_bytes": 0},
        {"dialect": "xml"},
    ],
)
def test_an_option_that_makes_no_sense_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(SimulateError, match=next(iter(changes))) as caught:
        simulate(SimulateOptions(root=tmp_path / "spool", **changes))
    assert caught.value.hint
    assert caught.value.exit_code == 2
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize("taken", ["", "ws01.studio.example", "ws01.studio.example/amara"])
def test_a_root_that_cannot_be_written_is_reported_with_its_path(tmp_path: Path, taken: str) -> None:
    root = tmp_path / "spool"
    (root / taken).parent.mkdir(parents=True, exist_ok=True)
    (root / taken).write_bytes(b"in the way")
    with pytest.raises(DataRootError, match="spool") as caught:
        history(root)
    assert isinstance(caught.value, PiperError)
