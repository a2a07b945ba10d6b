"""piperd as a process: it starts on broken ground, says what is wrong, heals, and ends in order."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from tests.conftest import MakePiperd
from tests.support.event_lines import append_events, ids
from tests.support.piperd import LOCALHOST, WITHOUT_PRIVILEGES, Piperd
from tests.support.polling import wait_until
from tests.support.warehouse import catalog, event_count

from piper.demo.simulate import SimulateOptions, SimulateSummary, simulate
from piper.errors import ControlError
from piper.ops.control import ask
from piper.spool.identity import fingerprint

KNOWN_FILES = 100_000


def seen_ids(data_root: Path) -> list[str]:
    """All event ids that readers see, sorted."""
    with catalog(data_root) as con:
        return [row[0] for row in con.execute("SELECT event_id FROM silver_events ORDER BY event_id").fetchall()]


def wait_for_events(piperd: Piperd, number: int) -> None:
    """Until readers see so many events."""
    wait_until(lambda: event_count(piperd.data_root) >= number, what=piperd.log_text)


def not_ready_reasons(piperd: Piperd) -> dict[str, str]:
    """What /readyz complains about, by condition; empty while it says yes."""
    status, body = piperd.get("/readyz")
    return {one["condition"]: one["reason"] for one in _unready(body)} if status == 503 else {}


def _unready(body: str) -> list[dict[str, str]]:
    found = json.loads(body)
    return next(value for value in found.values() if isinstance(value, list))


def refusal(piperd: Piperd) -> str:
    """What piperd says when it does not start: exit code 1, a message, no traceback."""
    code = piperd.start().wait(60)
    assert code == 1, piperd.log_text()
    assert "Traceback" not in piperd.log_text()
    return piperd.log_text()


# ---- stopping --------------------------------------------------------------------------------------------------------


def test_what_was_appended_before_sigterm_is_published_when_it_has_ended(
    make_piperd: MakePiperd, raw_root: Path, data_root: Path
) -> None:
    append_events(raw_root, ids("first", 10))
    # Nothing but the drain can notice what is appended: no file events, no poll for an hour.
    piperd = make_piperd({"WATCH__MODE": "poll", "WATCH__POLL_SECONDS": 3600}).start_ready()
    wait_for_events(piperd, 10)

    append_events(raw_root, ids("grown", 10))
    append_events(raw_root, ids("new-file", 10), name="telemetry-2.jsonl")
    append_events(raw_root, ids("new-user", 10), user="bjorn")
    piperd.stop()

    assert seen_ids(data_root) == sorted(
        [*ids("first", 10), *ids("grown", 10), *ids("new-file", 10), *ids("new-user", 10)]
    )
    with catalog(data_root) as con:
        assert con.execute("SELECT sum(total_events)::BIGINT FROM gold_data_quality_daily").fetchone() == (40,)


SLOW = {"INGEST__BATCH_EVENTS_MAX": 1, "INGEST__BATCH_BYTES_MAX": 1024, "DUCKDB__THREADS": 1}
"""Batches of one turn of one file each: thousands of small files then take far longer than a drain."""


def large_backlog(raw_root: Path) -> SimulateSummary:
    """Thousands of files."""
    return simulate(
        SimulateOptions(raw_root, hosts=4, users=5, rate=0, events=40_000, days=3, seed=5, rotate_bytes=8_000)
    )


def test_sigterm_during_a_large_backlog_and_during_a_gold_rebuild_ends_in_order(
    make_piperd: MakePiperd, raw_root: Path, data_root: Path
) -> None:
    summary = large_backlog(raw_root)
    piperd = make_piperd().start_ready(**SLOW)
    wait_until(lambda: piperd.metric("piper_events_ingested_total") > 0)
    piperd.stop()
    assert 0 < event_count(data_root) < summary.valid, "the backlog must be larger than the drain's time"

    piperd.start_ready()
    wait_for_events(piperd, summary.valid)
    rebuild = _ask_in_background(piperd, "materialize")
    piperd.stop()
    rebuild.communicate(timeout=60)
    assert event_count(data_root) == summary.valid

    piperd.start_ready()
    wait_until(lambda: _gold_total(data_root) == summary.valid, what=piperd.log_text)
    piperd.stop()


def _gold_total(data_root: Path) -> int:
    with catalog(data_root) as con:
        row = con.execute("SELECT coalesce(sum(total_events), 0)::BIGINT FROM gold_data_quality_daily").fetchone()
    return int(row[0]) if row else 0


def _ask_in_background(piperd: Piperd, command: str) -> subprocess.Popen[bytes]:
    """A client of the control socket that has been accepted: the first progress was heard."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom piper.ops.control import ControlError, ask\n"
        "try:\n    ask(Path(sys.argv[1]), sys.argv[2], on_progress=lambda p: print(p, flush=True))\n"
        "except ControlError as error:\n    print(error)"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", script, str(piperd.data_root / "state" / "control.sock"), command],
        env=piperd._environment({}),
        stdout=subprocess.PIPE,
    )
    assert client.stdout is not None
    assert client.stdout.readline()
    return client


