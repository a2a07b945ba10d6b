"""What no list has and somebody tries next: writers, links, names and mounts that do as they like under a piperd."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest
from tests.conftest import MakePiperd
from tests.support.event_lines import HOST, append_events, ids
from tests.support.faultfs import Rule
from tests.support.polling import wait_until
from tests.support.warehouse import event_count
from tests.torture.conftest import QUICK_DOUBTS, SETTINGS, House, append, lines

PIECE_BYTES = 173
"""No divisor of a line: nearly every append ends within one."""


def test_a_writer_that_cuts_lines_and_rotates_while_piper_reads_comes_exactly_once(house: House) -> None:
    user = "busy"
    path, parts = house.folder(user) / "a.jsonl", [lines(user, ids(f"busy-{number}", 40)) for number in range(12)]

    def write() -> None:
        for number, part in enumerate(parts):
            with path.open("ab", buffering=0) as stream:
                for start in range(0, len(part), PIECE_BYTES):
                    if start > len(part) // 2 and path.exists():  # it writes on into the file that it has open
                        path.rename(path.with_name(f"a.{number}.jsonl"))
                    stream.write(part[start : start + PIECE_BYTES])

    writer = threading.Thread(target=write)
    writer.start()
    writer.join()
    house.assert_exact(user, [event for number in range(12) for event in ids(f"busy-{number}", 40)])


def test_a_file_with_two_names_comes_once_whichever_of_them_goes(house: House) -> None:
    user = "twins"
    path = house.folder(user) / "a.jsonl"
    other = path.with_name("b.jsonl")
    append(path, lines(user, ids("tw-a", 5)))
    os.link(path, other)
    house.wait_for(user, ids("tw-a", 5))
    append(other, lines(user, ids("tw-b", 5)))
    house.wait_for(user, [*ids("tw-a", 5), *ids("tw-b", 5)])
    path.unlink()
    house.scans()
    append(other, lines(user, ids("tw-c", 5)))
    os.link(other, path)
    house.assert_exact(user, [*ids("tw-a", 5), *ids("tw-b", 5), *ids("tw-c", 5)])


def test_a_directory_that_another_one_replaces_brings_its_lines_once(house: House) -> None:
    user = "folders"
    old, new = house.folder(f"{user}/old"), house.folder(f"{user}/new")
    for name in ("a", "b"):
        append(old / f"{name}.jsonl", lines(user, ids(f"fo-old-{name}", 5)))
        append(new / f"{name}.jsonl", lines(user, ids(f"fo-new-{name}", 5)))
    expected = [event for which in ("old", "new") for name in "ab" for event in ids(f"fo-{which}-{name}", 5)]
    house.wait_for(user, expected)
    old.rename(old.with_name("aside"))
    new.rename(old)
    append(old / "a.jsonl", lines(user, ["fo-late"]))
    append(old.with_name("aside") / "a.jsonl", lines(user, ["fo-aside"]))
    house.assert_exact(user, [*expected, "fo-late", "fo-aside"])


def test_a_modification_time_in_the_future_hides_no_line(house: House) -> None:
    user = "future"
    path = house.folder(user) / "a.jsonl"
    for part in range(3):
        append(path, lines(user, ids(f"fu-{part}", 5)))
        os.utime(path, (4e9, 4e9))
        house.wait_for(user, [event for number in range(part + 1) for event in ids(f"fu-{number}", 5)])
    house.assert_exact(user, [event for number in range(3) for event in ids(f"fu-{number}", 5)])


def test_a_user_directory_that_becomes_a_link_is_not_entered_and_goes_on_when_it_is_back(
    house: House, tmp_path: Path
) -> None:
    user = "linked"
    folder = house.folder(user)
    append(folder / "a.jsonl", lines(user, ids("li-a", 5)))
    house.wait_for(user, ids("li-a", 5))
    special = house.file_events("special")
    aside = folder.rename(house.fs.backing.with_name("aside"))
    folder.symlink_to(aside)
    append(aside / "a.jsonl", lines(user, ids("li-b", 5)))
    wait_until(lambda: house.file_events("special") > special)
    house.scans()
    house.wait_for(user, ids("li-a", 5))
    folder.unlink()
    aside.rename(folder)
    house.assert_exact(user, [*ids("li-a", 5), *ids("li-b", 5)])


def test_a_read_file_that_can_be_opened_no_more_waits_until_it_can(house: House) -> None:
    user = "locked"
    path = house.folder(user) / "a.jsonl"
    append(path, lines(user, ids("lo-a", 5)))
    house.wait_for(user, ids("lo-a", 5))
    errors, vanished = house.file_events("io_error"), house.file_events("vanished")
    house.lie(Rule(f"/{HOST}/{user}/*", on=("open",), error="EACCES"))
    append(path, lines(user, ids("lo-b", 5)))
    wait_until(lambda: house.file_events("io_error") > errors)
    house.scans(30)
    assert house.file_events("io_error") - errors == 1
    house.assert_exact(user, [*ids("lo-a", 5), *ids("lo-b", 5)])
    assert house.file_events("vanished") == vanished


def test_a_pipe_in_the_place_of_a_read_file_blocks_nothing_and_a_new_file_there_is_read(house: House) -> None:
    user = "piped"
    path = house.folder(user) / "a.jsonl"
    append(path, lines(user, ids("pi-a", 5)))
    house.wait_for(user, ids("pi-a", 5))
    os.mkfifo(path.with_name("pipe"))
    path.with_name("pipe").rename(path)
    house.scans(10)
    append(path.with_name("other.jsonl"), lines(user, ids("pi-b", 5)))
    house.wait_for(user, [*ids("pi-a", 5), *ids("pi-b", 5)])
    append(path.with_name("new"), lines(user, ids("pi-c", 7)))
    path.with_name("new").rename(path)
    house.assert_exact(user, [*ids("pi-a", 5), *ids("pi-b", 5), *ids("pi-c", 7)])


def test_names_that_differ_in_case_only_or_are_as_long_as_can_be_are_files_like_others(house: House) -> None:
    user = "names"
    folder, longest = house.folder(user), "n" * 249
    for name in ("a", "A", "ä", "a\u0308", longest):
        append(folder / f"{name}.jsonl", lines(user, ids(f"na-{len(name)}-{name[:2]}", 3)))
    (folder / ("d" * 255)).mkdir()
    append(folder / ("d" * 255) / f"{longest}.jsonl", lines(user, ["na-deep"]))
    expected = [event for name in ("a", "A", "ä", "a\u0308", longest) for event in ids(f"na-{len(name)}-{name[:2]}", 3)]
    house.assert_exact(user, [*expected, "na-deep"])


def test_a_file_that_loses_its_last_bytes_and_grows_on_otherwise_is_read_anew(house: House) -> None:
    user = "regrown"
    path = house.folder(user) / "a.jsonl"
    append(path, lines(user, ids("rg-a", 20)))
    house.wait_for(user, ids("rg-a", 20))
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size - 5)
        stream.seek(0, os.SEEK_END)
        stream.write(b"\n" + lines(user, ids("rg-b", 3)))
    house.wait_for(user, [*ids("rg-a", 20), *ids("rg-b", 3)])
    # Its lines come again, which no other case here may see: this one stands at the end.
    assert house.quarantine(user) == ["invalid_json"]  # the line that lost its end; it was a row before


def test_case_23_a_connected_reader_saw_no_error_and_no_row_twice_or_gone_through_all_of_this(house: House) -> None:
    house.assert_readers_saw_no_harm()


def test_case_10_an_unmounted_spool_whose_mount_point_has_directories_is_not_taken_for_an_emptied_one(
    make_piperd: MakePiperd, raw_root: Path
) -> None:
    (raw_root / HOST / "amara").mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(raw_root)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a spool needs root")
    kept = raw_root.with_name("kept")
    kept.mkdir()
    subprocess.run(["mount", "--bind", str(raw_root), str(kept)], check=True)
    try:
        append_events(raw_root, ids("um-a", 5))
        piperd = make_piperd(SETTINGS, prefix=QUICK_DOUBTS).start_ready()
        wait_until(lambda: event_count(piperd.data_root) == 5, what=piperd.log_text)
        subprocess.run(["umount", "--lazy", str(raw_root)], check=True)
        assert "not mounted" in piperd.wait_not_ready()
        append_events(kept, ids("um-b", 5))
        subprocess.run(["mount", "--bind", str(kept), str(raw_root)], check=True)
        piperd.wait_ready()
        wait_until(lambda: event_count(piperd.data_root) == 10, what=piperd.log_text)
        assert piperd.metric("piper_lines_read_total") == 10
        assert piperd.metric("piper_file_events_total", kind="vanished") == 0
        piperd.stop()
    finally:
        for place in (raw_root, kept):
            subprocess.run(["umount", "--lazy", str(place)], check=False, capture_output=True)
