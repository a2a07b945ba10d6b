"""Names and inodes of sources, as the manifest gives them back."""

from __future__ import annotations

import pytest

from piper.spool.identity import Source
from piper.spool.index import SourceIndex


def source(number: int, *, vanished: bool = False) -> Source:
    return Source(b"host/user/a.jsonl", 1, number, source_id=number, vanished=vanished)


@pytest.mark.parametrize("dead_first", [False, True])
def test_a_vanished_source_leaves_its_name_to_the_living(dead_first: bool) -> None:
    dead, living = source(1, vanished=True), source(2)
    index = SourceIndex(b"/", [dead, living] if dead_first else [living, dead])
    assert index.at(b"host/user/a.jsonl") is living
    assert not index.displaced


def test_of_two_living_sources_of_one_name_the_older_is_displaced() -> None:
    older, younger = source(1), source(2)
    index = SourceIndex(b"/", [older, younger])
    assert index.at(b"host/user/a.jsonl") is younger
    assert index.displaced == {older}


def test_a_forgotten_source_leaves_nothing_behind() -> None:
    one, two = source(1), source(1)
    index = SourceIndex(b"/", [one, two])
    index.forget(one)
    index.forget(two)
    assert (len(index), index.displaced, index._by_inode) == (0, set(), {})
