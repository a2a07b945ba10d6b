"""What stands in the files: NUL pages, holes, lines over the limit, floods, and bounds on what is kept of them."""

from __future__ import annotations

import os
import resource
import tracemalloc
from pathlib import Path

import pytest
from tests.support.spool import SLICE_BYTES, Spool, numbered, texts

from piper.spool import ledger
from piper.spool.tail import Batch
from piper.spool.turn import SAMPLE_BYTES, Limits

A, B = "host/user/a.jsonl", "host/user/b.jsonl"
TURN_BYTES, LIMIT = 4096, 1024
SAMPLE = min(SAMPLE_BYTES, TURN_BYTES)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "raw", turn_bytes=TURN_BYTES, line_bytes_max=LIMIT)


def wait(spool: Spool, seconds: int = 60) -> list[bytes]:
    """One scan, then a poll a second, as the daemon does."""
    spool.scan()
    came = []
    for _ in range(seconds):
        spool.tailer.poll()
        came += spool.ingest()
        spool.clock.pass_seconds(1)
    return came


def fill(spool: Spool, name: str, offset: int, data: bytes) -> None:
    fd = os.open(spool.path(name), os.O_WRONLY)
    try:
        os.pwrite(fd, data, offset)
    finally:
        os.close(fd)


def sparse(spool: Spool, name: str, size: int) -> None:
    spool.append(name, b"")
    os.truncate(spool.path(name), size)


# ---- NUL bytes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
def test_a_page_that_is_nul_for_seconds_yields_its_text(spool: Spool, restart: bool) -> None:
    content = numbered(0, 100)
    spool.append(A, content[:405] + bytes(300) + content[705:])
    came = spool.pass_through()
    assert came == content[:405].splitlines()[:-1], "up to the line that the NUL bytes cut"
    spool.clock.pass_seconds(10)
    assert spool.pass_through() == []
    if restart:
        spool.restart()
    spool.clock.pass_seconds(10)
    fill(spool, A, 405, content[405:705])
    came += spool.pass_through()
    assert came == content.splitlines()
    assert (spool.skips, spool.lost_bytes) == ([], 0)
    assert spool.source(A).suspicion is None


def test_a_nul_page_is_held_back_for_as_long_as_the_one_before_it_was(spool: Spool) -> None:
    """The doubt belongs to one place: what is believed of old NUL bytes says nothing of younger ones."""
    spool.append(A, bytes(500))
    assert wait(spool) == []
    assert spool.lost_bytes == 500
    spool.append(A, numbered(0, 3) + bytes(36) + numbered(7, 9))
    assert wait(spool, 20) == texts(0, 3)
    fill(spool, A, 500 + 27, numbered(3, 7))
    assert wait(spool, 10) == texts(3, 9)
    assert (spool.skips, spool.lost_bytes) == ([], 500)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("second", [450, 1000], ids=["within one line", "in the next lines"])
def test_the_doubt_begins_anew_when_the_nul_bytes_are_others(spool: Spool, second: int, restart: bool) -> None:
    """Pages that arrive late one after the other: each gets its own time."""
    content = b'{"text": "' + b"x" * 900 + b'"}\n' + numbered(0, 100)
    spool.append(A, content[:300] + bytes(900) + content[1200:])
    assert wait(spool, 20) == []
    if restart and second == 1000:
        spool.restart()
    fill(spool, A, 300, content[300:second])
    wait(spool, 20)
    fill(spool, A, second, content[second:1200])
    wait(spool, 20)
    assert spool.texts == content.splitlines()
    assert spool.lost_bytes == 0


def test_nul_bytes_that_become_text_after_they_were_skipped_bring_that_text(spool: Spool) -> None:
    spool.append(A, numbered(0, 3) + bytes(27) + numbered(6, 9))
    wait(spool)
    assert spool.texts == texts(0, 3) + texts(6, 9)
    fill(spool, A, 27, numbered(3, 6))
    spool.append(A, numbered(9, 10))
    wait(spool)
    assert set(texts(0, 10)) == set(spool.texts)


@pytest.mark.parametrize("blocks", ["sparse", "written"])
def test_a_hole_before_a_line_is_counted_and_costs_that_line_nothing(spool: Spool, blocks: str) -> None:
    size = 20 * TURN_BYTES + 17
    if blocks == "sparse":
        sparse(spool, A, size)
    else:
        spool.append(A, bytes(size))
    spool.append(A, numbered(0, 3))
    spool.scan()
    assert spool.ingest() == []
    assert wait(spool, 45) == texts(0, 3), "one doubt for the whole hole, however many turns it takes"
    assert [(line.offset, line.number) for line in spool.lines] == [(size, 1), (size + 9, 2), (size + 18, 3)]
    assert spool.lost_bytes == size


