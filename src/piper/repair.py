"""Repair: chunks that are broken leave silver, and their rows are made again from what is left.

1. find      every chunk is compared with the manifest (silver/verify.py). What is there of a broken one is renamed to
             `….parquet.damaged`. Died here: it is missing then, and found the next time.
2. drop      one rewrite without any row: the manifest gives the broken chunks up, and notes which days lack how much.
             Died from here on: the next repair goes on.
3. backfill  of these days (backfill/run.py): events come again from the raw files that are there, in all datasets.
4. complete  rows of a domain dataset whose event is in silver/events, and whose raw line is gone, are made from the
             event. The other way round it does not go: a domain row has not all of its event.
5. finish    what still lacks is counted and told.

Keys of events that are lost stay known. Should their files turn up later, `piper backfill` brings them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import structlog

from piper.backfill.reading import candidates
from piper.backfill.run import Backfill, kept_from
from piper.backfill.scope import Scope
from piper.errors import DataRootError, PiperError
from piper.events.registry import EVENT_TYPES
from piper.failpoints import failpoint
from piper.files import sql_literal
from piper.ops.storage import chunk_counts
from piper.silver.commit import note_changed
from piper.silver.datasets import DATASETS, MACROS, Dataset, projection_sql
from piper.silver.rewrite import Partition, Rewrite, partitions
from piper.silver.verify import BrokenChunk, Fault, find_broken, set_aside
from piper.spool.identity import display_path
from piper.upkeep import Hands
from piper.writer import Writer

NAMED_FILES_MAX = 1000
EXAMPLES_MAX = 100
Progress = Callable[[int, int], None]
_KEY = "repair"
"""In manifest_meta: the last repair, finished or not."""
_log = structlog.get_logger(component="repair")


@dataclass(slots=True)
class State:
    """One repair. `before`: rows of each day and dataset with a broken chunk, that chunk's included."""

    chunks: list[dict[str, Any]]
    seq: int = 0
    """The commit that gave the chunks up."""
    before: dict[str, dict[str, int]] = field(default_factory=dict)
    ranges: list[list[str]] = field(default_factory=list)
    """First and last day of what is still to be backfilled."""
    backfill_id: str | None = None
    rejected: dict[str, int] = field(default_factory=dict)
    """Events of a day that the backfill took out, for their line is none by today's rules."""
    unreadable: list[str] = field(default_factory=list)
    lost: dict[str, dict[str, int]] = field(default_factory=dict)
    """Rows that could not be made again, by day and dataset."""
    files_gone: list[str] = field(default_factory=list)
    """Spool files that can have held them and are gone, the first NAMED_FILES_MAX."""
    is_finished: bool = False

    def summary(self) -> dict[str, Any]:
        """For people and programs."""
        lacking = sum(chunk["rows"] for chunk in self.chunks)
        lost = sum(rows for by_dataset in self.lost.values() for rows in by_dataset.values())
        return {
            "chunks": self.chunks,
            "rows": lacking,
            "restored": max(0, lacking - lost),
            "lost": lost,
            "lost_by_day": self.lost,
            "files_gone": self.files_gone,
            "unreadable": self.unreadable,
        }


def read_state(con: duckdb.DuckDBPyConnection) -> State | None:
    """The last repair. `con`: any connection to the manifest."""
    row = con.execute("SELECT value FROM ingest_manifest.main.manifest_meta WHERE key = ?", [_KEY]).fetchone()
    return State(**json.loads(row[0])) if row else None


def _write_state(con: duckdb.DuckDBPyConnection, state: State) -> None:
    con.execute("DELETE FROM manifest_meta WHERE key = ?", [_KEY])
    con.execute("INSERT INTO manifest_meta VALUES (?, ?)", [_KEY, json.dumps(asdict(state))])


@dataclass(slots=True)
class Verification:
    """A look at every chunk: how many there are, and those that are broken."""

    chunks: int = 0
    broken: list[BrokenChunk] = field(default_factory=list)

    @classmethod
    def of(cls, hands: Hands, *, deep: bool, on_progress: Progress = lambda _done, _total: None) -> Verification:
        """Look now; `deep` reads every value of silver."""
        store = hands.writer.store
        engine = (lambda: hands.engine) if deep else None
        return cls(
            *find_broken(hands.con, store.layout, reveal_lock=store.reveal_lock, engine=engine, on_progress=on_progress)
        )


