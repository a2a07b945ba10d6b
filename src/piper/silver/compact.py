"""Compaction: which chunks are worth writing as one, and doing it, by a `Rewrite`.

A seal leaves one small chunk a partition, every quarter of an hour or every 20,000 events. Queries pay for each file,
so the chunks of a closed day become one a partition, sorted by time. A day is closed an hour after it has ended in UTC,
once no chunk was added to the partition for an hour. What comes later is merged when that pays:

- a partition of up to CHEAP_BYTES is simply written again;
- above it, the whole is written again when the rest has a tenth of its bytes; until then the rest is kept small in
  number by merging it without the large chunk. Five late rows never cost a gigabyte;
- no chunk grows beyond CHUNK_BYTES_MAX: larger ones gain nothing, and cost memory to sort.

A partition of CROWD chunks is merged at any hour, that of today as well: that bounds the files that a query opens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import duckdb

from piper.silver.rewrite import Partition

CLOSED_AFTER = timedelta(hours=1)
"""How long after its end, and after its last seal, a day's partition counts as closed."""
CROWD = 32
"""So many chunks in one partition are merged at any hour and on any day."""
CHUNK_BYTES_MAX = 256 * 1024 * 1024
CHEAP_BYTES = 32 * 1024 * 1024
"""Some 400,000 events; rewriting them takes seconds (bench/compaction.py)."""
REST_SHARE = 0.1
REST_CHUNKS = 8


@dataclass(frozen=True, slots=True)
class Chunk:
    """A sealed chunk, as the manifest knows it; `path` is relative to silver/."""

    path: str
    rows: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Merge:
    """Chunks of one partition that become one."""

    partition: Partition
    paths: tuple[str, ...]
    rows: int
    size_bytes: int


def crowded(
    con: duckdb.DuckDBPyConnection, *, start: date | None = None, end: date | None = None
) -> list[tuple[Partition, list[Chunk], str]]:
    """Every partition of more than one chunk, oldest first: with its chunks, and the path of the one sealed last."""
    rows = con.execute(
        """SELECT dataset, event_date, regexp_extract(path, '^(.*)/[^/]*$', 1) AS directory,
            list([path, row_count::VARCHAR, size_bytes::VARCHAR] ORDER BY path), arg_max(path, commit_seq)
        FROM ingest_manifest.main.chunks WHERE event_date BETWEEN ? AND ?
        GROUP BY ALL HAVING count(*) > 1 ORDER BY event_date, directory""",
        [start or date.min, end or date.max],
    ).fetchall()
    found = []
    for dataset, day, directory, listed, newest in rows:
        chunks = [Chunk(path, int(count), int(size)) for path, count, size in listed]
        paths = tuple(chunk.path for chunk in chunks)
        total, size = sum(chunk.rows for chunk in chunks), sum(chunk.size_bytes for chunk in chunks)
        found.append((Partition(dataset, day, directory, paths, total, size), chunks, newest))
    return found


def mergeable(chunks: Sequence[Chunk]) -> list[Chunk]:
    """The chunks that fit into one of CHUNK_BYTES_MAX, smallest first; empty unless there are two."""
    taken: list[Chunk] = []
    total = 0
    for chunk in sorted(chunks, key=lambda chunk: chunk.size_bytes):
        total += chunk.size_bytes
        if total > CHUNK_BYTES_MAX:
            break
        taken.append(chunk)
    return taken if len(taken) > 1 else []


def worthwhile(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Those of `chunks` whose merging pays now; empty when it does not."""
    taken = mergeable(chunks)
    if not taken:
        return []
    *rest, largest = taken
    rest_bytes = sum(chunk.size_bytes for chunk in rest)
    total = rest_bytes + largest.size_bytes
    if total <= CHEAP_BYTES or rest_bytes >= REST_SHARE * total:
        return taken
    return rest if len(rest) >= REST_CHUNKS else []


def due_merges(con: duckdb.DuckDBPyConnection, silver: Path, *, now: datetime, is_off_peak: bool) -> list[Merge]:
    """What compaction has to do now, oldest days first. `now`: naive UTC."""
    found = []
    for partition, chunks, newest in crowded(con):
        is_crowd = len(chunks) >= CROWD
        if not is_crowd and not (is_off_peak and _is_closed(partition.event_date, silver / newest, now)):
            continue
        if merged := worthwhile(chunks):
            found.append(_merge(partition, merged))
    return found


def all_merges(con: duckdb.DuckDBPyConnection, *, start: date | None, end: date) -> list[Merge]:
    """What brings every partition of these days to as few chunks as can be, whether it pays or not."""
    found = []
    for partition, chunks, _ in crowded(con, start=start, end=end):
        while merged := mergeable(chunks):
            found.append(_merge(partition, merged))
            chunks = [chunk for chunk in chunks if chunk not in merged]  # a large partition fills several
    return found


def _merge(partition: Partition, chunks: Sequence[Chunk]) -> Merge:
    return Merge(
        partition,
        tuple(sorted(chunk.path for chunk in chunks)),
        sum(chunk.rows for chunk in chunks),
        sum(chunk.size_bytes for chunk in chunks),
    )


def _is_closed(day: date, newest: Path, now: datetime) -> bool:
    """Whether neither the clock nor late events are likely to add to this day soon."""
    if day >= now.date() or now - datetime.combine(day + timedelta(days=1), time()) < CLOSED_AFTER:
        return False
    try:
        sealed_at = datetime.fromtimestamp(newest.stat().st_mtime, UTC).replace(tzinfo=None)
    except FileNotFoundError:
        return False  # replaced meanwhile, or lost: `piper doctor` finds that
    return abs(now - sealed_at) >= CLOSED_AFTER  # a file server's clock may be ahead: that must not last for ever
