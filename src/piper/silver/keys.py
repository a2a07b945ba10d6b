"""Keys: which events and rejected lines piper has ever seen, exact over the whole history and at a cost that is flat.

A key is 16 bytes (UHUGEINT). The newest are in the manifest's table `event_keys`; when it has SPILL_KEYS they go to an
immutable file, a run (silver/key_run.py). What is known is

    event_keys  ∪  (all runs of `key_runs`  −  forgotten_keys)

and these three always fit together: a key is in the table or in one run, never in both, and only keys of runs are
forgotten. All changes are the writer's, in its transactions. A run is a file, which no transaction can hold, so a
spill and a merge of runs have the steps

1. write   the new run is written, fsynced, renamed, its directory fsynced. Died here: no manifest knows it; the next
           open removes it.
2. commit  one transaction: the run is entered, and what it holds leaves the table, or the runs that it was merged
           from leave `key_runs`. Died here: durable.
3. remove  the runs that gave way are deleted. Died here: the next open removes them.

Runs are merged MERGE_RUNS of a size at a time, so that there are few of them: each key is written once a size. The
daemon does that in the background; where nobody does (one long `piper ingest`), a spill does it once there are
RUNS_MAX.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import duckdb
import numpy as np

from piper.errors import ManifestDamagedError
from piper.failpoints import failpoint
from piper.files import make_directory
from piper.prepared import Prepared
from piper.silver.key_run import Keys128, Run, RunDamagedError, merged, write_run

if TYPE_CHECKING:
    from piper.layout import Layout

SPILL_KEYS = 250_000
"""Keys in the table: all of them are compared with each batch (bench/history.py, spill)."""
MERGE_RUNS = 4
"""Runs of one size that become one of the next: more are fewer bytes written, and more runs to look into."""
RUNS_MAX = 24

_HIGH = "(key >> 64)::UBIGINT AS high"
_LOW = "(key & 18446744073709551615::UHUGEINT)::UBIGINT AS low"
_WHOLE = "(high::UHUGEINT << 64) + low"


@dataclass(frozen=True, slots=True)
class _Entry:
    number: int
    name: str
    keys: int


class Keys:
    """The keys of one open manifest. `con` is its connection, or a cursor of it, throughout.

    `drop_known`, `add`, `forget` run in the writer's thread, inside its transaction or before it; `find_known` in any.
    """

    def __init__(self, layout: Layout) -> None:
        self._directory, self._manifest = layout.keys, layout.manifest
        self._open: dict[str, Run] = {}
        self._opening = threading.Lock()
        self._merging = threading.Lock()

    def recover(self, con: duckdb.DuckDBPyConnection) -> None:
        """When the manifest is opened: see that every run is there, remove files that it does not know.

        Raises ManifestDamagedError, OSError.
        """
        make_directory(self._directory)
        entries = _entries(con)
        self._runs(entries)
        mine = {entry.name for entry in entries}
        for path in [*self._directory.glob("*.run"), *self._directory.glob("*.tmp")]:
            if path.name not in mine:
                path.unlink()

    def count(self, con: duckdb.DuckDBPyConnection) -> int:
        """How many keys are known."""
        return _number(
            con,
            """SELECT (SELECT count(*) FROM event_keys) + (SELECT coalesce(sum(keys), 0) FROM key_runs)
                - (SELECT count(*) FROM forgotten_keys)""",
        )

    def size_bytes(self, con: duckdb.DuckDBPyConnection) -> int:
        """Bytes of the runs on disk, about."""
        return 16 * _number(con, "SELECT coalesce(sum(keys), 0)::BIGINT FROM key_runs")

    # ---- looking up ----------------------------------------------------------------------------------------------

    def drop_known(self, prepared: Prepared, table: str) -> None:
        """Delete the rows of `table`, no table of the manifest, whose column `key` is known."""
        # The inner join leaves few keys, so that none of the two has to hash all of event_keys.
        prepared.execute(f"DELETE FROM {table} WHERE key IN (SELECT key FROM event_keys SEMI JOIN {table} USING (key))")
        found = self._in_runs(prepared, table)
        if not found:
            return
        with prepared.given("found_long_ago", found.table()):
            prepared.execute(
                f"""DELETE FROM {table} WHERE key IN (
                    SELECT {_WHOLE} AS key FROM found_long_ago
                    WHERE {_WHOLE} NOT IN (SELECT key FROM forgotten_keys))"""
            )

    def find_known(self, con: duckdb.DuckDBPyConnection, keys: str) -> None:
        """Make a temporary table `known_keys` of those of `keys`, a SELECT with a column `key`, that are known.

        In any thread, outside a transaction.
        """
        con.execute(f"CREATE OR REPLACE TEMP TABLE asked_keys AS SELECT DISTINCT key FROM ({keys})")
        while True:
            con.execute("BEGIN")  # the table and the runs as they are at one moment
            entries = _entries(con)
            try:
                self._find_known(con)
                con.execute("COMMIT")
            except ManifestDamagedError:
                con.execute("ROLLBACK")
                if _entries(con) == entries:
                    raise  # else a run was merged away before it was opened here
            except BaseException:
                with suppress(duckdb.Error):
                    con.execute("ROLLBACK")
                raise
            else:
                return

    def _find_known(self, con: duckdb.DuckDBPyConnection) -> None:
        con.execute(
            """CREATE OR REPLACE TEMP TABLE known_keys AS
            SELECT key FROM asked_keys SEMI JOIN ingest_manifest.main.event_keys USING (key)"""
        )
        with _Registered(con, self._in_runs(con, "asked_keys")) as old:
            con.execute(
                f"""INSERT INTO known_keys
                SELECT key FROM {old} ANTI JOIN ingest_manifest.main.forgotten_keys USING (key)"""
            )

    def _in_runs(self, con: duckdb.DuckDBPyConnection | Prepared, table: str) -> Keys128:
        """The keys of `table` that are in any run, forgotten or not; each once."""
        entries = _entries(con)
        if not entries:
            return _NONE
        keys = _fetch(con, f"SELECT {_HIGH}, {_LOW} FROM {table}")
        if not keys:
            return _NONE
        keys = keys.sorted().distinct()
        found = np.zeros(len(keys), np.bool_)
        runs = self._runs(entries)
        try:
            for run in runs:
                found |= run.find(keys)
        except RunDamagedError as error:
            raise ManifestDamagedError(self._manifest, str(error)) from error
        return keys.take(found)

    def _runs(self, entries: Sequence[_Entry]) -> list[Run]:
        """Open what is not open yet, close what is not named any more."""
        with self._opening:
            try:
                runs = {e.name: self._open.get(e.name) or Run(self._directory / e.name) for e in entries}
            except RunDamagedError as error:
                raise ManifestDamagedError(self._manifest, str(error)) from error
            self._open = runs
            return list(runs.values())

    # ---- changes -------------------------------------------------------------------------------------------------

    def add(self, prepared: Prepared, table: str) -> None:
        """From now on, the keys of `table` are known; none of them was. Inside the caller's transaction."""
        if not _number(prepared, "SELECT count(*) FROM forgotten_keys"):
            prepared.execute(f"INSERT INTO event_keys SELECT key FROM {table}")
            return
        prepared.execute(f"INSERT INTO event_keys SELECT key FROM {table} ANTI JOIN forgotten_keys USING (key)")
        prepared.execute(f"DELETE FROM forgotten_keys WHERE key IN (SELECT key FROM {table})")

    def forget(self, con: duckdb.DuckDBPyConnection, table: str) -> None:
        """From now on, the keys of `table`, each there once, are not known. Inside the caller's transaction.

        Makes a temporary table `gone_keys` of those that were.
        """
        con.execute(
            f"CREATE OR REPLACE TEMP TABLE gone_keys AS SELECT key FROM {table} SEMI JOIN event_keys USING (key)"
        )
        con.execute("DELETE FROM event_keys WHERE key IN (SELECT key FROM gone_keys)")
        with _Registered(con, self._in_runs(con, table)) as old:
            con.execute(
                f"""CREATE OR REPLACE TEMP TABLE gone_long_ago AS
                SELECT key FROM {old} ANTI JOIN forgotten_keys USING (key)"""
            )
        con.execute("INSERT INTO forgotten_keys FROM gone_long_ago")
        con.execute("INSERT INTO gone_keys FROM gone_long_ago")

    # ---- spilling and merging ------------------------------------------------------------------------------------

    def spill_if_full(self, prepared: Prepared) -> bool:
        """Move keys from a full table to a run; returns whether it did. In the writer's thread, between transactions.

        A table that is far too full (of an earlier version, of a rebuild) is emptied in several calls. Raises OSError,
        and duckdb.Error, after which the store must be opened anew.
        """
        if _number(prepared, "SELECT count(*) FROM event_keys") < SPILL_KEYS:
            return False
        con = prepared.con
        con.execute("BEGIN")
        try:
            end = _number(con, "SELECT min(rowid) FROM event_keys") + 2 * SPILL_KEYS
            keys = _fetch(con, f"SELECT {_HIGH}, {_LOW} FROM event_keys WHERE rowid < {end}").sorted().distinct()
            number = _next_number(con)
            run = write_run(self._directory, number, [keys])
            failpoint("keys.renamed")
            con.execute(f"DELETE FROM event_keys WHERE rowid < {end}")
            _enter(con, number, run)
            con.execute("COMMIT")
        except BaseException:
            with suppress(duckdb.Error):  # a failed COMMIT has ended it already
                con.execute("ROLLBACK")
            raise
        failpoint("keys.committed")
        if len(_entries(con)) >= RUNS_MAX:
            self.merge(con)
        return True

    def merge(
        self,
        con: duckdb.DuckDBPyConnection,
        *,
        in_writer: Callable[[Callable[[duckdb.DuckDBPyConnection], None]], None] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> bool:
        """Merge runs of one size, where there are enough of them; returns whether it did.

        In any thread, with a cursor of its own: `in_writer` then runs a step with the writer's connection; None: this
        is the writer. `check` is called now and then, and may raise. Raises ManifestDamagedError, OSError.
        """
        if not self._merging.acquire(blocking=False):
            return False
        try:
            due = _due(_entries(con))
            if due:
                self._merge(con, due, in_writer or (lambda step: step(con)), check)
            return bool(due)
        finally:
            self._merging.release()

    def _merge(
        self,
        con: duckdb.DuckDBPyConnection,
        due: Sequence[_Entry],
        in_writer: Callable[[Callable[[duckdb.DuckDBPyConnection], None]], None],
        check: Callable[[], None],
    ) -> None:
        runs = [Run(self._directory / entry.name) for entry in due]
        forgotten = _fetch(con, f"SELECT {_HIGH}, {_LOW} FROM forgotten_keys").sorted()
        applied = forgotten.take(np.logical_or.reduce([run.find(forgotten) for run in runs]))
        # Numbers of spills that come meanwhile must differ from ours, so this one is that of a run that gives way.
        number = due[0].number
        try:
            run = write_run(self._directory, number, merged(runs, applied, check))
        except RunDamagedError as error:
            raise ManifestDamagedError(self._manifest, str(error)) from error
        failpoint("keys.merged")

        def commit(con: duckdb.DuckDBPyConnection) -> None:
            con.execute("BEGIN")
            try:
                con.execute("DELETE FROM key_runs WHERE name IN (SELECT unnest(?::VARCHAR[]))", [[e.name for e in due]])
                _enter(con, number, run)
                with _Registered(con, applied) as keys:
                    # Known again since: the new run does not have them.
                    con.execute(f"INSERT INTO event_keys SELECT key FROM {keys} ANTI JOIN forgotten_keys USING (key)")
                    con.execute(f"DELETE FROM forgotten_keys WHERE key IN (SELECT key FROM {keys})")
                con.execute("COMMIT")
            except BaseException:
                with suppress(duckdb.Error):
                    con.execute("ROLLBACK")
                raise
            failpoint("keys.switched")

        in_writer(commit)
        for entry in due:
            (self._directory / entry.name).unlink(missing_ok=True)
            failpoint("keys.removed")


def _due(entries: Sequence[_Entry]) -> list[_Entry]:
    """The oldest MERGE_RUNS runs of the smallest size that has so many."""
    sizes: dict[int, list[_Entry]] = {}
    for entry in entries:
        size, bound = 0, SPILL_KEYS * 2
        while entry.keys >= bound:
            size, bound = size + 1, bound * MERGE_RUNS
        sizes.setdefault(size, []).append(entry)
    due = [sizes[size] for size in sorted(sizes) if len(sizes[size]) >= MERGE_RUNS]
    return due[0][:MERGE_RUNS] if due else []


def _entries(con: duckdb.DuckDBPyConnection | Prepared) -> list[_Entry]:
    rows = con.execute("SELECT number, name, keys FROM ingest_manifest.main.key_runs ORDER BY number").fetchall()
    return [_Entry(*row) for row in rows]


def _next_number(con: duckdb.DuckDBPyConnection) -> int:
    return _number(con, "SELECT coalesce(max(number), 0) + 1 FROM key_runs")


def _enter(con: duckdb.DuckDBPyConnection, number: int, run: Run | None) -> None:
    if run is not None:
        con.execute("INSERT INTO key_runs VALUES (?, ?, ?)", [number, run.name, run.keys])


def _number(con: duckdb.DuckDBPyConnection | Prepared, query: str) -> int:
    row = con.execute(query).fetchone()
    return int(row[0]) if row else 0


_NONE = Keys128(np.empty(0, np.uint64), np.empty(0, np.uint64))


def _fetch(con: duckdb.DuckDBPyConnection | Prepared, query: str) -> Keys128:
    columns = con.execute(query).to_arrow_table()
    return Keys128(columns["high"].to_numpy(), columns["low"].to_numpy())


class _Registered:
    """Keys as a table `found_keys` of a connection, for the time of a `with`."""

    def __init__(self, con: duckdb.DuckDBPyConnection, keys: Keys128) -> None:
        self._con, self._table = con, keys.table()

    def __enter__(self) -> str:
        self._con.register("found_keys", self._table)
        return f"(SELECT {_WHOLE} AS key FROM found_keys)"

    def __exit__(self, *_error: object) -> None:
        self._con.unregister("found_keys")