def test_a_second_signal_ends_it_at_once(make_piperd: MakePiperd, raw_root: Path, data_root: Path) -> None:
    summary = large_backlog(raw_root)
    piperd = make_piperd().start_ready(**SLOW)
    wait_until(lambda: piperd.metric("piper_events_ingested_total") > 0)
    piperd.signal(signal.SIGTERM)
    wait_until(lambda: '"stopping"' in piperd.log_text())
    piperd.signal(signal.SIGTERM)
    assert piperd.wait() == 128 + signal.SIGTERM
    assert '"stopped"' not in piperd.log_text(), "it ended before the second signal came"

    piperd.start_ready()
    wait_for_events(piperd, summary.valid)
    piperd.stop()
    assert event_count(data_root) == summary.valid == len(set(seen_ids(data_root)))


# ---- the spool -------------------------------------------------------------------------------------------------------


def test_without_a_spool_it_waits_for_one_and_says_so(make_piperd: MakePiperd, raw_root: Path, data_root: Path) -> None:
    piperd = make_piperd().start()
    wait_until(lambda: str(raw_root) in not_ready_reasons(piperd).get("spool", ""), what=piperd.log_text)
    assert piperd.get("/healthz")[0] == 200
    assert any(line["event"] == "spool_unreachable" for line in piperd.log_events())
    assert event_count(data_root) == 0, "readers get an empty warehouse meanwhile"

    append_events(raw_root, ids("late", 10))
    piperd.wait_ready()
    wait_for_events(piperd, 10)
    piperd.stop()


def test_an_empty_spool_is_ready(make_piperd: MakePiperd, raw_root: Path) -> None:
    raw_root.mkdir()
    make_piperd().start_ready().stop()


def test_a_spool_without_permission_is_read_once_it_is_granted(make_piperd: MakePiperd, raw_root: Path) -> None:
    append_events(raw_root, ids("secret", 10))
    raw_root.chmod(0)
    try:
        piperd = make_piperd(prefix=WITHOUT_PRIVILEGES).start()
        wait_until(lambda: "Permission denied" in not_ready_reasons(piperd).get("spool", ""), what=piperd.log_text)
        assert piperd.get("/healthz")[0] == 200
    finally:
        raw_root.chmod(0o755)
    piperd.wait_ready()
    wait_for_events(piperd, 10)
    piperd.stop()


