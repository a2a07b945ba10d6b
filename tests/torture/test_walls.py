"""Nobody gets in: who writes to the spool steers no terminal, opens no other file, and reads nothing of piper's."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.commands import Place, until
from tests.support.odd_lines import dump, full_event

from piper.spool.discover import scan_spool
from piper.spool.open import look_at, open_to_list, open_to_read

EVIL = "a\x1b[2J\x1b]0;title\x07\x9b31m\u202egpj\r\nb"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "raw").mkdir()
    return Place(tmp_path)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def too_open(root: Path) -> list[str]:
    """What others may open, or the group may write."""
    found = []
    for path in [root, *root.rglob("*")]:
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            continue
        forbidden = 0o077 if stat.S_ISSOCK(mode) or path.name in {"mask.key", "mask.names"} else 0o027
        if mode & forbidden:
            found.append(f"{stat.filemode(mode)} {path.relative_to(root)}")
    return found


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_nothing_under_the_data_root_is_open_to_others_whatever_the_umask(place: Place, mask: int) -> None:
    place.simulate(300, malformed_ratio=0.1)  # some for sure: a file of quarantine is waited for
    with umask(mask):
        with place.piperd():
            until(lambda: any(place.layout.quarantine.rglob("*.jsonl")) and any(place.layout.run_logs.rglob("*.jsonl")))
            assert too_open(place.data) == []
        place.json("materialize")
        assert too_open(place.data) == []


def test_a_directory_that_was_swapped_for_a_link_is_not_entered(tmp_path: Path) -> None:
    outside, raw = tmp_path / "outside", tmp_path / "raw"
    (outside / "user").mkdir(parents=True)
    (outside / "user/a.jsonl").write_bytes(b"secret\n")
    raw.mkdir()
    (raw / "host").symlink_to(outside)
    (raw / "real").mkdir()
    (raw / "real/user").symlink_to(outside / "user")
    root = os.fsencode(raw)

    for path in (b"host/user/a.jsonl", b"real/user/a.jsonl"):
        for way in (open_to_read, look_at):
            with pytest.raises(OSError) as refused:
                way(root, path)
            assert refused.value.errno in {errno.ENOTDIR, errno.ELOOP}
    with pytest.raises(OSError) as refused:
        open_to_list(root, b"real/user")
    assert refused.value.errno in {errno.ENOTDIR, errno.ELOOP}
    for path in (b"../outside/user/a.jsonl", b"real/../../outside/user/a.jsonl", b"real/.."):
        with pytest.raises(OSError) as refused:
            open_to_read(root, path)
        assert refused.value.errno == errno.EINVAL
    assert scan_spool(str(raw)).files == {}


def test_no_name_or_value_of_the_spool_reaches_a_terminal_or_a_log_as_it_is(place: Place) -> None:
    name = EVIL.replace("\r\n", "\n")
    folder = place.raw / name / name
    folder.mkdir(parents=True)
    event = full_event("file.open", "nested", "e1")
    event |= {
        "occurred_at_utc": "2025-03-01T10:00:00Z",
        "host": {"hostname": EVIL, "user": EVIL},
        "error": {"code": EVIL, "message": EVIL},
    }
    (folder / f"{name}.jsonl").write_text(f"{dump(event)}\n{dump(EVIL)}\nbad {EVIL}\n", newline="")
    (folder / f"{name}-pipe.jsonl").symlink_to("/etc/passwd")
    place.json("ingest")

    outputs = [
        place.piper(*command.split(maxsplit=2))
        for command in ("status", "doctor", "quarantine list", "quarantine stats", "query SELECT*FROM/**/silver_events")
    ]
    shown = place.piper("quarantine", "show", place.json("quarantine", "list")["records"][0]["id"])
    for done in (*outputs, shown):
        assert steering(done.stdout) == steering(done.stderr) == []
    rows = place.json("query", "SELECT host_user FROM silver_events")["rows"]
    assert rows == [{"host_user": EVIL}]
    for command in ("status", "quarantine list"):
        assert place.json(*command.split())
    for log in place.layout.run_logs.rglob("*.jsonl"):
        text = log.read_text("utf-8")
        assert steering(text) == []
        assert [json.loads(record)["level"] for record in text.splitlines()]


def steering(text: str) -> list[str]:
    """Characters that are not shown but do something, other than the ends of lines."""
    return sorted({repr(char) for char in text if not char.isprintable() and char != "\n"})