@dataclass(slots=True)
class Repair:
    """A repair of an open data root: `begin`, then `step` until it returns None. `is_live` as in `Backfill`."""

    is_live: bool
    is_deep: bool = False

    def check(self, hands: Hands) -> dict[str, Any]:
        """A dry run: what is broken, which raw files would be read for it, and which are gone. Changes nothing."""
        found = Verification.of(hands, deep=self.is_deep)
        days = sorted({chunk.event_date for chunk in found.broken if chunk.event_date})
        state = State([chunk.as_json() for chunk in found.broken])
        files: set[bytes] = set()
        for scope in _scopes(hands, days):
            files |= {file.path for file in candidates(hands, scope, is_live=self.is_live)}
        state.files_gone = _files_gone(hands, days)
        read = [display_path(path) for path in sorted(files)]
        return state.summary() | {"restored": None, "lost": None, "checked": found.chunks, "read": read}

    def begin(self, hands: Hands) -> State:
        """Set aside and give up what is broken, or go on with a repair that was not finished. Raises PiperError."""
        _check_spool(hands)
        earlier = read_state(hands.con)
        if earlier is not None and not earlier.is_finished:
            return earlier
        try:
            found = Verification.of(hands, deep=self.is_deep)
        finally:
            hands.put_down()
        known = [chunk for chunk in found.broken if chunk.fault is not Fault.FOREIGN]
        _check_mounted(hands, found, known)
        state = State([chunk.as_json() for chunk in found.broken])
        if not found.broken:
            state.is_finished = True
            return state
        moved = set_aside(hands.writer.store.layout, found.broken)
        failpoint("repair.set_aside")
        for chunk in found.broken:
            hands.writer.metrics.chunk_broken(chunk.fault.value, path=chunk.path, detail=chunk.detail)
        _log.warning("repair_begun", chunks=len(found.broken), set_aside=len(moved))
        if known:
            self._drop(hands, state, known)
        else:
            state.is_finished = True
        failpoint("repair.dropped")
        return state

    def step(self, hands: Hands) -> tuple[int, int] | None:
        """Do some seconds of it; returns (done, total) of the present backfill, or None when nothing is left to do."""
        state = read_state(hands.con)
        if state is None or state.is_finished:
            return None
        run = Backfill(is_live=self.is_live)
        under_way = run.state(hands)
        if under_way is not None and not under_way.is_finished:
            return run.step(hands) or (0, 0)
        if under_way is not None and under_way.id == state.backfill_id:
            state.backfill_id = None
            state.ranges.pop(0)
            state.unreadable += under_way.unreadable
            state.rejected |= {day: counts["rejected"] for day, counts in under_way.dates.items() if counts["rejected"]}
            self._note(hands, state)
        elif state.ranges:
            state.backfill_id = run.begin(hands, _scope_of(state.ranges[0])).id
            self._note(hands, state)
        else:
            self._complete(hands, state)
            failpoint("repair.completed")
            self._finish(hands, state)
        return 0, 0

    # ---- inside --------------------------------------------------------------------------------------------------

    def _drop(self, hands: Hands, state: State, broken: list[BrokenChunk]) -> None:
        days = sorted({chunk.event_date for chunk in broken if chunk.event_date})
        state.ranges = [list(scope.as_json().values()) for scope in _scopes(hands, days)]  # type: ignore[arg-type]
        rewrite = Rewrite.begin(hands.writer.store, hands.con)
        rewrite.replaced += [(chunk.dataset, chunk.path) for chunk in broken]

        def also(con: duckdb.DuckDBPyConnection, seq: int) -> None:
            state.seq = seq
            state.before = _with_broken(_sealed_rows(con, days, None), broken)
            events = sum(chunk.rows for chunk in broken if chunk.dataset == "events")
            con.execute("UPDATE progress SET accepted = greatest(0, accepted - ?)", [events])
            _write_state(con, state)

        hands.commit(rewrite, also=also)

    def _complete(self, hands: Hands, state: State) -> None:
        """Make the domain rows that are still missing from their events."""
        rewrite = Rewrite.begin(hands.writer.store, hands.con)
        try:
            engine = hands.engine
            engine.execute("ATTACH ':memory:' AS work")
            engine.execute("USE work")
            for macro in MACROS:
                engine.execute(macro)
            for day in state.before:
                for dataset in DATASETS.values():
                    if not dataset.has_type_partition:
                        self._complete_day(hands, engine, rewrite, dataset, date.fromisoformat(day))
                        hands.check()
        except BaseException:
            rewrite.abandon()
            raise
        finally:
            hands.put_down()
        if rewrite.chunks:
            hands.commit(rewrite)
        else:
            rewrite.abandon()

    def _complete_day(
        self, hands: Hands, engine: duckdb.DuckDBPyConnection, rewrite: Rewrite, dataset: Dataset, day: date
    ) -> None:
        stored = partitions(hands.con, start=day, end=day)
        root = hands.writer.store.layout.silver
        events = _chunk_rows(root, [p for p in stored if p.dataset == "events"], DATASETS["events"])
        if events is None:
            return
        mine = _chunk_rows(root, [p for p in stored if p.dataset == dataset.name], dataset)
        types = ", ".join(f"'{entry.name}'" for entry in EVENT_TYPES.values() if entry.dataset == dataset.name)
        there = f"AND event_id NOT IN (SELECT event_id FROM ({mine}))" if mine else ""
        engine.execute(
            f"""CREATE OR REPLACE TEMP TABLE lacking AS
            SELECT * FROM ({events}) WHERE is_known_type AND event_type IN ({types}) {there}"""
        )
        engine.execute(
            f"""CREATE OR REPLACE TEMP VIEW fresh AS
            SELECT *, '{dataset.name}' AS dataset, NULL::VARCHAR AS event_duration_ms FROM lacking"""
        )
        leaf = Partition(dataset.name, day, f"{dataset.name}/event_date={day}", (), 0, 0)
        rewrite.add(engine, leaf, projection_sql(dataset.name))

    def _finish(self, hands: Hands, state: State) -> None:
        days = [date.fromisoformat(day) for day in state.before]
        after = _sealed_rows(hands.con, days, state.seq)
        for day, before in state.before.items():
            lacking = {
                name: rows - after.get(day, {}).get(name, 0) - state.rejected.get(day, 0)
                for name, rows in before.items()
            }
            if lost := {name: rows for name, rows in lacking.items() if rows > 0}:
                state.lost[day] = lost
        state.files_gone = _files_gone(hands, [date.fromisoformat(day) for day in state.lost])
        state.is_finished = True
        self._note(hands, state, changed=days)
        metrics = hands.writer.metrics
        metrics.chunks_counted(chunk_counts(hands.con))
        metrics.broken_chunks(0)
        told = {name: value for name, value in state.summary().items() if isinstance(value, int)}
        _log.warning("repair_finished", chunks=len(state.chunks), **told)

    def _note(self, hands: Hands, state: State, changed: Iterable[date] = ()) -> None:
        hands.in_writer(partial(_note_state, state, list(changed)))


