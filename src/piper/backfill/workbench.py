"""The workbench: a DuckDB file of its own in which the lines that were read again wait to be compared with silver.

It lies in `state/` and is no part of the warehouse: what is lost with it is only read once more. It survives a kill, so
that files need not be read twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb

from piper.events.parse import Parser
from piper.files import sql_literal
from piper.silver.datasets import MACROS
from piper.spool.turn import SAMPLE_BYTES
from piper.upkeep import Hands

_TABLES = (
    # What has been done: `reading`, then `comparing`.
    "CREATE TABLE bench.run (id VARCHAR, stage VARCHAR)",
    # Spool files in the order of reading. taken: the tailer's checkpoint, NULL: all of it counts.
    """CREATE TABLE bench.files (place BIGINT, path BLOB, size_bytes BIGINT,
        taken STRUCT("offset" BIGINT, lines BIGINT, head BLOB, head_bytes BIGINT, guard BLOB, guard_bytes BIGINT),
        is_read BOOLEAN)""",
    # What is in the quarantine files; key as in event_keys.
    """CREATE TABLE bench.quarantined (key UHUGEINT, file VARCHAR, day DATE, reason VARCHAR, source_file VARCHAR,
        source_offset BIGINT, raw_md5 VARCHAR)""",
    # Of those, what is an event by today's rules, and of which day.
    "CREATE TABLE bench.passing (key UHUGEINT, file VARCHAR, day DATE, reason VARCHAR, event_date DATE)",
    # Lines that are no events; event_id where they name one.
    """CREATE TABLE bench.rejected (reason VARCHAR, field VARCHAR, source_file VARCHAR, source_offset BIGINT,
        source_line BIGINT, raw BLOB, raw_bytes BIGINT, event_id VARCHAR)""",
    # Accepted lines. ordinal: the order in which the first of one event_id counts.
    """CREATE TABLE bench.staged AS SELECT 0::BIGINT AS ordinal, key, * EXCLUDE (line_index, key)
        FROM work.parsed LIMIT 0""",
    "CREATE TABLE bench.dates (event_date DATE, is_done BOOLEAN)",
)


class Workbench:
    """An open workbench. Belongs to the thread of one step."""

    def __init__(self, con: duckdb.DuckDBPyConnection, parser: Parser) -> None:
        self.con, self.parser = con, parser

    def rows(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        return self.con.execute(query, list(parameters)).fetchall()

    def value(self, query: str) -> Any:
        """The first column of the first row."""
        row = self.con.execute(query).fetchone()
        return row[0] if row else None

    @property
    def run_id(self) -> str | None:
        """Of the backfill that this is for; None: of none."""
        has_tables = self.value(
            "SELECT count(*) FROM duckdb_tables() WHERE database_name = 'bench' AND table_name = 'run'"
        )
        return self.value("SELECT id FROM bench.run") if has_tables else None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing."""
        self.con.execute("BEGIN")
        try:
            yield
            self.con.execute("COMMIT")
        except BaseException:
            with suppress(duckdb.Error):  # a failed COMMIT, or an interrupt, has ended it already
                self.con.execute("ROLLBACK")
            raise

    def begin(self, run_id: str) -> None:
        """Make the tables, in the caller's transaction."""
        for statement in _TABLES:
            self.con.execute(statement)
        self.con.execute("INSERT INTO bench.run VALUES (?, 'reading')", [run_id])


@contextmanager
def workbench(hands: Hands, path: Path) -> Iterator[Workbench]:
    """Open it, in the engine of `hands`, which is put down afterwards. A file that cannot be opened begins anew."""
    con = hands.engine
    try:
        con.execute("ATTACH ':memory:' AS work")
        try:
            con.execute(f"ATTACH '{sql_literal(path)}' AS bench")
        except (duckdb.IOException, duckdb.SerializationException, duckdb.InternalException):
            discard(path)
            con.execute(f"ATTACH '{sql_literal(path)}' AS bench")
        _use(con)
        for macro in MACROS:
            con.execute(macro)
        cursor = con.cursor()
        _use(cursor)
        ingest = hands.writer.settings.ingest
        parser = Parser(con, [cursor], line_bytes_max=ingest.line_bytes_max, sample_bytes=SAMPLE_BYTES)
        try:
            yield Workbench(con, parser)
        finally:
            parser.close()
    finally:
        hands.put_down()


def discard(path: Path) -> None:
    """Remove it."""
    for file in (path, path.with_name(path.name + ".wal")):
        file.unlink(missing_ok=True)


def _use(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("SET TimeZone = 'UTC'")
    con.execute("SET search_path = 'work'")
