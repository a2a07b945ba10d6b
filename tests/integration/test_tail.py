"""Which file is which: renames, replacements, truncations, deletions, restarts. Real files, clocks of our own."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.spool import SLICE_BYTES, Spool, lines_of, numbered, texts

from piper.spool.identity import Source
from piper.spool.open import open_to_list
from piper.spool.rest import REST_SCANS
from piper.spool.tail import Batch

A, B = "host/user/a.jsonl", "host/user/b.jsonl"


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "raw")


def half_read(spool: Spool, name: str = A) -> None:
    """A file of which lines 0 to 9 are committed and 10 to 19 are not read yet."""
    spool.append(name, numbered(0, 10))
    spool.pass_through()
    spool.append(name, numbered(10, 20))


# ---- looking -------------------------------------------------------------------------------------------------------


@pytest.fixture
def resting(tmp_path: Path) -> Spool:
    """Twenty files that nobody has written to for two days, in a directory with nothing new."""
    spool = Spool(tmp_path / "raw", rest_seconds=86_400)
    for number in range(20):
        spool.append(f"host/user/{number}.jsonl", numbered(number, number + 1))
        spool.set_age(f"host/user/{number}.jsonl", days=2)
    spool.set_age("host/user", days=2)
    spool.pass_through()
    spool.pass_through()
    return spool


def test_every_file_at_rest_that_grows_is_found_within_some_scans_and_then_at_once(resting: Spool) -> None:
    for number in range(20):
        resting.append(f"host/user/{number}.jsonl", numbered(100 + number, 101 + number))
    came = [resting.pass_through() for _ in range(REST_SCANS)]
    assert sorted(text for texts_of_scan in came for text in texts_of_scan) == sorted(texts(100, 120))
    assert max(map(len, came)) < 20, "no scan looks at all of them"
    resting.append("host/user/3.jsonl", numbered(200, 201))
    resting.tailer.poll()
    assert resting.ingest() == texts(200, 201)


@pytest.mark.parametrize("after", ["a restart", "a failure", "a scan without the spool"])
def test_the_first_scan_after_something_may_have_been_missed_looks_at_every_file(
    resting: Spool, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if after == "a restart":
        resting.restart()
    elif after == "a failure":
        with monkeypatch.context() as patch:
            patch.setattr("piper.spool.discover.open_to_list", fail_below_the_hosts)
            assert resting.scan().failed == {b"host/user": errno.EIO}
    else:
        away = resting.root.with_name("away")
        resting.root.rename(away)
        assert resting.scan().root_error
        away.rename(resting.root)
    for number in range(20):
        resting.append(f"host/user/{number}.jsonl", numbered(100 + number, 101 + number))
    assert sorted(resting.pass_through()) == sorted(texts(100, 120))


def fail_below_the_hosts(root: bytes, path: bytes) -> int:
    if path.count(b"/"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return open_to_list(root, path)


def test_a_file_at_rest_that_goes_is_renamed_or_replaced_is_seen_by_the_next_scan(resting: Spool) -> None:
    resting.rename("host/user/1.jsonl", "host/user/moved.jsonl")
    resting.path("host/user/new").write_bytes(numbered(300, 301))
    resting.path("host/user/new").rename(resting.path("host/user/2.jsonl"))
    assert resting.pass_through() == texts(300, 301)
    assert resting.events == {"renamed": 1, "replaced": 1}
    resting.path("host/user/4.jsonl").unlink()
    assert resting.believe() == []
    assert resting.events["vanished"] == 2, "the one that was replaced, and the one that was deleted"


def listings(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The directories that one scan lists below the hosts."""
    listed: list[bytes] = []

    def scandir(fd: int) -> object:
        listed.append(os.fsencode(Path(f"/proc/self/fd/{fd}").readlink()))
        return os_scandir(fd)

    os_scandir = os.scandir
    with monkeypatch.context() as patch:
        patch.setattr("piper.spool.discover.os.scandir", scandir)
        spool.scan()
    return [path for path in listed if path.endswith(b"/user")]