def _note_state(state: State, changed: list[date], writer: Writer) -> None:
    con = writer.store.con
    con.execute("BEGIN")
    try:
        if changed:  # gold kept the rows of before until now
            seq = writer.store.progress().commit_seq + 1
            note_changed(writer.store.prepared, dict.fromkeys(changed, (0, 0)), seq)
            con.execute("UPDATE progress SET commit_seq = ?", [seq])
        _write_state(con, state)
        con.execute("COMMIT")
    except BaseException:
        with suppress(duckdb.Error):  # a failed COMMIT has ended it already
            con.execute("ROLLBACK")
        raise


def _check_spool(hands: Hands) -> None:
    """Without it nothing could be made again: raises PiperError."""
    if error := hands.in_writer(lambda writer: writer.tailer.spool_error):
        raise PiperError(f"the spool cannot be read: {error}", hint="Rows are made again from it; mount it first.")


def _check_mounted(hands: Hands, found: Verification, known: list[BrokenChunk]) -> None:
    """Where everything is missing, nothing is broken: raises DataRootError."""
    if found.chunks > 1 and sum(chunk.fault is Fault.MISSING for chunk in known) == found.chunks:
        raise DataRootError(
            f"all {found.chunks:,} chunks are missing from {hands.writer.store.layout.silver}",
            hint="Is it mounted? If it was lost, restore it from a backup and run `piper rebuild`.",
        )


