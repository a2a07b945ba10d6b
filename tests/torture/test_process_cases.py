"""Cases 9, 11, 18, 19 and 24: holes, descriptors, many files, floods and clocks, under a real piperd or its writer."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.conftest import MakePiperd
from tests.support.event_lines import HOST, append_events, event_line, ids
from tests.support.piperd import Piperd
from tests.support.polling import wait_until
from tests.support.spool_run import spool_run
from tests.support.warehouse import catalog, event_count
from tests.torture.conftest import QUICK_DOUBTS, append, lines

GIB, MIB = 1 << 30, 1 << 20
HOLE_MEMORY_BYTES = 64 * MIB
"""What a hole of any size may cost: a read buffer and what parsing takes, and no more."""
DESCRIPTORS_MAX = 256


def peak_bytes(piperd: Piperd) -> int:
    """The most memory that it ever had resident."""
    status = Path(f"/proc/{piperd.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def open_files(piperd: Piperd) -> int:
    return len(list(Path(f"/proc/{piperd.process.pid}/fd").iterdir()))


def test_case_09_a_hole_of_a_gib_and_then_a_line_is_counted_and_costs_no_memory(
    make_piperd: MakePiperd, raw_root: Path
) -> None:
    user = "case09"
    path = append_events(raw_root, ids("c09-a", 2000), user=user)
    piperd = make_piperd({"GOLD__REFRESH_SECONDS": 3600}, prefix=QUICK_DOUBTS).start_ready()
    wait_until(lambda: event_count(piperd.data_root) == 2000, what=piperd.log_text)
    before = peak_bytes(piperd)
    os.truncate(path, path.stat().st_size + GIB)
    append(path, lines(user, ["c09-b"]))
    wait_until(lambda: event_count(piperd.data_root) == 2001, what=piperd.log_text)
    wait_until(lambda: piperd.metric("piper_lost_bytes_total") == GIB, what=piperd.log_text)
    assert peak_bytes(piperd) - before < HOLE_MEMORY_BYTES
    piperd.stop()


@pytest.mark.parametrize("files", [3000, pytest.param(20_000, marks=pytest.mark.minutes)])
@pytest.mark.timeout(900)
def test_case_11_and_case_19_many_files_some_growing_keep_few_descriptors_open_and_come_whole(
    make_piperd: MakePiperd, raw_root: Path, files: int
) -> None:
    growing, rounds = 50, 3
    for number in range(files):
        folder = raw_root / HOST / f"u{number // 500}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jsonl").write_bytes(event_line(f"many-{number}"))
    limited = ("sh", "-c", f'ulimit -n {DESCRIPTORS_MAX}; exec "$@"', "sh")
    piperd = make_piperd({"GOLD__REFRESH_SECONDS": 3600}, prefix=limited).start_ready()
    expected = files

    def came() -> bool:
        return event_count(piperd.data_root) == expected

    wait_until(came, 600, what=piperd.log_text, pause_seconds=0.2)
    opened = []
    for turn in range(rounds):
        for number in range(growing):
            append(raw_root / HOST / "u0" / f"{number}.jsonl", event_line(f"more-{turn}-{number}"))
        expected += growing
        wait_until(came, 180, what=piperd.log_text, pause_seconds=0.1)
        opened.append(open_files(piperd))
    assert max(opened) < DESCRIPTORS_MAX // 2
    assert piperd.metric("piper_file_events_total", kind="io_error") == 0
    assert piperd.metric("piper_lines_read_total") == expected
    piperd.stop()


def flood_of(spool: Path, events: int) -> None:
    """A file with so many events, older than any other: the oldest is read first."""
    flood = spool / "ws1" / "flood" / "a.jsonl"
    flood.parent.mkdir(parents=True)
    flood.write_bytes(b"".join(event_line(f"flood-{number}") for number in range(events)))
    os.utime(flood, (1, 1))


def test_case_18_lines_that_come_while_a_flood_is_committed_need_not_wait_for_its_next_batch(tmp_path: Path) -> None:
    quiet = tmp_path / "spool" / "ws1" / "quiet" / "a.jsonl"
    with spool_run(tmp_path) as run:
        flood_of(tmp_path / "spool", 60_000)
        quiet.parent.mkdir()
        quiet.write_bytes(event_line("quiet-0"))
        run.writer.scan()
        run.writer.ingest(seconds=0.0)
        with quiet.open("ab") as stream:
            stream.write(event_line("quiet-1"))
        run.writer.tailer.look(b"ws1/quiet/a.jsonl")
        assert run.writer.tailer.is_flooded
        before = len(run.rows("events"))
        done = run.writer.ingest(quiet_only=True)
        assert done is not None
        assert done.accepted == 1
        assert {row["event_id"] for row in run.rows("events")} >= {"quiet-0", "quiet-1"}
        assert len(run.rows("events")) == before + 1
        assert run.writer.ingest(quiet_only=True) is None
        while run.writer.ingest():
            pass
        assert not run.writer.tailer.is_flooded
        assert len(run.rows("events")) == 60_000 + 2


def test_case_18_a_file_with_a_huge_backlog_lets_every_quiet_one_into_the_same_slice(tmp_path: Path) -> None:
    quiet = [f"ws1/quiet/{number}.jsonl" for number in range(200)]
    with spool_run(tmp_path) as run:
        flood_of(tmp_path / "spool", 40_000)
        for name in quiet:
            path = tmp_path / "spool" / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(event_line(name))
        run.writer.scan()
        run.writer.ingest(seconds=0.0)
        found = {row["event_id"] for row in run.rows("events")}
        assert found > set(quiet)
        assert len(found) < 40_000, "a backlog that one slice takes whole shows nothing"
        while run.writer.ingest():
            pass
        assert len(run.rows("events")) == 40_000 + len(quiet)


# ---- case 24 ---------------------------------------------------------------------------------------------------------


def skewed(seconds: Path) -> tuple[str, ...]:
    """What to put before piperd's command so that its wall clock is off by what the file says, whenever it says it."""
    return (
        sys.executable,
        "-c",
        f"""
import sys, time
real = time.time_ns
def time_ns():
    with open({str(seconds)!r}) as stream:
        return real() + int(stream.read()) * 10**9
time.time_ns, time.time = time_ns, lambda: time_ns() / 1e9
sys.argv = ["piperd"]
from piper.cli import main_daemon
main_daemon()
""",
    )


