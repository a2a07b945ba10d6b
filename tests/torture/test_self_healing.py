"""Case 14, case 10 and 24 from the daemon's side: piperd loses the ground under it, says so, and comes back exact.

Each daemon lives through one fault after the other. After each, everything that was written is in silver once, and
readiness is back, without anybody having done more than end the fault.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import orjson
import pytest
from tests.conftest import MakePiperd
from tests.support.event_lines import append_events, event_line, ids
from tests.support.piperd import Piperd
from tests.support.polling import wait_until
from tests.support.spool_run import START, spool_run
from tests.support.warehouse import catalog, quarantine_records

from piper.errors import ControlError
from piper.ops.control import ask
from piper.silver.datasets import EMPTY_CHUNK

pytestmark = pytest.mark.timeout(400)
BATCH = 30


class Patient:
    """A piperd that is fed, and what readers must see of it."""

    def __init__(self, piperd: Piperd) -> None:
        self.piperd, self.data = piperd, piperd.data_root
        self.expected: list[str] = []

    def feed(self, events: int = BATCH) -> None:
        number = len(self.expected)
        new = ids(f"from-{number}", events)
        append_events(self.piperd.raw_root, new, name=f"telemetry-{number}.jsonl")
        self.expected += new

    def seen(self) -> list[str]:
        """All event ids, sorted; none while the views fail."""
        try:
            with catalog(self.data) as con:
                return sorted(row[0] for row in con.execute("SELECT event_id FROM silver_events").fetchall())
        except duckdb.Error:
            return []

    def is_well(self) -> bool:
        return self.piperd.get("/readyz")[0] == 200 and self.seen() == sorted(self.expected)

    def recovers(self) -> None:
        wait_until(self.is_well, 90, what=self.piperd.log_text, pause_seconds=0.1)

    def says(self, *words: str) -> None:
        """Until /readyz names the fault; the daemon is alive and can be scraped meanwhile."""

        def named() -> bool:
            status, body = self.piperd.get("/readyz")
            return status == 503 and all(word in body for word in words)

        wait_until(named, 60, what=self.piperd.log_text)
        assert self.piperd.get("/healthz")[0] == 200
        assert self.piperd.metric("piper_ready") == 0


@pytest.fixture
def patient(make_piperd: MakePiperd) -> Patient:
    made = Patient(make_piperd({"INGEST__SEAL_SECONDS": 1}))
    made.feed()
    made.piperd.start_ready()
    made.recovers()
    return made


@contextmanager
def away(path: Path, *, replaced: bool = False) -> Iterator[None]:
    """The directory is not there, or an empty one is in its place, as where a mount has gone."""
    aside = path.with_name(f"{path.name} aside")
    path.rename(aside)
    if replaced:
        path.mkdir()
    yield
    assert not path.exists() or not list(path.iterdir()), "piperd wrote where nobody would find it"
    shutil.rmtree(path, ignore_errors=True)
    aside.rename(path)


def test_what_readers_and_commands_open_is_made_again_when_somebody_removes_or_overwrites_it(patient: Patient) -> None:
    data = patient.data
    warehouse, socket = data / "warehouse", data / "state" / "control.sock"
    (warehouse / "telemetry.duckdb").write_bytes(b"no database")
    os.truncate(max((warehouse / "tail").iterdir()), 0)
    (warehouse / "gold.duckdb").unlink()
    socket.unlink()
    patient.recovers()
    shutil.rmtree(warehouse)
    patient.recovers()

    def gold_total() -> int:
        with catalog(data) as con:
            row = con.execute("SELECT sum(total_events) FROM gold_data_quality_daily").fetchone()
        return int(row[0]) if row and row[0] else 0

    wait_until(lambda: gold_total() == len(patient.expected), what=patient.piperd.log_text)

    def answers() -> bool:
        try:
            return bool(ask(socket, "status")["state"] == "running")
        except ControlError:
            return False

    wait_until(answers, what=patient.piperd.log_text)

    shutil.rmtree(data / "run_logs")
    (data / "run_logs").write_text("in the way")
    shutil.rmtree(data / "silver" / ".staging")
    shutil.rmtree(data / "state" / "tmp", ignore_errors=True)
    patient.feed()
    patient.recovers()
    patient.piperd.stop()


def test_a_quarantine_file_that_was_edited_or_deleted_costs_its_own_records_only(patient: Patient) -> None:
    broken = patient.piperd.raw_root / "ws09" / "zed"
    broken.mkdir(parents=True)
    files = patient.data / "quarantine" / "invalid_jsonl"

    def quarantine(line: str) -> None:
        (broken / f"{line}.jsonl").write_text(f"{line}\n")
        wait_until(lambda: line in [one.get("raw_text") for one in quarantine_records(patient.data)])

    quarantine("first")
    next(files.glob("*/*.jsonl")).write_text("")
    quarantine("second")
    shutil.rmtree(patient.data / "quarantine")
    quarantine("third")
    patient.feed()
    patient.recovers()
    patient.piperd.stop()


def test_a_data_root_a_state_or_a_silver_that_goes_away_is_waited_for_and_nothing_is_made_in_its_place(
    patient: Patient,
) -> None:
    for path, replaced in (
        (patient.data / "silver", False),
        (patient.data / "state", True),
        (patient.data, True),
        (patient.data, False),
    ):
        with away(path, replaced=replaced):
            patient.feed()
            patient.says("manifest_open", path.name)
        patient.recovers()
    with away(patient.piperd.raw_root, replaced=True):
        patient.says("spool")
    patient.recovers()
    patient.piperd.stop()
    assert patient.seen() == sorted(patient.expected)


def test_a_chunk_that_was_emptied_is_set_aside_told_and_repaired_beside_ingest(patient: Patient) -> None:
    events = patient.data / "silver" / "events"
    [chunk] = wait_until(lambda: [path for path in events.rglob("*.parquet") if path.name != EMPTY_CHUNK])
    patient.piperd.stop()
    chunk.write_bytes(b"")
    patient.piperd.start_ready()
    wait_until(lambda: patient.piperd.metric("piper_broken_chunks") == 1, what=patient.piperd.log_text)
    assert chunk.with_name(f"{chunk.name}.damaged").exists()
    assert patient.seen() == []  # the only chunk; but the views answer
    patient.feed()

    socket = patient.data / "state" / "control.sock"
    assert ask(socket, "verify")["broken"] == 1
    done = ask(socket, "repair", timeout_seconds=None)
    assert (done["restored"], done["lost"], done["gold_failed"]) == (done["rows"], 0, [])
    patient.recovers()
    assert ask(socket, "verify")["broken"] == 0
    assert patient.piperd.metric("piper_broken_chunks") == 0
    patient.piperd.stop()


# ---- faults of the disk: needs root ----------------------------------------------------------------------------------


def mount(directory: Path, size: str) -> None:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("mounting a small disk needs root")


def unmount(directory: Path) -> None:
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


@contextmanager
def full(directory: Path) -> Iterator[None]:
    """Not one free block there."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as stream:
        for size in (1 << 20, 4096):
            try:
                while True:
                    stream.write(b"x" * size)
            except OSError:
                pass
    yield
    filler.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount(disk, "64m")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", str(disk)], check=False)