def test_a_spool_that_goes_away_and_comes_back_loses_and_doubles_nothing(
    make_piperd: MakePiperd, raw_root: Path, data_root: Path
) -> None:
    away = raw_root.with_name("raw-away")
    append_events(raw_root, ids("before", 50))
    append_events(raw_root, ids("other", 50), user="bjorn")
    piperd = make_piperd().start_ready()
    wait_for_events(piperd, 100)

    raw_root.rename(away)
    wait_until(lambda: "spool" in not_ready_reasons(piperd), what=piperd.log_text)
    append_events(away, ids("meanwhile", 50))
    raw_root.mkdir()  # the bare mount point
    wait_until(lambda: "not mounted" in not_ready_reasons(piperd).get("spool", ""), what=piperd.log_text)
    piperd.stop()
    piperd.start()
    wait_until(lambda: "not mounted" in not_ready_reasons(piperd).get("spool", ""), what=piperd.log_text)
    raw_root.rmdir()
    away.rename(raw_root)
    piperd.wait_ready()
    append_events(raw_root, ids("after", 50), user="bjorn")
    wait_for_events(piperd, 200)
    piperd.stop()

    expected = [*ids("before", 50), *ids("other", 50), *ids("meanwhile", 50), *ids("after", 50)]
    assert seen_ids(data_root) == sorted(expected)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"WATCH__MODE": "poll"}, id="polling"),
        # No poll within the test's time, so that only events can tell.
        pytest.param({"WATCH__MODE": "events", "WATCH__POLL_SECONDS": 3600}, id="events"),
    ],
)
def test_new_files_new_folders_and_growth_are_seen(
    settings: dict[str, object], make_piperd: MakePiperd, raw_root: Path
) -> None:
    append_events(raw_root, ids("first", 1))
    piperd = make_piperd(settings).start_ready()
    wait_for_events(piperd, 1)
    if settings["WATCH__MODE"] == "events":
        _wait_until_events_arrive(piperd)
    known = event_count(piperd.data_root)
    append_events(raw_root, ids("growth", 1))
    wait_for_events(piperd, known + 1)
    append_events(raw_root, ids("file", 1), name="telemetry-2.jsonl")
    wait_for_events(piperd, known + 2)
    append_events(raw_root, ids("folder", 1), user="chloe")
    wait_for_events(piperd, known + 3)
    piperd.stop()


def _wait_until_events_arrive(piperd: Piperd) -> None:
    """The watch is set up beside the first scan; growth is written until one is noticed."""
    known, number = event_count(piperd.data_root), iter(range(1000))

    def noticed() -> bool:
        append_events(piperd.raw_root, [f"probe-{next(number)}"], user="probe")
        return event_count(piperd.data_root) > known

    wait_until(noticed, what=piperd.log_text, pause_seconds=0.3)
    written = next(number) + known
    wait_for_events(piperd, written)


# ---- refusing to start -----------------------------------------------------------------------------------------------


