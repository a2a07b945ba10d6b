"""The feed: committed events in the order of their commits, each once, from the files that every reader sees.

A published tail holds the events of all commits after `sealed_through`; what was sealed since the last look is in
chunks whose names begin with the commit that sealed them. So whatever was committed after `position` is in the present
tail or in chunks of later names, and never in both: the tail is opened first, and of the chunks only rows up to its
`sealed_through` count. Nothing is missed however many seals happen between two looks.

Chunks of a rewrite (compaction, masking) hold nothing new, so `news` leaves them out, and goes on reading the chunks
that they replace: those stay for minutes after they were hidden. Who stops looking for longer may miss events.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from piper.files import sql_literal
from piper.layout import Layout
from piper.ops.reader import NoWarehouseError
from piper.silver.datasets import DATASETS
from piper.silver.segments import segments_in, tail_ctes
from piper.silver.staging import REWRITE

LOOK_BACK_FILES = 2000
"""Chunks that the search for the last events opens at most: a filter that nothing passes must not read all history."""
FETCH_ROWS = 1000

_EVENTS = DATASETS["events"]
_ORDER = "{first} {way}, occurred_at_utc {way}, source_file {way}, source_offset {way}"
_NAME = re.compile(rf"({REWRITE}?)(\d+)-.*\.parquet")

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


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A chunk of events; `sealed_by`: the commit that sealed it, None for one that a rewrite made."""

    path: Path
    sealed_by: int | None

    @property
    def age(self) -> tuple[int, str]:
        """What sorts chunks by the age of their events: seals by their number, older ones were rewritten day by day."""
        return (0, self.path.parts[-3]) if self.sealed_by is None else (self.sealed_by, "")


@dataclass(frozen=True, slots=True)
class _Tail:
    """What a published tail says of the chunks beside it; `hidden`: absolute paths."""

    sealed_through: int
    rewritten_through: int
    hidden: frozenset[str]


class Feed:
    """Follows one warehouse. `position`: the last commit whose events were given out."""

    def __init__(self, layout: Layout, wanted: Wanted, *, memory_limit: str = "512MB") -> None:
        """`memory_limit`: as DuckDB writes sizes; what does not fit (a backlog was sealed) is spilled."""
        self._layout = layout
        self._condition, self._parameters = wanted.condition()
        self._spill = tempfile.TemporaryDirectory(prefix="piper-tail-")
        config: dict[str, str | bool | int | float | list[str]] = {
            "enable_external_file_cache": False,
            "memory_limit": memory_limit,
            "temp_directory": self._spill.name,
            "threads": 1,
        }
        self._con = duckdb.connect(config=config)
        self._con.execute("SET TimeZone = 'UTC'")
        self._seen: str | None = None
        self.position = 0

    def close(self) -> None:
        """Let go of everything."""
        self._con.close()
        self._spill.cleanup()

    def last(self, count: int) -> list[Event]:
        """The last `count` wanted events, oldest first; `news` goes on after them. Call it first."""
        self._seen = self._mark()
        tail = self._read_tail(after=0)
        found = self._newest(f"SELECT {_EVENTS.column_list} FROM tail", count, {})
        chunks = [chunk for chunk in self._chunks() if str(chunk.path) not in tail.hidden]
        chunks = sorted(chunks, key=lambda chunk: chunk.age, reverse=True)[:LOOK_BACK_FILES]
        size = 1
        while chunks and len(found) < count:
            # Whole seals or dates, newest first, twice as many each time: a seal is some twenty files.
            oldest = chunks[min(size, len(chunks)) - 1].age
            group = [chunk.path for chunk in chunks if chunk.age >= oldest]
            chunks = chunks[len(group) :]
            found = self._newest(_stored(group, -tail.rewritten_through, tail.sealed_through), count, found)
            size = 2 * len(group)
        return list(found.values())[::-1]

    def news(self) -> Iterator[Event]:
        """What was committed since; ends when everything that is published was given out."""
        mark = self._mark()
        if mark == self._seen:
            return
        before = self.position
        sealed_through = self._read_tail(after=before).sealed_through
        try:
            if self.position < before:  # a rebuilt manifest counts anew; what it holds was given out
                before = self.position
            rows = f"SELECT {_EVENTS.column_list} FROM tail"
            chunks = self._chunks() if sealed_through > before else []
            later = [chunk.path for chunk in chunks if chunk.sealed_by is not None and chunk.sealed_by > before]
            if later:
                rows += f" UNION ALL {_stored(later, before + 1, sealed_through)}"
            yield from self._rows(rows, _ORDER.format(first="commit_seq", way="ASC"))
        except BaseException:
            # A file went away under us: the next look tries again. Sorting reads all before it gives out any.
            self.position = before
            raise
        self._seen = mark

    # ---- inside --------------------------------------------------------------------------------------------------

    def _mark(self) -> str:
        segments = segments_in(self._layout.tail)
        if not segments:
            root = self._layout.data_root
            raise NoWarehouseError(f"there is no warehouse at {root}", hint="Run `piper init` to make one.") from None
        return segments[-1].name

    def _read_tail(self, *, after: int) -> _Tail:
        """Fill the table `tail` with the present tail's rows of later commits, and move `position` to its last one."""
        ctes = tail_ctes(_EVENTS, self._layout)
        self._con.execute(
            f"""CREATE OR REPLACE TEMP TABLE published AS WITH {ctes}
            SELECT {_EVENTS.column_list}, NULL::BIGINT AS published_through, NULL::BIGINT AS sealed_through,
                NULL::BIGINT AS rewritten_through, NULL::VARCHAR[] AS hidden
            FROM tail WHERE commit_seq > {after:d}
            UNION ALL BY NAME
            SELECT published_through, sealed_through, rewritten_through, hidden FROM now"""
        )
        self._con.execute("CREATE OR REPLACE TEMP VIEW tail AS FROM published WHERE commit_seq IS NOT NULL")
        row = self._con.execute(
            """SELECT published_through, sealed_through, rewritten_through, coalesce(hidden, [])
            FROM published WHERE commit_seq IS NULL"""
        ).fetchone()
        assert row is not None
        self.position = int(row[0])
        return _Tail(int(row[1]), int(row[2]), frozenset(row[3]))

    def _chunks(self) -> list[_Chunk]:
        """Every chunk of events, without opening one. Raises OSError, for half a listing would be no answer."""
        return [
            _Chunk(Path(directory, name), None if match[1] else int(match[2]))
            for directory, _, names in os.walk(self._layout.silver / _EVENTS.name, onerror=_unless_it_went)
            for name in names
            if (match := _NAME.fullmatch(name))
        ]

    def _newest(self, rows: str, count: int, found: dict[str, Event]) -> dict[str, Event]:
        """`found`, newest first by event_id, filled up to `count` from `rows`."""
        order = f"{_ORDER.format(first='ingested_at_utc', way='DESC')} LIMIT {count}"
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


def _unless_it_went(error: OSError) -> None:
    """A partition can lose its last chunk, and go, while it is listed; it held nothing new then."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _stored(paths: Sequence[Path], first: int, last: int) -> str:
    """The rows in these chunks of the commits from `first` to `last`; rewrites count as negative commits."""
    files = ", ".join(f"'{sql_literal(path)}'" for path in paths)
    return f"""SELECT * FROM ({_EVENTS.chunk_rows_sql(f"[{files}]")}) WHERE commit_seq BETWEEN {first} AND {last}"""