def test_case_14_disks_that_are_full_in_part_or_whole_or_unmounted_stop_only_what_needs_them(
    make_piperd: MakePiperd, small_disk: Path
) -> None:
    data = small_disk / "data"
    patient = Patient(make_piperd({"INGEST__SEAL_SECONDS": 1}, data_root=data))
    patient.feed()
    patient.piperd.start_ready()
    patient.recovers()

    with full(small_disk):
        patient.feed(3000)
        patient.says("manifest_open", "No space left")
    patient.recovers()

    with away(data / "warehouse"):
        (data / "warehouse").mkdir()
        mount(data / "warehouse", "1m")
        with full(data / "warehouse"):
            patient.says("publish", "No space left")
            before = patient.piperd.metric("piper_events_ingested_total")
            patient.feed()
            ingested = before + BATCH  # ingest goes on
            wait_until(lambda: patient.piperd.metric("piper_events_ingested_total") == ingested)
        subprocess.run(["mount", "-o", "remount,size=16m", str(data / "warehouse")], check=True)
        patient.recovers()
        unmount(data / "warehouse")
    patient.recovers()

    mount(data / "quarantine", "64k")
    with full(data / "quarantine"):
        broken = patient.piperd.raw_root / "ws09" / "zed" / "a.jsonl"
        broken.parent.mkdir(parents=True)
        broken.write_text("no event\n")
        patient.says("publish", "space")
        patient.feed()
        wait_until(lambda: patient.seen() == sorted(patient.expected), what=patient.piperd.log_text)
    patient.recovers()
    wait_until(lambda: [one["raw_text"] for one in quarantine_records(data)] == ["no event"])
    patient.piperd.stop()
    assert patient.seen() == sorted(patient.expected)


# ---- clocks ----------------------------------------------------------------------------------------------------------


def test_case_24_a_clock_that_steps_and_a_host_two_years_behind_stall_nothing_and_meet_the_right_partitions(
    tmp_path: Path,
) -> None:
    def line(event_id: str, **ago: float) -> bytes:
        at = datetime.fromtimestamp(START, UTC) - timedelta(**ago)
        return event_line(event_id, at=at.replace(microsecond=0))

    with spool_run(tmp_path) as run:
        run.ingest({"ws1/mia/a.jsonl": line("now", seconds=1)})
        run.seconds = -3600.0  # an hour back; the monotonic clock of this run steps along, which is worse
        run.ingest({"ws1/mia/b.jsonl": line("after the step", seconds=1), "ws2/old/c.jsonl": line("old", days=730)})
        run.writer.publish()
        run.writer.refresh_gold(run.writer.store.cursor())
        run.seconds = 7200.0
        run.ingest({"ws1/mia/d.jsonl": line("forward", seconds=-7100)}, seal=True)
        run.writer.publish()
        run.writer.refresh_gold(run.writer.store.cursor())
        found = {row["event_id"]: str(row["event_date"]) for row in run.rows("events")}
        with catalog(tmp_path / "data") as con:
            gold = dict(con.execute("SELECT event_date::VARCHAR, total_events FROM gold_data_quality_daily").fetchall())
    assert run.quarantined() == []
    today, long_ago = "2030-03-04", "2028-03-04"
    assert found == {"now": today, "after the step": today, "old": long_ago, "forward": today}
    assert gold == {today: 3, long_ago: 1}
    folders = [path.name for path in (tmp_path / "data" / "silver" / "events").iterdir()]
    assert f"event_date={long_ago}" in folders
    assert orjson.loads(line("old", days=730))["occurred_at_utc"].startswith(long_ago)
