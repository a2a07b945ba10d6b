"""Cases 1-8, 10, 15, 20 and 21, and their neighbours: a real piperd reads through a file system that lies."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from tests.conftest import MakePiperd
from tests.support.event_lines import HOST, ids
from tests.support.faultfs import Rule
from tests.support.polling import wait_until
from tests.support.warehouse import catalog, event_count
from tests.torture.conftest import House, append, lines, refill


def test_case_01_a_thousand_files_with_the_same_first_4_kib_and_unique_tails_are_all_read(
    make_piperd: MakePiperd, raw_root: Path
) -> None:
    head = lines("case01", ["c01-head"])
    head = head[:-2] + b" " * (4096 - len(head)) + head[-2:]
    folder = raw_root / HOST / "case01"
    folder.mkdir(parents=True)
    for number in range(1000):
        append(folder / f"{number}.jsonl", head + lines("case01", [f"c01-{number:04d}"]))
    piperd = make_piperd({"GOLD__REFRESH_SECONDS": 3600}).start_ready()
    wait_until(lambda: event_count(piperd.data_root) > 1000, what=piperd.log_text)
    piperd.stop()
    with catalog(piperd.data_root) as con:
        found = [row[0] for row in con.execute("SELECT event_id FROM silver_events ORDER BY ALL").fetchall()]
    assert found == [*(f"c01-{number:04d}" for number in range(1000)), "c01-head"]


def test_case_02_a_new_file_of_the_same_name_size_and_header_is_read_from_its_start(house: House) -> None:
    user = "case02"
    path = house.folder(user) / "a.jsonl"
    for generation in ("one", "two"):
        path.unlink(missing_ok=True)
        append(path, b"\n" * 2048 + lines(user, [f"c02-{generation}-{n}" for n in range(20)]))
        house.wait_for(user, [f"c02-{g}-{n}" for g in ("one", "two")[: 1 + (generation == "two")] for n in range(20)])
    house.assert_exact(user, [f"c02-{g}-{n}" for g in ("one", "two") for n in range(20)])


def test_case_03_an_inode_number_that_comes_again_skips_nothing(house: House) -> None:
    user = "case03"
    folder, expected, inodes = house.folder(user), list[str](), list[int]()
    for number in range(6):  # ext4 and others give the number again at once; each file is longer than the one before
        path = folder / ("same.jsonl" if number % 2 else f"other-{number}.jsonl")
        new = [f"c03-{number}-{n}" for n in range(10 + 5 * number)]
        append(path, lines(user, new))
        inodes.append(path.stat().st_ino)
        expected += new
        house.wait_for(user, expected)
        path.unlink()
    house.assert_exact(user, expected)
    if len(set(inodes)) == len(inodes):
        pytest.skip("this file system gave no inode number twice")


@pytest.mark.parametrize("down", [False, True], ids=["daemon-up", "daemon-down"])
def test_case_04_a_half_read_file_is_renamed_and_a_new_one_takes_its_name(house: House, down: bool) -> None:
    user = f"case04{down}".lower()
    folder, prefix = house.folder(user), f"c04{down}"
    path = folder / "a.jsonl"
    append(path, lines(user, ids(f"{prefix}-first", 20)))
    house.wait_for(user, ids(f"{prefix}-first", 20))
    if down:
        house.piperd.stop()
    append(path, lines(user, ids(f"{prefix}-rest", 20)))
    (folder / "deeper").mkdir()
    path.rename(folder / "deeper" / "a.1.jsonl")
    append(path, lines(user, ids(f"{prefix}-new", 20)))
    if down:
        house.piperd.start_ready()
    append(folder / "deeper" / "a.1.jsonl", lines(user, ids(f"{prefix}-late", 5)))
    expected = [event for part, n in (("first", 20), ("rest", 20), ("new", 20), ("late", 5))
                for event in ids(f"{prefix}-{part}", n)]  # fmt: skip
    house.assert_exact(user, expected)


def test_case_05_truncated_shorter_with_the_same_first_line_comes_once_over_two_restarts(house: House) -> None:
    user = "case05"
    path = house.folder(user) / "a.jsonl"
    head = b'{"a header": "that every file has"}\n'
    append(path, head + lines(user, ids("c05-old", 30)))
    house.wait_for(user, ids("c05-old", 30))
    refill(path, head + lines(user, ids("c05-new", 5)))
    house.restart()
    append(path, lines(user, ids("c05-more", 5)))
    house.restart()
    # The header is no event. The same bad line at the same place of the same file is one entry.
    expected = [*ids("c05-old", 30), *ids("c05-new", 5), *ids("c05-more", 5)]
    house.assert_exact(user, expected, ["missing_field"])


def test_case_06_a_refill_past_the_old_offset_yields_no_piece_of_a_line(house: House) -> None:
    user = "case06"
    path = house.folder(user) / "a.jsonl"
    append(path, lines(user, ids("c06-old", 20)))
    house.wait_for(user, ids("c06-old", 20))
    house.piperd.stop()
    refill(path, b"\n" * 7 + lines(user, ids("c06-new", 60)))
    house.piperd.start_ready()
    house.assert_exact(user, [*ids("c06-old", 20), *ids("c06-new", 60)])


def test_case_07_a_size_below_the_committed_offset_makes_nothing_come_again(house: House) -> None:
    user = "case07"
    path = house.folder(user) / "a.jsonl"
    append(path, lines(user, ids("c07-a", 30)))
    house.wait_for(user, ids("c07-a", 30))
    read = house.piperd.metric("piper_lines_read_total")
    truncated = house.file_events("truncated")
    with house.patient():
        house.lie(Rule(f"/{HOST}/{user}/*", size=100))
        house.scans(8)  # the doubt is there, and too young to be believed
        append(path, lines(user, ids("c07-b", 3)))
        house.lie()
        house.wait_for(user, [*ids("c07-a", 30), *ids("c07-b", 3)])
    house.assert_exact(user, [*ids("c07-a", 30), *ids("c07-b", 3)])
    assert house.piperd.metric("piper_lines_read_total") - read == 3
    assert house.file_events("truncated") == truncated


def test_case_08_a_page_that_reads_as_nul_for_seconds_yields_its_rows_intact(house: House) -> None:
    user = "case08"
    path = house.folder(user) / "a.jsonl"
    append(path, lines(user, ids("c08-a", 10)))
    house.wait_for(user, ids("c08-a", 10))
    deferred, lost = house.file_events("nul_deferred"), house.piperd.metric("piper_lost_bytes_total")
    with house.patient():
        house.lie(Rule(f"/{HOST}/{user}/*", nul_from=path.stat().st_size + 700))
        append(path, lines(user, ids("c08-b", 20)))
        wait_until(lambda: house.file_events("nul_deferred") > deferred)
        house.lie()
        house.wait_for(user, [*ids("c08-a", 10), *ids("c08-b", 20)])
    house.assert_exact(user, [*ids("c08-a", 10), *ids("c08-b", 20)])
    assert house.piperd.metric("piper_lost_bytes_total") == lost


@pytest.mark.parametrize("fault", ["EIO", "ESTALE", "ENOENT", "empty"])
def test_case_10_a_spool_root_that_fails_keeps_every_state_and_says_so(house: House, fault: str) -> None:
    user = f"case10{fault}".lower()
    path = house.folder(user) / "a.jsonl"
    append(path, lines(user, ids(f"c10{fault}-a", 10)))
    house.wait_for(user, ids(f"c10{fault}-a", 10))
    read, vanished = house.piperd.metric("piper_lines_read_total"), house.file_events("vanished")
    broken = Rule("/", shows=0) if fault == "empty" else Rule("*", on=("stat", "list", "open", "read"), error=fault)
    house.lie(broken)
    assert "spool" in house.piperd.wait_not_ready()
    append(path, lines(user, ids(f"c10{fault}-b", 5)))
    house.lie()
    house.piperd.wait_ready()
    house.assert_exact(user, [*ids(f"c10{fault}-a", 10), *ids(f"c10{fault}-b", 5)])
    assert house.piperd.metric("piper_lines_read_total") - read == 5
    assert house.file_events("vanished") == vanished


def test_case_11_a_directory_that_turns_eacces_and_back_keeps_its_state(house: House) -> None:
    user = "case11"
    path = house.folder(user) / "a.jsonl"
    append(path, lines(user, ids("c11-a", 10)))
    house.wait_for(user, ids("c11-a", 10))
    errors, vanished = house.file_events("io_error"), house.file_events("vanished")
    house.lie(Rule(f"/{HOST}/{user}*", on=("list", "open"), error="EACCES"))
    append(path, lines(user, ids("c11-b", 5)))
    wait_until(lambda: house.file_events("io_error") > errors)
    house.scans(45)  # longer than a missing file is doubted
    house.assert_exact(user, [*ids("c11-a", 10), *ids("c11-b", 5)])
    assert house.file_events("vanished") == vanished


def test_case_15_half_a_line_waits_over_a_restart_and_becomes_a_fragment_when_its_file_goes(house: House) -> None:
    user = "case15"
    whole, cut = house.folder(user) / "whole.jsonl", house.folder(user) / "cut.jsonl"
    line = lines(user, ["c15-half"])
    append(whole, lines(user, ["c15-1"]) + line[:100])
    append(cut, lines(user, ["c15-2"]) + line[:80])
    house.wait_for(user, ["c15-1", "c15-2"])
    house.scans()
    house.restart()
    append(whole, line[100:])
    cut.unlink()
    wait_until(lambda: house.quarantine(user))
    house.assert_exact(user, ["c15-1", "c15-2", "c15-half"], ["truncated_line"])


def test_case_20_what_could_be_read_of_a_deleted_file_is_there_and_the_rest_is_counted(house: House) -> None:
    user = "case20"
    path = house.folder(user) / "a.jsonl"
    append(path, lines(user, ids("c20-a", 10)))
    house.wait_for(user, ids("c20-a", 10))
    known, lost = path.stat().st_size, house.piperd.metric("piper_lost_bytes_total")
    # The new size is seen, its bytes are not: they cannot be read while the file is there.
    house.lie(Rule(f"/{HOST}/{user}/*", on=("read",), error="EIO"))
    append(path, lines(user, ids("c20-b", 10)))
    gone = path.stat().st_size - known
    house.scans(5)
    path.unlink()
    wait_until(lambda: house.piperd.metric("piper_lost_bytes_total") > lost)
    assert house.piperd.metric("piper_lost_bytes_total") - lost == gone
    house.assert_exact(user, ids("c20-a", 10))


def test_case_21_what_is_no_regular_file_is_reported_once_and_never_followed(house: House, tmp_path: Path) -> None:
    user = "case21"
    folder = house.folder(user)
    outside = tmp_path / "outside.jsonl"
    outside.write_bytes(lines(user, ["c21-outside"]))
    special = house.file_events("special")
    os.mkfifo(folder / "pipe.jsonl")
    server = socket.socket(socket.AF_UNIX)
    here = os.open(folder, os.O_PATH)
    try:
        server.bind(f"/proc/self/fd/{here}/socket.jsonl")
    finally:
        os.close(here)
        server.close()
    (folder / "directory.jsonl").mkdir()
    append(folder / "directory.jsonl" / "inner.jsonl", lines(user, ["c21-inner"]))
    (folder / "link.jsonl").symlink_to(outside)
    (folder / "loop.jsonl").symlink_to("loop.jsonl")
    (folder / "up").symlink_to("..")
    append(folder / "plain.jsonl", lines(user, ["c21-plain"]))
    # The mount decides who may read: piperd runs as root here, whom no mode keeps out.
    house.lie(Rule(f"/{HOST}/{user}/locked.jsonl", on=("open",), error="EACCES"))
    errors = house.file_events("io_error")
    append(folder / "locked.jsonl", lines(user, ["c21-locked"]))
    wait_until(lambda: house.file_events("special") - special >= 6 and house.file_events("io_error") > errors)
    house.scans()
    assert house.file_events("io_error") - errors == 1
    house.assert_exact(user, ["c21-locked", "c21-plain"])
    assert house.file_events("special") - special == 6


# ---- not in the list -------------------------------------------------------------------------------------------------


def test_a_listing_that_fails_behind_its_first_entries_takes_nothing_for_gone(house: House) -> None:
    user = "partial"
    for number in range(6):
        append(house.folder(user) / f"{number}.jsonl", lines(user, [f"p-{number}"]))
    expected = [f"p-{number}" for number in range(6)]
    house.wait_for(user, expected)
    vanished = house.file_events("vanished")
    house.lie(Rule(f"/{HOST}/{user}", shows=2, then="EIO"))
    house.scans(45)
    assert house.file_events("vanished") == vanished
    house.assert_exact(user, expected)


def test_a_place_that_cannot_be_read_is_told_and_the_lines_before_it_are_taken(house: House) -> None:
    user = "stale"
    path = house.folder(user) / "a.jsonl"
    house.lie(Rule(f"/{HOST}/{user}/*", on=("read",), error="ESTALE", from_offset=128 * 1024))
    errors = house.file_events("io_error")
    append(path, lines(user, ids("stale", 1500)))
    wait_until(lambda: house.file_events("io_error") > errors)
    assert 0 < house.silver(user).total() < 1500
    house.assert_exact(user, ids("stale", 1500))


def test_a_copytruncate_rotation_comes_once(house: House) -> None:
    user = "copytruncate"
    path = house.folder(user) / "a.jsonl"
    append(path, lines(user, ids("ct-a", 10)))
    house.wait_for(user, ids("ct-a", 10))
    refill(path, b"")
    house.scans(5)
    append(path, lines(user, ids("ct-b", 3)))
    house.assert_exact(user, [*ids("ct-a", 10), *ids("ct-b", 3)])


def test_a_file_that_a_directory_replaces_and_that_comes_back_goes_on(house: House) -> None:
    user = "swapped"
    folder = house.folder(user)
    path = folder / "a.jsonl"
    append(path, lines(user, ids("sw-a", 5)))
    house.wait_for(user, ids("sw-a", 5))
    path.rename(folder / "kept")
    path.mkdir()
    house.scans(5)
    path.rmdir()
    append(folder / "kept", lines(user, ids("sw-b", 5)))
    (folder / "kept").rename(path)
    house.assert_exact(user, [*ids("sw-a", 5), *ids("sw-b", 5)])


def test_a_host_folder_that_is_renamed_brings_nothing_again(house: House) -> None:
    user = "moved"
    other = house.fs.backing / "ws-old"
    (other / user).mkdir(parents=True)
    append(other / user / "a.jsonl", lines(user, ids("hf-a", 10)))
    house.wait_for(user, ids("hf-a", 10))
    read = house.piperd.metric("piper_lines_read_total")
    new = other.rename(house.fs.backing / "ws-new")
    append(new / user / "a.jsonl", lines(user, ids("hf-b", 2)))
    house.assert_exact(user, [*ids("hf-a", 10), *ids("hf-b", 2)])
    assert house.piperd.metric("piper_lines_read_total") - read == 2


def test_a_modification_time_that_goes_back_hides_no_line(house: House) -> None:
    user = "backwards"
    path = house.folder(user) / "a.jsonl"
    append(path, lines(user, ids("bw-a", 5)))
    house.wait_for(user, ids("bw-a", 5))
    append(path, lines(user, ids("bw-b", 5)))
    os.utime(path, ns=(0, 0))
    house.assert_exact(user, [*ids("bw-a", 5), *ids("bw-b", 5)])


def test_slow_reads_hold_up_no_other_answer(house: House) -> None:
    user = "slow"
    house.lie(Rule(f"/{HOST}/{user}/*", on=("open",), seconds=0.5))
    append(house.folder(user) / "a.jsonl", lines(user, ids("slow", 5)))
    house.wait_for(user, ids("slow", 5))
    assert json.loads(house.piperd.get("/readyz")[1])
    house.assert_exact(user, ids("slow", 5))


def test_case_23_a_connected_reader_saw_no_error_and_no_row_twice_or_gone_through_all_of_this(house: House) -> None:
    house.assert_readers_saw_no_harm()
