"""What compaction decides: which chunks are worth merging, and at which hours."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from piper.hours import Hours
from piper.silver.compact import (
    CHEAP_BYTES,
    CHUNK_BYTES_MAX,
    REST_CHUNKS,
    Chunk,
    mergeable,
    worthwhile,
)

MIB = 1024 * 1024


def chunks(*sizes: int) -> list[Chunk]:
    return [Chunk(f"events/d/{number}.parquet", 1, size) for number, size in enumerate(sizes)]


def sizes(found: list[Chunk]) -> list[int]:
    return [chunk.size_bytes for chunk in found]


def test_one_chunk_is_left_alone() -> None:
    assert worthwhile(chunks(1)) == []


def test_a_small_partition_is_written_again_for_a_single_late_row() -> None:
    assert sizes(worthwhile(chunks(CHEAP_BYTES - 10, 10))) == [10, CHEAP_BYTES - 10]


def test_a_large_chunk_is_not_written_again_for_a_few_late_rows() -> None:
    assert worthwhile(chunks(200 * MIB, 1000, 1000)) == []


def test_late_rows_that_are_a_tenth_of_a_large_partition_are_worth_it() -> None:
    assert len(worthwhile(chunks(90 * MIB, 5 * MIB, 6 * MIB))) == 3


def test_many_late_chunks_are_merged_beside_the_large_one() -> None:
    late = [1000] * REST_CHUNKS
    assert sizes(worthwhile(chunks(200 * MIB, *late))) == late
    assert worthwhile(chunks(200 * MIB, *late[1:])) == []


def test_no_chunk_grows_beyond_the_limit() -> None:
    assert sizes(mergeable(chunks(CHUNK_BYTES_MAX, 3, CHUNK_BYTES_MAX - 5, 2))) == [2, 3, CHUNK_BYTES_MAX - 5]
    assert mergeable(chunks(CHUNK_BYTES_MAX, CHUNK_BYTES_MAX)) == []


def test_merging_again_and_again_writes_a_late_trickle_a_bounded_number_of_times() -> None:
    """A thousand late chunks of a kilobyte, one at a time, into a partition of 100 MiB."""
    partition, written = chunks(100 * MIB), 0
    for number in range(1000):
        partition.append(Chunk(f"late-{number}", 1, 1024))
        if merged := worthwhile(partition):
            written += sum(sizes(merged))
            partition = [chunk for chunk in partition if chunk not in merged]
            partition.append(Chunk(f"merged-{number}", 1, sum(sizes(merged))))
        assert len(partition) <= REST_CHUNKS + 1
    assert written < 100 * MIB


@pytest.mark.parametrize(
    ("text", "hour", "inside"),
    [
        ("20:00-06:00", 19, False),
        ("20:00-06:00", 20, True),
        ("20:00-06:00", 0, True),
        ("20:00-06:00", 6, False),
        ("01:30-05:00", 1, False),
        ("01:30-05:00", 4, True),
        ("18:00-24:00", 23, True),
        ("18:00-24:00", 0, False),
        ("always", 12, True),
    ],
)
def test_hours_may_go_over_midnight(text: str, hour: int, inside: bool) -> None:
    hours = Hours.parse(text)
    assert hours is not None
    assert hours.include(datetime(2026, 11, 22, hour, tzinfo=UTC)) is inside


def test_never_is_no_hour() -> None:
    assert Hours.parse("never") is None
