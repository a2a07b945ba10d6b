"""The rules of identity: one thing that differs is enough."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from piper.spool.identity import (
    GUARD_BYTES,
    HEAD_BYTES,
    Checkpoint,
    Source,
    content_holds,
    display_path,
    fingerprint,
    guard_holds,
    head_holds,
)

CONTENT = bytes(range(1, 251)) * 20


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    opened = os.open(path, os.O_RDWR)
    yield opened
    os.close(opened)


def checkpoint(offset: int) -> Checkpoint:
    head, guard = CONTENT[: min(HEAD_BYTES, offset)], CONTENT[max(0, offset - GUARD_BYTES) : offset]
    return Checkpoint(offset, 1, fingerprint(head), len(head), fingerprint(guard), len(guard))


def source_at(offset: int, **more: object) -> Source:
    source = Source(b"host/user/a.jsonl", 1, 2, size=len(CONTENT), **more)  # type: ignore[arg-type]
    if offset:
        source.advance(checkpoint(offset))
    return source


@pytest.mark.parametrize("offset", [1, GUARD_BYTES, HEAD_BYTES, HEAD_BYTES + 1, len(CONTENT)])
def test_what_was_read_holds_until_one_of_its_guarded_bytes_differs(fd: int, offset: int) -> None:
    assert guard_holds(fd, checkpoint(offset))
    assert head_holds(fd, checkpoint(offset))
    assert content_holds(fd, source_at(offset))
    os.pwrite(fd, b"\0", offset - 1)
    assert not guard_holds(fd, checkpoint(offset))
    os.pwrite(fd, CONTENT, 0)
    os.pwrite(fd, b"\0", 0)
    assert not head_holds(fd, checkpoint(offset))
    assert not content_holds(fd, source_at(offset))


def test_bytes_after_the_offset_may_differ(fd: int) -> None:
    os.pwrite(fd, b"other", 2000)
    assert content_holds(fd, source_at(2000))
    os.ftruncate(fd, 2000)
    assert content_holds(fd, source_at(2000))
    os.ftruncate(fd, 1999)
    assert not content_holds(fd, source_at(2000))


def test_of_an_unread_file_its_cut_line_tells(fd: int) -> None:
    assert content_holds(fd, source_at(0, fragment=CONTENT[:10]))
    assert not content_holds(fd, source_at(0, fragment=b"other"))


def test_an_unread_file_that_got_shorter_or_vanished_is_another_one(fd: int) -> None:
    assert content_holds(fd, source_at(0))
    assert not content_holds(fd, source_at(0, vanished=True))
    os.ftruncate(fd, len(CONTENT) - 1)
    assert not content_holds(fd, source_at(0))


def test_an_offset_without_a_guard_is_never_used(fd: int) -> None:
    assert not guard_holds(fd, Checkpoint(10, 1, b"", 0, b"", 0))
    assert guard_holds(fd, Checkpoint(0, 0, b"", 0, b"", 0))


def test_a_source_that_starts_anew_keeps_its_number_and_nothing_of_its_content(fd: int) -> None:
    source = source_at(2000, source_id=7, fragment=b"cut")
    source.restart()
    assert (source.source_id, source.path) == (7, b"host/user/a.jsonl")
    assert source.checkpoint == Checkpoint(0, 0, b"", 0, b"", 0)
    assert source.fragment is None


def test_paths_are_shown_as_text_whatever_their_bytes() -> None:
    assert display_path("höst/ü/a.jsonl".encode()) == "höst/ü/a.jsonl"
    assert display_path(b"h/\xff/a.jsonl") == r"h/\xff/a.jsonl"