def test_a_port_in_use_is_named_and_nothing_is_made(make_piperd: MakePiperd, raw_root: Path, data_root: Path) -> None:
    raw_root.mkdir()
    with socket.socket() as taken:
        taken.bind((LOCALHOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refusal(make_piperd({"METRICS__PORT": port}))
    assert str(port) in said
    assert not (data_root / "state").exists()
    assert not (data_root / "warehouse").exists()


def test_a_second_piperd_names_the_holder_and_leaves_it_alone(
    make_piperd: MakePiperd, raw_root: Path, data_root: Path
) -> None:
    append_events(raw_root, ids("a", 5))
    first = make_piperd().start_ready()
    said = refusal(make_piperd())
    assert f"PID {first.process.pid}" in said
    assert "`piperd`" in said
    append_events(raw_root, ids("b", 5))
    wait_for_events(first, 10)
    first.stop()


def test_a_newer_manifest_is_refused_and_not_touched(make_piperd: MakePiperd, raw_root: Path, data_root: Path) -> None:
    append_events(raw_root, ids("a", 5))
    piperd = make_piperd().start_ready()
    wait_for_events(piperd, 5)
    piperd.stop()
    manifest = data_root / "state" / "ingest_manifest.duckdb"
    with duckdb.connect(str(manifest)) as con:
        con.execute("UPDATE manifest_meta SET value = '9999' WHERE key = 'schema_version'")
    before = manifest.read_bytes()

    said = refusal(piperd)

    assert "9999" in said
    assert "newer" in said
    assert manifest.read_bytes() == before


@pytest.mark.parametrize("damage", ["header", "cut", "text"])
def test_a_damaged_manifest_is_refused_with_the_way_out(
    damage: str, make_piperd: MakePiperd, raw_root: Path, data_root: Path
) -> None:
    append_events(raw_root, ids("a", 5))
    piperd = make_piperd().start_ready()
    wait_for_events(piperd, 5)
    piperd.stop()
    manifest = data_root / "state" / "ingest_manifest.duckdb"
    sound = manifest.read_bytes()
    broken = {
        "header": sound[:8] + b"\xff" * 8192 + sound[8200:],
        "cut": sound[: len(sound) // 2],
        "text": b"this is no database\n" * 1000,
    }[damage]
    manifest.write_bytes(broken)

    said = refusal(piperd)

    assert "piper rebuild" in said
    assert manifest.read_bytes() == broken
    assert event_count(data_root) == 5, "readers still have what was published"


def test_a_data_root_that_cannot_be_written_is_named(make_piperd: MakePiperd, raw_root: Path, data_root: Path) -> None:
    raw_root.mkdir()
    data_root.mkdir(mode=0o555)
    said = refusal(make_piperd(prefix=WITHOUT_PRIVILEGES))
    assert str(data_root) in said
    assert "Permission denied" in said
    assert list(data_root.iterdir()) == []


# ---- a full disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_is_said_and_heals_without_loss(make_piperd: MakePiperd, raw_root: Path, small_disk: Path) -> None:
    data_root = small_disk / "data"
    append_events(raw_root, ids("before", 500))
    piperd = make_piperd({"INGEST__SEAL_EVENTS_MAX": 400}, data_root=data_root).start_ready()
    wait_for_events(piperd, 500)

    _fill(small_disk / "filler")
    late = [*ids("during", 3000)]
    append_events(raw_root, late, user="bjorn")
    said = wait_until(lambda: not_ready_reasons(piperd), what=piperd.log_text)
    assert "space" in " ".join(said.values()), said
    wait_until(lambda: piperd.metric("piper_commit_errors_total", kind="disk_full") > 0, what=piperd.log_text)
    assert piperd.get("/healthz")[0] == 200

    (small_disk / "filler").unlink()
    piperd.wait_ready()
    wait_for_events(piperd, 3500)
    piperd.stop()
    assert seen_ids(data_root) == sorted([*ids("before", 500), *late])


def _fill(path: Path) -> None:
    """Leave not one free block."""
    with path.open("wb", buffering=0) as stream:
        for size in (1 << 20, 4096):
            try:
                while True:
                    stream.write(b"x" * size)
            except OSError:
                pass


# ---- size ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def large_root(tmp_path: Path) -> Iterator[Path]:
    """For very many files: in memory where that is possible, and removed at once."""
    memory = Path("/dev/shm")
    base = memory if os.access(memory, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(prefix="piper-test-", dir=base) as root:
        yield Path(root)


@pytest.mark.timeout(300)
def test_with_a_hundred_thousand_known_files_it_is_ready_and_reads_nothing_again(
    make_piperd: MakePiperd, large_root: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw_root = large_root / "raw"
    raw_root.mkdir()
    piperd = make_piperd(raw_root=raw_root)
    piperd.start_ready()
    piperd.stop()
    _make_known_files(raw_root, data_root / "state" / "ingest_manifest.duckdb")

    piperd.start_ready()

    tracked, read_bytes = piperd.metric("piper_files_tracked"), piperd.metric("piper_bytes_read_total")
    peak = next(line for line in Path(f"/proc/{piperd.process.pid}/status").read_text().splitlines() if "VmHWM" in line)
    append_events(raw_root, ids("new", 5))
    wait_for_events(piperd, 5)
    piperd.stop()
    with capsys.disabled():
        print(f"\npiperd with {tracked:.0f} known files: {' '.join(peak.split())}")
    assert tracked == KNOWN_FILES
    assert read_bytes == 0


def _make_known_files(raw_root: Path, manifest: Path) -> None:
    """Files of one blank line that the manifest has read to their end, as a commit would have noted it."""
    content = b"\n"
    rows = []
    for number in range(KNOWN_FILES):
        folder = f"host{number % 100:02d}/user{number % 10}"
        if number < 100:
            (raw_root / folder).mkdir(parents=True)
        path = f"{folder}/telemetry-{number:06d}.jsonl"
        fd = os.open(raw_root / path, os.O_WRONLY | os.O_CREAT)
        os.write(fd, content)
        status = os.fstat(fd)
        os.close(fd)
        rows.append((number + 1, path, status.st_dev, status.st_ino, status.st_mtime_ns))
    columns = ("source_id", "source_file", "device", "inode", "mtime_ns")
    files = pa.table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True)))
    with duckdb.connect(str(manifest)) as con:
        con.register("files", files)
        con.execute(
            """INSERT INTO sources BY NAME SELECT source_id, source_file, encode(source_file) AS path, device, inode,
                1 AS read_offset, 1 AS lines, $1 AS head, 1 AS head_bytes, $1 AS guard, 1 AS guard_bytes, 1 AS size,
                mtime_ns, FALSE AS vanished FROM files""",
            [fingerprint(content)],
        )
        con.unregister("files")


# ---- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_count_what_was_written_and_name_no_host_user_or_path(make_piperd: MakePiperd, raw_root: Path) -> None:
    options = SimulateOptions(
        raw_root, hosts=3, users=2, rate=0, events=1500, days=1, seed=7, malformed_ratio=0.03, duplicate_ratio=0.05
    )
    summary = simulate(options)
    assert summary.malformed
    assert summary.duplicates
    piperd = make_piperd().start_ready()
    wait_for_events(piperd, summary.valid)
    wait_until(lambda: piperd.metric("piper_lines_quarantined_total") >= summary.malformed)
    wait_until(lambda: piperd.metric("piper_gold_refreshes_total", result="ok") >= 6)

    counted = {
        name: piperd.metric(name)
        for name in (
            "piper_events_ingested_total",
            "piper_events_duplicate_total",
            "piper_lines_quarantined_total",
            "piper_lines_read_total",
            "piper_bytes_read_total",
            "piper_files_tracked",
            "piper_backlog_bytes",
            "piper_lost_bytes_total",
            "piper_ready",
        )
    }
    labels = {value for _, pairs in piperd.scrape() for _, value in pairs}
    piperd.stop()

    assert counted == {
        "piper_events_ingested_total": summary.valid,
        "piper_events_duplicate_total": summary.duplicates,
        "piper_lines_quarantined_total": summary.malformed,
        "piper_lines_read_total": summary.lines,
        "piper_bytes_read_total": summary.bytes,
        "piper_files_tracked": summary.files,
        "piper_backlog_bytes": 0,
        "piper_lost_bytes_total": 0,
        "piper_ready": 1,
    }
    names = {path.name for path in raw_root.rglob("*")} | {str(raw_root), str(piperd.data_root)}
    assert not {label for label in labels for name in names if name in label or "/" in label}


def test_an_unknown_command_over_the_control_socket_harms_nobody(make_piperd: MakePiperd, raw_root: Path) -> None:
    raw_root.mkdir()
    piperd = make_piperd().start_ready()
    with pytest.raises(ControlError):
        ask(piperd.data_root / "state" / "control.sock", "no-such-command")
    assert ask(piperd.data_root / "state" / "control.sock", "status")["state"] == "running"
    piperd.stop()


def test_a_command_that_the_disk_fails_is_refused_and_piperd_goes_on(
    make_piperd: MakePiperd, raw_root: Path, data_root: Path
) -> None:
    append_events(raw_root, ids("before", 5))
    piperd = make_piperd().start_ready()
    wait_for_events(piperd, 5)
    in_the_way = data_root / "warehouse" / ".telemetry.duckdb.tmp"
    in_the_way.mkdir()  # where the new catalog would be written: even root cannot write a file there

    with pytest.raises(ControlError, match="piperd could not do it"):
        ask(data_root / "state" / "control.sock", "materialize", {})

    append_events(raw_root, ids("after", 5), name="telemetry-2.jsonl")
    wait_for_events(piperd, 10)
    in_the_way.rmdir()
    assert ask(data_root / "state" / "control.sock", "materialize", {})["models"]
    piperd.stop()