def test_a_directory_without_change_is_listed_by_one_scan_in_some(
    resting: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sum(len(listings(resting, monkeypatch)) for _ in range(3 * REST_SCANS)) == 3
    resting.path("host/user/notes.txt").touch()
    assert len(listings(resting, monkeypatch)) == 1, "its times have changed"


def test_of_a_directory_without_change_each_scan_looks_at_the_files_that_are_in_use(resting: Spool) -> None:
    resting.append("host/user/3.jsonl", numbered(50, 51))
    resting.set_age("host/user/3.jsonl", days=0)
    resting.believe(REST_SCANS, seconds=1.0)
    for number in range(100, 100 + 2 * REST_SCANS):
        resting.append("host/user/3.jsonl", numbered(number, number + 1))
        resting.set_age("host/user/3.jsonl", days=0)
        assert resting.pass_through() == texts(number, number + 1)


@pytest.mark.parametrize("sets_back_times", [False, True])
def test_what_comes_into_a_directory_without_change_is_found_by_the_next_scan(
    resting: Spool, sets_back_times: bool
) -> None:
    for number in range(100, 100 + 2 * REST_SCANS):
        resting.append(f"host/user/{number}.jsonl", numbered(number, number + 1))
        if sets_back_times:  # as a program does that copies a tree
            resting.set_age("host/user", days=2)
        assert resting.pass_through() == texts(number, number + 1)
        resting.set_age("host/user", days=2)
        resting.pass_through()


def test_on_a_file_system_that_does_not_keep_the_times_of_directories_every_scan_soon_lists_them_all(
    resting: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("piper.spool.rest._times", lambda _status: (1, 2, 3, 4))
    resting.restart()
    resting.pass_through()
    resting.append("host/user/100.jsonl", numbered(100, 101))
    assert resting.believe(REST_SCANS) == texts(100, 101)
    for number in range(200, 200 + REST_SCANS):
        resting.append(f"host/user/{number}.jsonl", numbered(number, number + 1))
        assert resting.pass_through() == texts(number, number + 1)


# ---- lines ---------------------------------------------------------------------------------------------------------


def test_lines_come_with_their_offset_and_number(spool: Spool) -> None:
    spool.append(A, b'{"n": 0}\n\n{"n": 1}\r\n')
    spool.pass_through()
    spool.append(A, b'{"n": 2}\n')
    spool.pass_through()
    assert [(line.offset, line.number, line.text) for line in spool.lines] == [
        (0, 1, b'{"n": 0}'), (9, 2, b""), (10, 3, b'{"n": 1}\r'), (20, 4, b'{"n": 2}'),
    ]  # fmt: skip


def test_a_bom_is_not_part_of_the_first_line(spool: Spool) -> None:
    spool.append(A, b"\xef\xbb\xbf" + numbered(0, 2))
    spool.pass_through()
    assert [(line.offset, line.number, line.text) for line in spool.lines] == [
        (3, 1, b'{"n": 0}'), (12, 2, b'{"n": 1}'),
    ]  # fmt: skip


@pytest.mark.parametrize("restart", [False, True])
def test_a_cut_line_is_read_once_it_is_complete(spool: Spool, restart: bool) -> None:
    spool.append(A, numbered(0, 2) + b'{"n": ')
    assert spool.pass_through() == texts(0, 2)
    spool.clock.pass_seconds(30)
    if restart:
        spool.restart()
    spool.append(A, b"2}\n")
    assert spool.pass_through() == texts(2, 3)
    assert not spool.skips


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("before", [b"", b'{"n": 0}\n'])
def test_the_cut_line_of_a_deleted_file_is_handed_on_once(spool: Spool, before: bytes, restart: bool) -> None:
    spool.append(A, before + b'{"n": 1, "cut')
    spool.pass_through()
    if restart:
        spool.restart()
    spool.delete(A)
    spool.append(B, b"\n")
    spool.believe()
    spool.restart()
    spool.believe()
    assert spool.rejected() == [("truncated_line", len(before), 13, b'{"n": 1, "cut')]
    assert spool.events["vanished"] == 1
    assert spool.lost_bytes == 0


def test_bytes_that_were_seen_and_deleted_unread_are_counted(spool: Spool) -> None:
    half_read(spool)
    unread = len(numbered(10, 20))
    spool.scan()
    spool.delete(A)
    spool.append(B, b"\n")
    spool.believe()
    assert spool.texts == [*texts(0, 10), b""]
    assert spool.lost_bytes == unread


def test_an_abandoned_batch_comes_again_exactly(spool: Spool) -> None:
    """Also where one source had several turns in that batch, the later ones from checkpoints that never came to be."""
    everything = numbered(0, 20_000)
    spool.append(A, everything + b'{"cut": ')
    spool.append(B, numbered(0, 3))
    spool.scan()
    batch = Batch()
    for _ in range(3):
        spool.tailer.read(batch, 1)
    turns = [span.start_offset for span in batch.spans if span.source.path == A.encode()]
    assert len(turns) > 1, "one source, several turns"
    spool.tailer.abandon(batch)
    spool.tailer.abandon(spool.gather())
    spool.ingest()
    assert [line.text for line in spool.lines if line.path == A] == everything.splitlines()
    assert [line.text for line in spool.lines if line.path == B] == texts(0, 3)
    spool.append(A, b"1}\n")
    assert spool.pass_through() == [b'{"cut": 1}']


def test_an_abandoned_truncated_line_comes_again(spool: Spool) -> None:
    spool.append(A, b"cut")
    spool.append(B, b"\n")
    spool.pass_through()
    spool.delete(A)
    while not spool.tailer._tracker.ledger.lost:
        spool.scan()
        spool.clock.pass_seconds(60)
    spool.tailer.abandon(spool.gather())
    spool.ingest()
    assert spool.rejected() == [("truncated_line", 0, 3, b"cut")]


# ---- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True], ids=["daemon up", "daemon down"])
@pytest.mark.parametrize("target", ["host/user/a.1.jsonl", "host/other/deep/a.jsonl"])
@pytest.mark.parametrize("successor", [False, True])
def test_a_renamed_file_keeps_its_offset(spool: Spool, target: str, restart: bool, successor: bool) -> None:
    half_read(spool)
    if restart:
        spool.restart()
    spool.rename(A, target)
    if successor:
        spool.append(A, numbered(100, 103))
    came = spool.pass_through()
    assert sorted(came) == sorted(texts(10, 20) + (texts(100, 103) if successor else []))
    assert spool.events == {"renamed": 1}
    assert spool.believe() == []
    assert spool.lost_bytes == 0


@pytest.mark.parametrize("restart", [False, True], ids=["daemon up", "daemon down"])
def test_a_successor_that_is_seen_before_the_renamed_file_costs_nothing(spool: Spool, restart: bool) -> None:
    half_read(spool)
    spool.scan()  # its unread bytes are known, and it leaves with them
    elsewhere = spool.root.parent / "on the way"
    spool.path(A).rename(elsewhere)
    spool.append(A, numbered(100, 103))
    assert spool.pass_through() == texts(100, 103)
    if restart:
        spool.restart()
    elsewhere.rename(spool.path("host/user/a.1.jsonl"))
    assert spool.pass_through() == texts(10, 20)
    assert spool.believe() == []
    assert spool.lost_bytes == 0
    spool.scan()
    assert not spool.gather(), "nobody doubts it any more"


@pytest.mark.parametrize("order", [(A, "host/user/a.1.jsonl"), ("host/user/a.1.jsonl", A)])
def test_hints_report_a_rename_in_either_order(spool: Spool, order: tuple[str, str]) -> None:
    half_read(spool)
    spool.rename(A, "host/user/a.1.jsonl")
    spool.append(A, numbered(100, 103))
    came = []
    for name in order:
        spool.tailer.look(name.encode())
        came += spool.ingest()
    assert sorted(came) == sorted(texts(10, 20) + texts(100, 103))
    assert spool.believe() == []


@pytest.mark.parametrize("restart", [False, True])
def test_a_rename_of_a_file_of_which_no_line_was_read_keeps_its_cut_line(spool: Spool, restart: bool) -> None:
    spool.append(A, b'{"n": ')
    spool.pass_through()
    if restart:
        spool.restart()
    spool.rename(A, B)
    spool.append(A, b"\n")
    spool.believe()
    spool.append(B, b"1}\n")
    assert spool.pass_through() == [b'{"n": 1}']
    assert (spool.skips, spool.lost_bytes) == ([], 0)


@pytest.mark.parametrize("restart", [False, True])
def test_rotated_and_swapped_names_are_told_apart(spool: Spool, restart: bool) -> None:
    names = [f"host/user/{name}.jsonl" for name in ("log", "log.1", "log.2")]
    for index, name in enumerate(names):
        spool.append(name, numbered(index * 100, index * 100 + 10))
    spool.pass_through()
    for index, name in enumerate(names):
        spool.append(name, numbered(index * 100 + 10, index * 100 + 20))
    if restart:
        spool.restart()
    spool.rename(names[2], "host/user/log.3.jsonl")
    spool.rename(names[1], names[2])
    spool.rename(names[0], names[1])
    spool.append(names[0], numbered(900, 910))
    came = spool.pass_through()
    assert sorted(came) == sorted(texts(10, 20) + texts(110, 120) + texts(210, 220) + texts(900, 910))
    spool.path(names[0]).rename(spool.path("host/user/x"))
    spool.rename(names[1], names[0])
    spool.path("host/user/x").rename(spool.path(names[1]))
    spool.append(names[0], numbered(20, 22))
    spool.append(names[1], numbered(910, 912))
    assert sorted(spool.pass_through()) == sorted(texts(20, 22) + texts(910, 912))
    assert spool.believe() == []


def test_a_hard_link_is_read_once_and_goes_on_under_the_name_that_is_left(spool: Spool) -> None:
    half_read(spool)
    os.link(spool.path(A), spool.path(B))
    assert spool.pass_through() == texts(10, 20)
    assert len(spool.tailer) == 1
    spool.delete(A)
    spool.append(B, numbered(20, 30))
    assert spool.pass_through() == texts(20, 30)
    assert spool.believe() == []


def test_a_thousand_files_that_begin_alike_are_all_read(spool: Spool) -> None:
    header = b'{"header": "' + b"x" * 4096 + b'"}\n'
    for number in range(1000):
        spool.append(f"host/user{number % 7}/{number}.jsonl", header + b'{"n": %d}\n' % number)
    came = spool.pass_through()
    assert sorted(line for line in came if b"header" not in line) == sorted(texts(0, 1000))
    assert len(came) == 2000


def test_names_may_hold_any_bytes(spool: Spool) -> None:
    names = [b"host/user/\xff\xfe.jsonl", b"h'o\"st/us\ner/a'; DROP TABLE x\n.jsonl", "höst/üser/日本.jsonl".encode()]
    for name in names:
        spool.append(name, numbered(0, 2))
    assert len(spool.pass_through()) == 6
    spool.restart()
    for name in names:
        spool.append(name, numbered(2, 3))
    assert spool.pass_through() == texts(2, 3) * 3
    assert r"host/user/\xff\xfe.jsonl" in {line.path for line in spool.lines}


# ---- other content under the same name -----------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
def test_a_new_file_with_the_same_name_size_and_beginning_is_read_from_its_start(spool: Spool, restart: bool) -> None:
    header = b'{"header": "' + b"x" * 2000 + b'"}\n'
    spool.append(A, header + numbered(100, 200))
    spool.pass_through()
    old_inode = spool.path(A).stat().st_ino
    spool.append(B, b"")  # takes whatever inode number is free, where the file system uses them again
    os.link(spool.path(A), spool.root / "keeps the inode number taken")
    spool.delete(A)
    spool.append(A, header + numbered(200, 300))
    assert spool.path(A).stat().st_ino != old_inode
    if restart:
        spool.restart()
    assert spool.pass_through() == [header[:-1], *texts(200, 300)]
    assert spool.believe() == []


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("count", [5, 10, 50], ids=["shorter", "same size", "past the offset"])
def test_the_same_inode_with_other_content_is_read_from_its_start(spool: Spool, restart: bool, count: int) -> None:
    """Truncated and refilled, or deleted and its inode number used again: both look like this."""
    header = b'{"same": "first line"}\n'
    spool.append(A, header + numbered(100, 110))
    spool.pass_through()
    spool.rewrite(A, header + numbered(500, 500 + count))
    os.utime(spool.path(A), ns=(0, 1_700_000_000_000_000_000))
    came = []
    for _ in range(5):
        if restart:
            spool.restart()
        came += spool.pass_through()
        spool.clock.pass_seconds(60)
    assert came == [header[:-1], *texts(500, 500 + count)]
    assert spool.believe() == []


def test_an_inode_number_that_comes_again_at_another_path_is_another_file(spool: Spool) -> None:
    spool.append(A, numbered(100, 110))
    spool.pass_through()
    spool.rename(A, B)
    spool.rewrite(B, numbered(200, 250))  # the same inode number at another path, longer
    assert spool.pass_through() == texts(200, 250)
    assert spool.believe() == []
    assert spool.events["vanished"] == 1


def test_an_inode_number_that_comes_again_at_both_paths_is_told_apart_by_content(spool: Spool) -> None:
    spool.append(A, numbered(100, 110))
    spool.pass_through()
    spool.rename(A, B)
    spool.rewrite(B, numbered(200, 210))
    spool.tailer.look(B.encode())
    assert spool.ingest() == texts(200, 210)
    spool.rename(B, A)  # where a source with this inode number, but other content, is known
    spool.append(A, numbered(210, 212))
    assert spool.believe() == texts(210, 212)
    assert spool.events["renamed"] == 1


def test_a_source_that_lost_its_name_is_not_read_from_what_stands_there_now(spool: Spool) -> None:
    """Not even when that has its inode number again."""
    half_read(spool)
    spool.scan()
    away = spool.root.parent / "away"
    spool.path(A).rename(away)
    spool.append(A, numbered(500, 501))
    spool.tailer.look(A.encode())
    spool.delete(A)
    away.write_bytes(numbered(600, 650))
    away.rename(spool.path(A))
    spool.tailer.look(A.encode())
    came = []
    for _ in range(20):
        came += spool.ingest()
        spool.clock.pass_seconds(1)
        spool.tailer.poll()
    assert came == texts(600, 650)
    assert spool.believe() == []


def test_a_refill_whose_events_end_alike_at_the_same_places_is_seen(spool: Spool) -> None:
    """Same first 4 KiB, lines of the same length, and the same last bytes of each: only the numbers differ."""
    header = b'{"header": "' + b"x" * 4096 + b'"}\n'
    first, second = (
        b"".join(b'{"n": %d, "pad": "%s"}\n' % (number, b"y" * 600) for number in range(start, start + 50))
        for start in (1000, 2000)
    )
    spool.append(A, header + first)
    spool.pass_through()
    spool.rewrite(A, header + second + numbered(0, 3))
    assert spool.believe() == [header[:-1], *second.splitlines(), *texts(0, 3)]


def test_inode_numbers_that_a_file_system_uses_again_lose_nothing(spool: Spool) -> None:
    numbers, inodes = itertools.count(100), []
    for round_number in range(60):
        name = f"host/user/{round_number % 3}.jsonl"
        start = next(numbers) * 100
        spool.append(name, numbered(start, start + 5 + round_number))
        inodes.append(spool.path(name).stat().st_ino)
        for _ in range(4):
            spool.pass_through()
            spool.clock.pass_seconds(2)
        assert set(texts(start, start + 5 + round_number)) <= set(spool.texts)
        spool.delete(name)
    if len(set(inodes)) == len(inodes):
        pytest.skip("this file system gives each file a number of its own")
    assert len(spool.texts) == len(set(spool.texts))


def test_a_size_that_is_small_for_a_minute_makes_nothing_come_again(spool: Spool) -> None:
    content = numbered(0, 2000)
    spool.append(A, content)
    spool.pass_through()
    os.truncate(spool.path(A), 50)
    for _ in range(6):
        assert spool.pass_through() == []
        spool.restart()
        spool.clock.pass_seconds(10)
    spool.rewrite(A, content + numbered(2000, 2002))
    assert spool.believe() == texts(2000, 2002)
    assert spool.events == {}


def test_a_truncation_is_believed_by_polling_alone(spool: Spool) -> None:
    half_read(spool)
    spool.pass_through()
    spool.rewrite(A, numbered(500, 503))
    came = []
    for _ in range(100):
        spool.tailer.poll()
        came += spool.ingest()
        spool.clock.pass_seconds(1)
    assert came == texts(500, 503)
    assert spool.events == {"truncated": 1}


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("count", [2, 30], ids=["below the offset", "past the offset"])
def test_the_cut_line_of_a_rewritten_file_is_handed_on_and_nothing_else_is_lost(
    spool: Spool, count: int, restart: bool
) -> None:
    spool.append(A, numbered(10, 20) + b"cut")
    spool.pass_through()
    spool.rewrite(A, numbered(50, 50 + count))
    spool.pass_through()
    if restart:
        spool.restart()
    assert spool.believe() == texts(50, 50 + count)
    assert spool.rejected() == [("truncated_line", 100, 3, b"cut")]
    assert spool.lost_bytes == 0


def test_a_file_that_was_one_cut_line_and_holds_another_text_now_is_another_file(spool: Spool) -> None:
    spool.append(A, b'{"cut')
    spool.pass_through()
    spool.rewrite(A, numbered(0, 3))
    assert spool.believe() == texts(0, 3)
    assert spool.rejected() == [("truncated_line", 0, 5, b'{"cut')]


def test_a_file_whose_beginning_alone_differs_is_another_file(spool: Spool) -> None:
    content = numbered(100, 1000)
    spool.append(A, content)
    spool.pass_through()
    with spool.path(A).open("r+b") as stream:
        stream.write(b'{"N": 100}')
    assert spool.believe() == [b'{"N": 100}', *texts(101, 1000)]


def test_a_restart_between_two_turns_at_a_file_reads_the_rest(spool: Spool) -> None:
    spool.append(A, numbered(0, 20_000))
    spool.scan()
    batch = Batch()
    spool.tailer.read(batch, 1)
    spool.manifest.commit(batch)
    spool.restart()
    came = [line.text for line in lines_of(batch)] + spool.pass_through()
    assert came == texts(0, 20_000)


def test_a_refill_between_two_turns_of_one_batch_yields_no_piece_of_a_line(spool: Spool) -> None:
    spool.append(A, numbered(100_000, 130_000))
    spool.scan()
    batch = Batch()
    spool.tailer.read(batch, 1)
    assert spool.tailer.ready
    spool.rewrite(A, b'{"x": 1, "y": 22}\n' * 30_000)
    while spool.tailer.ready:
        spool.tailer.read(batch, SLICE_BYTES)
    assert {len(line.text) for line in lines_of(batch)} == {13}
    spool.manifest.commit(batch)
    spool.tailer.applied(batch)
    came = spool.believe()
    assert came == [b'{"x": 1, "y": 22}'] * 30_000


def test_the_clock_may_step_back_while_a_truncation_waits_to_be_believed(spool: Spool) -> None:
    half_read(spool)
    spool.pass_through()
    spool.rewrite(A, numbered(500, 503))
    spool.pass_through()
    spool.clock.utc_now -= 3600
    assert spool.believe() == texts(500, 503)


# ---- absence -------------------------------------------------------------------------------------------------------


def test_a_spool_that_is_missing_or_empty_for_minutes_loses_no_state(spool: Spool) -> None:
    half_read(spool)
    away = spool.root.with_name("away")
    spool.root.rename(away)
    for _ in range(10):
        spool.scan()
        assert "No such file" in spool.tailer.spool_error
        spool.root.mkdir()
        spool.scan()
        assert "empty" in spool.tailer.spool_error
        assert spool.ingest() == []
        spool.root.rmdir()
        spool.restart()
        spool.clock.pass_seconds(60)
    away.rename(spool.root)
    assert spool.pass_through() == texts(10, 20)
    assert spool.tailer.spool_error == ""
    assert "vanished" not in spool.events
    assert spool.lost_bytes == 0


def test_an_empty_spool_of_which_nothing_is_known_is_no_error(spool: Spool) -> None:
    spool.scan()
    assert spool.tailer.spool_error == ""
    assert spool.tailer.scanned


def test_a_file_that_is_absent_for_hours_goes_on_where_it_was(spool: Spool) -> None:
    half_read(spool)
    spool.append(B, b"\n")
    spool.scan()
    away = spool.root.parent / "away"
    spool.path(A).rename(away)
    for _ in range(10):
        spool.scan()
        spool.clock.pass_seconds(600)
    assert spool.events["vanished"] == 1
    away.rename(spool.path(A))
    assert sorted(spool.pass_through()) == [b"", *texts(10, 20)]


@pytest.mark.parametrize("restart", [False, True])
def test_a_file_that_flickers_while_it_is_read_is_read_later(spool: Spool, restart: bool) -> None:
    """It is gone between the scan and its turn, and comes back unchanged."""
    half_read(spool)
    spool.scan()
    away = spool.root.parent / "away"
    spool.path(A).rename(away)
    assert spool.ingest() == []
    away.rename(spool.path(A))
    if restart:
        spool.restart()
    assert spool.pass_through() == texts(10, 20)


def test_a_vanished_file_is_forgotten_after_a_month_and_not_before(spool: Spool) -> None:
    spool.append(A, numbered(0, 5))
    spool.append(B, b"\n")
    spool.pass_through()
    spool.delete(A)
    spool.believe()
    spool.clock.pass_seconds(29 * 86400)
    spool.scan()
    assert len(spool.tailer) == 2
    spool.clock.pass_seconds(2 * 86400)
    spool.scan()
    assert len(spool.tailer) == 1


# ---- one device or two ---------------------------------------------------------------------------------------------

TWO_DEVICES = """
import os, sys
from pathlib import Path
from tests.support.spool import Spool, numbered, texts
spool = Spool(Path(sys.argv[1]))
names = ["one/user/a", "two/user/a", "two/user/b", "one/user/b"]
for name in names:  # one after the other, so that either device is the first to be known
    spool.append(name + ".jsonl", numbered(0, 10))
    assert spool.pass_through() == texts(0, 10)
found = [spool.path(name + ".jsonl").stat() for name in names]
assert found[0].st_ino == found[1].st_ino != found[2].st_ino == found[3].st_ino
assert found[0].st_dev != found[1].st_dev
known = [spool.source(name + ".jsonl") for name in names]
for number, name in enumerate(names):
    spool.append(name + ".jsonl", numbered(100 + number, 101 + number))
    spool.rename(name + ".jsonl", name + ".1.jsonl")
assert sorted(spool.pass_through()) == texts(100, 104)
assert [spool.source(name + ".1.jsonl") for name in names] == known
assert spool.events == {"renamed": 4}
assert spool.believe() == []
"""


def test_files_on_two_devices_may_have_one_inode_number(tmp_path: Path) -> None:
    mounts = " && ".join(
        f"mkdir -p '{tmp_path}/raw/{name}' && mount -t tmpfs none '{tmp_path}/raw/{name}'" for name in ("one", "two")
    )
    unshare = [shutil.which("unshare") or "unshare", "-rm", "sh", "-c"]
    try:
        allowed = subprocess.run([*unshare, mounts], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("this test mounts two file systems, which needs user namespaces")
    run = f"{mounts} && exec '{sys.executable}' -c '{TWO_DEVICES}' '{tmp_path}/raw'"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([*unshare, run], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr


def test_a_remount_that_numbers_the_device_anew_changes_nothing(spool: Spool) -> None:
    half_read(spool)
    for row in spool.manifest.rows.values():
        row.device += 1
    spool.restart()
    spool.rename(A, B)
    assert spool.pass_through() == texts(10, 20)
    assert spool.source(B).device == spool.path(B).stat().st_dev


def test_sources_of_one_name_are_told_apart_after_a_restart_whatever_their_order(spool: Spool) -> None:
    """A new file took the name of a half-read one, and both got their numbers in one commit."""
    half_read(spool)
    spool.scan()
    spool.path(A).rename(spool.root.parent / "away")
    spool.append(A, numbered(100, 103))
    spool.pass_through()
    rows: list[Source] = list(spool.manifest.rows.values())
    spool.manifest.rows = dict(enumerate(reversed(rows), 1))
    for number, row in spool.manifest.rows.items():
        row.source_id = number
    spool.restart()
    spool.append(A, numbered(103, 106))
    assert spool.pass_through() == texts(103, 106)
    (spool.root.parent / "away").rename(spool.path(B))
    assert spool.pass_through() == texts(10, 20)