def test_a_hole_of_a_gibibyte_costs_neither_memory_nor_reading(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "raw", turn_bytes=4 << 20, line_bytes_max=1 << 20)
    sparse(spool, A, 1 << 30)
    spool.append(A, numbered(0, 3))
    spool.scan()
    tracemalloc.start()
    try:
        assert wait(spool, 40) == texts(0, 3)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert spool.lost_bytes == 1 << 30


def test_nul_bytes_within_a_line_stay_in_that_line(spool: Spool) -> None:
    line = b'{"text": "' + bytes(20) + b'"}'
    spool.append(A, numbered(0, 2) + line + b"\n" + numbered(2, 4))
    assert wait(spool) == [*texts(0, 2), line, *texts(2, 4)]


def test_a_nul_tail_that_is_deleted_is_counted(spool: Spool) -> None:
    spool.append(A, numbered(0, 2) + b'{"cut' + bytes(100))
    spool.append(B, b"\n")
    spool.pass_through()
    spool.delete(A)
    spool.believe()
    assert spool.rejected() == [("truncated_line", 18, 5, b'{"cut')]
    assert spool.lost_bytes == 100


# ---- long lines ----------------------------------------------------------------------------------------------------


def test_a_line_of_exactly_the_limit_is_a_line(spool: Spool) -> None:
    spool.append(A, b"x" * LIMIT)
    assert spool.pass_through() == []
    spool.append(A, b"\n" + numbered(0, 1))
    assert spool.pass_through() == [b"x" * LIMIT, *texts(0, 1)]
    assert spool.skips == []


@pytest.mark.parametrize("length", [LIMIT + 1, TURN_BYTES - 1, TURN_BYTES, TURN_BYTES + 1, 10 * TURN_BYTES])
@pytest.mark.parametrize("before", [b"", numbered(0, 300)])
def test_a_line_over_the_limit_costs_that_line_only(spool: Spool, length: int, before: bytes) -> None:
    spool.append(A, before + b"x" * length + b"\n" + numbered(300, 303))
    came = spool.pass_through()
    in_span = [line for line in came if line == b"x" * length]  # the parser rejects one that fits into a turn
    assert [line for line in came if line not in in_span] == before.splitlines() + texts(300, 303)
    if not in_span:
        assert spool.rejected() == [("line_too_long", len(before), length, b"x" * SAMPLE)]
    assert len(in_span) + len(spool.skips) == 1
    assert spool.lines[-1].number == len(before.splitlines()) + 4


@pytest.mark.parametrize("interrupt", ["nothing", "restart", "abandon"])
def test_a_long_line_that_grows_over_many_looks_is_one_rejection(spool: Spool, interrupt: str) -> None:
    spool.append(A, numbered(0, 2))
    for _ in range(5):
        spool.append(A, b"y" * 3000)
        spool.scan()
        if interrupt == "abandon":
            spool.tailer.abandon(spool.gather())
        spool.ingest()
        if interrupt == "restart":
            spool.restart()
    spool.append(A, b"\n" + numbered(2, 3))
    spool.pass_through()
    assert spool.texts == texts(0, 3)
    assert [skip[:3] for skip in spool.rejected()] == [("line_too_long", 18, 15_000)]
    assert spool.lines[-1].number == 4


@pytest.mark.parametrize("restart", [False, True])
def test_a_long_line_that_never_ends_is_handed_on_when_its_file_goes(spool: Spool, restart: bool) -> None:
    spool.append(A, numbered(0, 2) + b"z" * 200_000)
    spool.append(B, b"\n")
    spool.pass_through()
    if restart:
        spool.restart()
    spool.delete(A)
    spool.believe()
    assert spool.rejected() == [("truncated_line", 18, SAMPLE, b"z" * SAMPLE)]
    assert spool.lost_bytes == 200_000 - SAMPLE


def test_a_refill_behind_a_long_line_loses_no_line(spool: Spool) -> None:
    spool.append(A, b"x" * 10_000)
    spool.pass_through()
    spool.rewrite(A, numbered(0, 2000))
    assert spool.believe() == texts(0, 2000)


def test_a_nul_page_within_a_long_line_cannot_hide_its_end(spool: Spool) -> None:
    content = b"x" * 9000 + b"\n" + numbered(0, 800)
    spool.append(A, content[:8192] + bytes(4096) + content[12288:])
    assert wait(spool, 10) == []
    fill(spool, A, 8192, content[8192:12288])
    assert wait(spool, 10) == texts(0, 800)
    assert [skip[:3] for skip in spool.rejected()] == [("line_too_long", 0, 9000)]