def test_case_24_a_wall_clock_that_steps_both_ways_stalls_nothing_and_old_events_meet_their_partition(
    make_piperd: MakePiperd, raw_root: Path, tmp_path: Path
) -> None:
    clock = tmp_path / "clock"
    expected: dict[str, str] = {}

    def set_clock(seconds: int) -> None:
        clock.with_suffix(".new").write_text(str(seconds))
        clock.with_suffix(".new").replace(clock)

    def write(event_id: str, at: datetime) -> None:
        folder = raw_root / HOST / "amara"
        folder.mkdir(parents=True, exist_ok=True)
        append(folder / f"{event_id}.jsonl", event_line(event_id, at=at))
        append(folder / "all.jsonl", event_line(f"{event_id}-more", at=at))
        expected[event_id] = expected[f"{event_id}-more"] = str(at.date())

    def seen() -> dict[str, str]:
        with catalog(piperd.data_root) as con:
            return dict(con.execute("SELECT event_id, event_date::VARCHAR FROM silver_events").fetchall())

    def counted() -> int:
        with catalog(piperd.data_root) as con:
            row = con.execute("SELECT sum(total_events) FROM gold_data_quality_daily").fetchone()
        return int(row[0] or 0) if row else 0

    now = datetime.now(UTC)
    set_clock(0)
    piperd = make_piperd({"INGEST__SEAL_SECONDS": 1}, prefix=skewed(clock))
    write("straight", now)
    piperd.start_ready()
    for step, (event_id, at) in {
        -3600: ("back", now - timedelta(minutes=1)),
        3600: ("forward", now),
        0: ("old", now - timedelta(days=730)),
    }.items():
        wait_until(lambda: seen() == expected, what=piperd.log_text)
        set_clock(step)
        write(event_id, at)
    wait_until(lambda: seen() == expected, what=piperd.log_text)
    wait_until(lambda: counted() == len(expected), what=piperd.log_text)
    assert piperd.get("/readyz")[0] == 200
    assert piperd.metric("piper_events_duplicate_total") == 0
    assert piperd.metric("piper_old_events_total") == 2
    partition = piperd.data_root / "silver" / "events" / f"event_date={expected['old']}"
    wait_until(lambda: list(partition.rglob("*.parquet")), what=piperd.log_text)
    piperd.stop()