def _scopes(hands: Hands, days: list[date]) -> list[Scope]:
    """Runs of days that follow each other, without those that silver does not keep."""
    kept = kept_from(hands)
    scopes: list[Scope] = []
    for day in days:
        if kept is not None and day < kept:
            continue
        if scopes and scopes[-1].last == day - timedelta(days=1):
            scopes[-1] = Scope(scopes[-1].first, day)
        else:
            scopes.append(Scope(day, day))
    return scopes


def _scope_of(days: list[str]) -> Scope:
    return Scope.of({"start": days[0], "end": days[1]})


def _sealed_rows(con: duckdb.DuckDBPyConnection, days: list[date], seq: int | None) -> dict[str, dict[str, int]]:
    """Rows in chunks by day and dataset; with `seq` without what was sealed after that commit."""
    rows = con.execute(
        """SELECT event_date, dataset, sum(row_count)::BIGINT FROM ingest_manifest.main.chunks
        WHERE event_date IN (SELECT unnest(?::DATE[])) AND (? OR commit_seq <= ?) GROUP BY ALL""",
        [days, seq is None, seq or 0],
    ).fetchall()
    found: dict[str, dict[str, int]] = {day.isoformat(): {} for day in days}
    for day, dataset, count in rows:
        found[day.isoformat()][dataset] = count
    return found


def _with_broken(rows: dict[str, dict[str, int]], broken: list[BrokenChunk]) -> dict[str, dict[str, int]]:
    for chunk in broken:
        assert chunk.event_date is not None
        of_day = rows[chunk.event_date.isoformat()]
        of_day[chunk.dataset] = of_day.get(chunk.dataset, 0) + chunk.rows
    return rows


def _chunk_rows(root: Path, stored: list[Partition], dataset: Dataset) -> str | None:
    files = [root / path for partition in stored for path in partition.paths]
    if not files:
        return None
    return dataset.chunk_rows_sql("[" + ", ".join(f"'{sql_literal(file)}'" for file in files) + "]")


def _files_gone(hands: Hands, days: list[date]) -> list[str]:
    """Spool files that are gone and can have held events of these days."""
    scopes = [Scope(day, day) for day in days]
    root = os.fsencode(hands.writer.settings.paths.raw_root)
    rows = hands.con.execute("SELECT path, mtime_ns FROM ingest_manifest.main.sources ORDER BY path").fetchall()
    gone = (
        path
        for path, written_ns in rows
        if any(scope.can_have_held(path, (written_ns or 0) / 1e9) for scope in scopes)
        and not os.path.lexists(root + b"/" + path)
    )
    return [display_path(path) for path in islice(gone, NAMED_FILES_MAX)]


def verification(hands: Hands, *, deep: bool, on_progress: Progress = lambda _done, _total: None) -> dict[str, Any]:
    """What `piper doctor` is told: chunks, those that are broken, and whether a repair waits to be finished."""

    def tell(done: int, total: int) -> None:
        hands.check()
        on_progress(done, total)

    try:
        found = Verification.of(hands, deep=deep, on_progress=tell)
    finally:
        hands.put_down()
    return verified(hands.con, found.chunks, found.broken)


def verified(con: duckdb.DuckDBPyConnection, chunks: int, broken: list[BrokenChunk]) -> dict[str, Any]:
    """The same of what was found by any connection to the manifest."""
    state = read_state(con)
    return {
        "chunks": chunks,
        "broken": len(broken),
        "examples": [chunk.as_json() for chunk in broken[:EXAMPLES_MAX]],
        "unfinished_repair": state is not None and not state.is_finished,
    }