def test_a_very_long_line_keeps_memory_flat_and_every_batch_of_it_is_progress(tmp_path: Path) -> None:
    """A batch that is full of nothing but this line still says that something was done: `piper ingest` goes on."""
    spool = Spool(tmp_path / "raw", turn_bytes=1 << 20, line_bytes_max=1 << 18)
    spool.append(A, b'{"x": "')
    os.truncate(spool.path(A), 7)
    with spool.path(A).open("ab") as stream:
        stream.writelines(b"x" * (1 << 20) for _ in range(64))
    spool.append(A, b"\n" + numbered(0, 1))
    spool.scan()
    tracemalloc.start()
    try:
        batches = 0
        while spool.tailer.ready:
            batch = Batch()
            while spool.tailer.ready and batch.bytes < 8 << 20:
                spool.tailer.read(batch, SLICE_BYTES)
            assert batch
            spool.manifest.commit(batch)
            spool.tailer.applied(batch)
            batches += 1
        assert batches > 5
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert spool.source(A).lines == 2


def test_a_turn_must_hold_a_line_of_the_allowed_length() -> None:
    with pytest.raises(ValueError, match="turn_bytes"):
        Limits(turn_bytes=1024, line_bytes_max=1024)


# ---- fairness and bounds -------------------------------------------------------------------------------------------


def test_a_flood_does_not_keep_quiet_files_from_the_first_slice(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "raw", turn_bytes=4 << 20, line_bytes_max=1 << 20)
    line = b'{"flood": "' + b"x" * 1000 + b'"}\n'
    spool.append("a/flood/f.jsonl", line * (50_000_000 // len(line)))
    for number in range(100):
        spool.append(f"host/user{number}/{number}.jsonl", numbered(number, number + 1))
    spool.scan()
    batch = Batch()
    spans = spool.tailer.read(batch, 16 << 20)
    assert sum(span.lines for span in spans if b"flood" not in span.source.path) == 100
    assert sum(len(span.data) for span in spans) < 20 << 20
    assert spool.tailer.ready


def test_two_floods_take_turns_with_files_that_come_later(spool: Spool) -> None:
    for name in ("a", "b"):
        spool.append(f"host/flood/{name}.jsonl", numbered(0, 5000))
    spool.scan()
    batch = Batch()
    spool.tailer.read(batch, 1)
    spool.append(A, numbered(0, 1))
    spool.tailer.look(A.encode())
    seen = [spool.tailer.read(batch, 1)[0].source.path for _ in range(3)]
    assert A.encode() in seen


def test_the_backlog_counts_what_can_be_read_and_since_when(spool: Spool) -> None:
    spool.append(A, numbered(0, 1000))
    spool.append(B, numbered(0, 10) + b'{"cut')
    size = spool.path(A).stat().st_size
    assert spool.tailer.backlog() == (0, 0, 0.0)
    spool.scan()
    spool.clock.pass_seconds(5)
    assert spool.tailer.backlog() == (size + 95, 2, 5.0)
    batch = Batch()
    while len(batch.spans) < 3:
        spool.tailer.read(batch, 1)
    spool.tailer.applied(batch)
    read = sum(len(span.data) for span in batch.spans if span.source.path == A.encode())
    assert spool.tailer.backlog() == (size - read, 1, 5.0), "a cut line is no backlog; the rest is as old as before"
    spool.append(A, numbered(1000, 2000))
    spool.clock.pass_seconds(5)
    spool.tailer.poll()
    size_then, size = size, spool.path(A).stat().st_size
    while read <= size_then:
        batch = Batch()
        read += sum(len(span.data) for span in spool.tailer.read(batch, 1))
        spool.tailer.applied(batch)
    spool.clock.pass_seconds(1)
    assert spool.tailer.backlog() == (size - read, 1, 1.0), "all that was there before is read"
    spool.ingest()
    assert spool.tailer.backlog() == (0, 0, 0.0)


def test_fragments_are_bounded_and_those_beyond_count_as_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "FRAGMENTS_BYTES_MAX", 10_000)
    spool = Spool(tmp_path / "raw")
    for number in range(10):
        spool.append(f"host/user/{number}.jsonl", b"%d" % number * 3000)
    spool.append("host/other/x.jsonl", b"\n")
    spool.pass_through()
    spool.restart()
    for number in range(10):
        spool.append(f"host/user/{number}.jsonl", b"+")
    spool.pass_through()
    assert sum(len(source.fragment or b"") for source in spool.tailer.sources) <= 10_000
    for number in range(10):
        spool.delete(f"host/user/{number}.jsonl")
    spool.believe()
    assert [skip.length for skip in spool.skips] == [3001] * 3
    assert spool.lost_bytes == 7 * 3001
    spool.append("host/user/new.jsonl", b"n" * 9000)
    spool.pass_through()
    assert spool.source("host/user/new.jsonl").fragment == b"n" * 9000, "what was handed on is free again"


def test_twenty_thousand_files_come_complete_with_few_descriptors(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "raw")
    for user in range(20):
        directory = spool.path(f"host/user{user}")
        directory.mkdir(parents=True)
        for number in range(user * 1000, user * 1000 + 1000):
            (directory / f"{number}.jsonl").write_bytes(b'{"n": %d}\n' % number)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        came = spool.pass_through()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sorted(came) == sorted(texts(0, 20_000))
    assert spool.events == {}
