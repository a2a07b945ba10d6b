"""Publishing the tail: each publish writes what was committed since the last one, as one segment (silver/segments.py).

A row is written again only when segments are merged: as soon as FAN segments of one size are live, the next one takes
their rows in. They are not read for that: the rows are still in the manifest. After a seal no earlier row counts, so
the next segment stands alone, as does the first one of a process.

A segment that is not live any more stays where it is for PARK_SECONDS, for the queries that have listed the directory
before. Then a symbolic link takes its place, which no new query lists, and which leads those that have listed it to the
file's other name in `.generations/`; that one goes GENERATION_SECONDS later (publish/snapshots.py).

If we die before the rename, readers keep the tail that they have; the next process publishes all of it anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from piper.failpoints import failpoint
from piper.files import FILE_MODE, fsync_path, make_directory, sql_literal, swap_in
from piper.layout import Layout
from piper.publish.snapshots import GENERATION_SECONDS, Identity, drop_generations, identity, park
from piper.silver.datasets import DATASETS
from piper.silver.segments import COLUMNS, SUFFIX, segments_in
from piper.silver.store import Progress

FAN = 16
"""Live segments of one size at most: a query opens each, and each row is written once a size."""
PARK_SECONDS = 5.0
"""How long a query may take between listing the segments and looking what each of them is."""


@dataclass(frozen=True, slots=True)
class _Segment:
    """A live segment. `size`: how often its rows have been merged; `through`: the last commit whose rows it has."""

    number: int
    size: int
    through: int
    as_written: Identity | None = None


class TailPublisher:
    """Writes the segments of one data root. For one thread."""

    def __init__(self, layout: Layout, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._layout, self._monotonic = layout, monotonic
        self._live: list[_Segment] = []
        self._sealed_through = -1
        self._dead: dict[Path, float] = {}
        """Segments that no control row names any more, and since when."""
        self._is_first = True

    def publish(self, con: duckdb.DuckDBPyConnection, progress: Progress) -> None:
        """Have readers see the state of `progress`. Raises duckdb.Error or OSError, having changed nothing for them."""
        directory = self._layout.tail
        make_directory(directory)
        present = segments_in(directory)
        if self._is_first:
            # Of a piper before there were segments: a reader with its catalog must fail, and not see what was.
            (self._layout.warehouse / "tail.duckdb").unlink(missing_ok=True)
            self._dead = dict.fromkeys(_long_dead(present), self._monotonic() - PARK_SECONDS)
        live = self._kept(progress)
        size = 0
        while [segment.size for segment in live[1 - FAN :]] == [size] * (FAN - 1):
            del live[1 - FAN :]
            size += 1
        after = live[-1].through if live else progress.sealed_through
        last = int(present[-1].stem) if present else 0
        segment = _Segment(max(last + 1, time.time_ns() // 1_000_000), size, progress.commit_seq)
        path = self._path(segment)
        self._write(con, path, after, [one.number for one in (*live, segment)], progress)
        live.append(replace(segment, as_written=identity(path)))
        self._live, self._sealed_through, self._is_first = live, progress.sealed_through, False
        self.tidy()

    def _kept(self, progress: Progress) -> list[_Segment]:
        """The live segments that stay as they are; none when a seal, or somebody's hand, took rows away."""
        is_same = progress.sealed_through == self._sealed_through and self.is_whole()
        return list(self._live) if is_same else []

    def _write(
        self, con: duckdb.DuckDBPyConnection, path: Path, after: int, live: list[int], progress: Progress
    ) -> None:
        temporary = self._layout.warehouse / f".{self._layout.tail.name}{SUFFIX}.tmp"
        try:
            con.execute(
                f"""COPY ({_rows_sql(self._layout, after, live, progress)}) TO '{sql_literal(temporary)}'
                (FORMAT parquet, COMPRESSION zstd)"""
            )
            temporary.chmod(FILE_MODE)
            fsync_path(temporary)
            failpoint("publish.tail.written")
            swap_in(temporary, path)
            failpoint("publish.tail.swapped")
        except BaseException:
            temporary.unlink(missing_ok=True)  # a full disk needs the room
            raise

    def is_whole(self) -> bool:
        """Whether all that readers need is there as it was written; somebody may have deleted it."""
        return all(identity(self._path(segment)) == segment.as_written for segment in self._live)

    def _path(self, segment: _Segment) -> Path:
        return self._layout.tail / f"{segment.number:018d}{SUFFIX}"

    def tidy(self, *, older_than: float = GENERATION_SECONDS) -> None:
        """Put away what readers do not need any more, and delete what they have not needed for so many seconds."""
        now = self._monotonic()
        live = {segment.number for segment in self._live}
        dead = [path for path in segments_in(self._layout.tail) if int(path.stem) not in live]
        self._dead = {path: self._dead.get(path, now) for path in dead}
        for path, since in self._dead.items():
            if now - since >= older_than:
                path.unlink(missing_ok=True)
            elif now - since >= PARK_SECONDS:
                park(path, self._layout, seconds=now - since)
        drop_generations(self._layout, older_than=older_than)


def _rows_sql(layout: Layout, after: int, live: list[int], progress: Progress) -> str:
    """The rows of the commits after `after`, and the control rows."""
    typed = ", ".join(f"NULL::{kind} AS {name}" for name, kind in COLUMNS.items())
    parts = [f"SELECT {typed} LIMIT 0"]  # so that every segment has the same columns in the same order
    for name, dataset in DATASETS.items():
        parts.append(
            f"""SELECT '{name}' AS dataset, {dataset.column_list}, {live[-1]}::BIGINT AS segment
            FROM {dataset.tail_table} WHERE commit_seq > {after:d}"""
        )
        parts.append(
            f"""SELECT '{name}' AS dataset, {live[-1]}::BIGINT AS segment, {live}::BIGINT[] AS live,
                {progress.commit_seq:d}::BIGINT AS published_through,
                {progress.sealed_through:d}::BIGINT AS sealed_through,
                {progress.rewritten_through:d}::BIGINT AS rewritten_through,
                (SELECT list('{sql_literal(layout.silver)}/' || path) FROM hidden_chunks
                 WHERE dataset = '{name}') AS hidden"""
        )
    return " UNION ALL BY NAME ".join(f"({part})" for part in parts)


def _long_dead(present: list[Path]) -> list[Path]:
    """What an earlier process left: all that its last segment does not count, or all where that cannot be read."""
    if not present:
        return []
    try:
        with duckdb.connect() as probe:
            result = probe.execute(f"FROM read_parquet('{sql_literal(present[-1])}') WHERE live IS NOT NULL LIMIT 1")
            found = dict(zip((column[0] for column in result.description), result.fetchone() or (), strict=False))
    except duckdb.Error:
        return present
    if list(found) != list(COLUMNS):
        return present  # of a piper with other columns: views of this one could not read it
    return [path for path in present if int(path.stem) not in found["live"]]
