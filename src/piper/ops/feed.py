"""The feed: committed events in the order of their commits, each once, from the files that every reader sees.

A published tail holds the events of all commits after `sealed_through`; what was sealed since the last look is in
chunks whose names begin with the commit that sealed them. So whatever was committed after `position` is in the present
tail or in chunks of later names, and never in both: the tail is opened first, and of the chunks only rows up to its
`sealed_through` count. Nothing is missed however many seals happen between two looks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from piper.files import sql_literal
from piper.layout import Layout
from piper.ops.reader import NoWarehouseError
from piper.silver.datasets import DATASETS

LOOK_BACK_FILES = 2000
"""Chunks that the search for the last events opens at most: a filter that nothing passes must not read all history."""
FETCH_ROWS = 1000

_EVENTS = DATASETS["events"]
_ORDER = "commit_seq {way}, occurred_at_utc {way}, source_file {way}, source_offset {way}"
_NAME = re.compile(r"(\d+)-.*\.parquet")

Event = dict[str, Any]
"""One row of silver_events by column, with `commit_seq`; times are naive UTC, payload and metrics are JSON text."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events pass; each tuple holds names or shell patterns (`publish.*`), and an empty one lets all pass."""

    types: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    only_errors: bool = False

    def condition(self) -> tuple[str, list[str]]:
        """As SQL over silver_events, with its parameters."""
        parts = ["true"]
        parameters: list[str] = []
        for column, patterns in (("event_type", self.types), ("host_user", self.users), ("host_hostname", self.hosts)):
            if patterns:
                parts.append("(" + " OR ".join(f"{column} GLOB ?" for _ in patterns) + ")")
                parameters += patterns
        if self.only_errors:
            parts.append("status = 'error'")
        return " AND ".join(parts), parameters


class Feed:
    """Follows one warehouse. `position`: the last commit whose events were given out."""

    def __init__(self, layout: Layout, wanted: Wanted) -> None:
        self._layout = layout
        self._condition, self._parameters = wanted.condition()
        self._con = duckdb.connect(config={"enable_external_file_cache": False, "threads": 1})
        self._con.execute("SET TimeZone = 'UTC'")
        self._seen: tuple[int, int, int] | None = None
        self.position = 0

    def close(self) -> None:
        """Let go of everything."""
        self._con.close()

    def last(self, count: int) -> list[Event]:
        """The last `count` wanted events, oldest first; `news` goes on after them. Call it first."""
        self._seen = self._mark()
        sealed_through = self._open_tail()
        try:
            found = self._newest(f"SELECT {_EVENTS.column_list} FROM feed.events_tail", count, {})
        finally:
            self._close_tail()
        chunks = sorted(self._chunks_after(-1), reverse=True)[:LOOK_BACK_FILES]
        size = 1
        while chunks and len(found) < count:
            # Whole seals, newest first, twice as many each time: a seal is some twenty files.
            least = chunks[min(size, len(chunks)) - 1][0]
            group = [path for number, path in chunks if number >= least]
            chunks = chunks[len(group) :]
            found = self._newest(_sealed(group, -1, sealed_through), count, found)
            size = 2 * len(group)
        return list(found.values())[::-1]

    def news(self) -> Iterator[Event]:
        """What was committed since; ends when everything that is published was given out."""
        mark = self._mark()
        if mark == self._seen:
            return
        before = self.position
        sealed_through = self._open_tail()
        try:
            if self.position < before:  # a rebuilt manifest counts anew; what it holds was given out
                before = self.position
            rows = f"SELECT {_EVENTS.column_list} FROM feed.events_tail WHERE commit_seq > {before}"
            chunks = self._chunks_after(before) if sealed_through > before else []
            if chunks:
                rows += f" UNION ALL {_sealed([path for _, path in chunks], before, sealed_through)}"
            yield from self._rows(rows, _ORDER.format(way="ASC"))
        except BaseException:
            # A file went away under us: the next look tries again. Sorting reads all before it gives out any.
            self.position = before
            raise
        finally:
            self._close_tail()
        self._seen = mark

    # ---- inside --------------------------------------------------------------------------------------------------

    def _mark(self) -> tuple[int, int, int]:
        try:
            status = self._layout.tail.stat()
        except FileNotFoundError:
            root = self._layout.data_root
            raise NoWarehouseError(f"there is no warehouse at {root}", hint="Run `piper init` to make one.") from None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _open_tail(self) -> int:
        """Attach the present tail, move `position` to its last commit, and return its `sealed_through`."""
        self._close_tail()
        self._con.execute(f"ATTACH '{sql_literal(self._layout.tail)}' AS feed (READ_ONLY)")
        row = self._con.execute("SELECT max(commit_seq), max(sealed_through) FROM feed.events_tail").fetchone()
        assert row is not None
        sealed_through = int(row[1])
        self.position = max(row[0] or 0, sealed_through)
        return sealed_through

    def _close_tail(self) -> None:
        self._con.execute("DETACH DATABASE IF EXISTS feed")

    def _chunks_after(self, commit_seq: int) -> list[tuple[int, Path]]:
        """Every chunk of events that was sealed by a later commit. A walk over directories; no file is opened."""
        found = []
        for directory, _, names in os.walk(self._layout.silver / _EVENTS.name):
            for name in names:
                match = _NAME.fullmatch(name)
                if match and int(match[1]) > commit_seq:
                    found.append((int(match[1]), Path(directory, name)))
        return found

    def _newest(self, rows: str, count: int, found: dict[str, Event]) -> dict[str, Event]:
        """`found`, newest first by event_id, filled up to `count` from `rows`."""
        order = f"{_ORDER.format(way='DESC')} LIMIT {count}"
        for event in self._rows(f"SELECT * FROM ({rows}) WHERE commit_seq IS NOT NULL", order):
            if len(found) < count:
                found.setdefault(event["event_id"], event)
        return found

    def _rows(self, rows: str, order: str) -> Iterator[Event]:
        result = self._con.execute(f"SELECT * FROM ({rows}) WHERE {self._condition} ORDER BY {order}", self._parameters)
        names = [column[0] for column in result.description]
        while batch := result.fetchmany(FETCH_ROWS):
            for row in batch:
                yield dict(zip(names, row, strict=True))


def _sealed(paths: Sequence[Path], after: int, sealed_through: int) -> str:
    """The rows of these chunks; each event once, also while a compaction has it in two files."""
    files = ", ".join(f"'{sql_literal(path)}'" for path in paths)
    return f"""(SELECT DISTINCT ON (event_id) * FROM ({_EVENTS.chunk_rows_sql(f"[{files}]")})
        WHERE commit_seq > {after} AND commit_seq <= {sealed_through})"""
