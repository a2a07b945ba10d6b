"""Commit: one micro-batch, one transaction: rows, rejections, keys, counts and offsets, or none of them.

A batch that is large, or that finds the tail full or old, is sealed on the way: its rows and the tail's become chunks
instead of tail rows, so that a backlog is written once. The steps, and what a death after each leaves:

1. stage   chunks are written and fsynced below silver/.staging/<commit_seq>; no view's glob sees them.
           Died here: the next open removes them. The rows are still in the tail or in the spool.
2. commit  the transaction: offsets, keys, counts, and `sealed_through` instead of tail rows.
           Died here: durable. The next open goes on with step 3 before anything else.
3. reveal  chunks are renamed into place, directories fsynced. Readers see them only once a tail snapshot with the new
           `sealed_through` is published; until then the published tail still has the rows.
           Died here: nothing to do.

An error of the transaction itself leaves open what became durable, so the store must be opened anew: the manifest
tells.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from piper.events.quarantine import Rejection
from piper.failpoints import failpoint
from piper.prepared import Prepared
from piper.silver.datasets import DATASETS, projection_sql
from piper.silver.dedupe import keep_first
from piper.silver.seal import StagedChunk, insert_chunks, stage_chunks
from piper.silver.source_states import write_sources
from piper.silver.staging import SEAL, numbered, reveal
from piper.silver.store import Store
from piper.spool.tail import Batch


@dataclass(slots=True)
class Committed:
    """What one commit did: numbers for metrics, logs and summaries."""

    commit_seq: int
    accepted: int = 0
    accepted_by_group: dict[str, int] = field(default_factory=dict)
    last_event_by_group: dict[str, float] = field(default_factory=dict)
    """Unix seconds of the newest event of each group."""
    datasets: set[str] = field(default_factory=set)
    """Datasets that got rows."""
    duplicates: int = 0
    quarantined: dict[str, int] = field(default_factory=dict)
    contract_violations: int = 0
    unknown_types: int = 0
    lag_seconds: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    chunks: list[StagedChunk] = field(default_factory=list)


def commit(
    store: Store,
    batch: Batch,
    rejections: Sequence[Rejection],
    *,
    now: datetime,
    seal: bool,
    fresh_rows: bool = True,
    projection: Callable[[str], str] = projection_sql,
    progress: Callable[[], None] = lambda: None,
) -> Committed:
    """Make what `parsed` holds, `rejections` and the batch's offsets durable. `now`: naive UTC.

    `seal` turns these rows and the whole tail into chunks. `fresh_rows=False` says that `parsed` is empty (a commit
    that only seals or only moves offsets). `projection` gives the SELECT over `fresh` of a dataset's stored columns.
    `progress` is called often while a seal of many chunks goes forward.
    After an error the store must be opened anew.
    """
    con = store.con
    result = Committed(store.progress().commit_seq + 1)
    repeated = keep_first(store.prepared, store.keys) if fresh_rows else []
    if fresh_rows:
        _measure(store.prepared, result, now)
    result.duplicates = sum(count for _, count in repeated)
    result.quarantined = _stage_rejections(store, rejections)
    staged = store.layout.staging / numbered(SEAL, result.commit_seq)
    # What a failed attempt at this commit staged must not be there when the commit is durable: opening would reveal it.
    shutil.rmtree(staged, ignore_errors=True)
    if seal:
        result.chunks = stage_chunks(con, store.second_con, staged, projection if fresh_rows else None, progress)
        failpoint("commit.staged")
    with store.reveal_lock:
        _transaction(store, batch, result, repeated, now, projection, seal=seal, fresh_rows=fresh_rows)
        failpoint("commit.committed")
        if seal:
            reveal(store.layout, staged, progress)
            failpoint("commit.revealed")
    if seal:
        _give_back_memory(con)
    store.keys.spill_if_full(store.prepared)
    return result


def _give_back_memory(con: duckdb.DuckDBPyConnection) -> None:
    """Rows of the tail stay in memory, also deleted ones, until DuckDB makes a checkpoint."""
    with suppress(duckdb.TransactionException):  # somebody else writes: the next seal, or the log's size, makes one
        con.execute("CHECKPOINT ingest_manifest")


def create_work_tables(con: duckdb.DuckDBPyConnection) -> None:
    """Make what commits work with in `work`, once, after the parser's tables: commits fill it and define nothing."""
    con.execute("CREATE TABLE work.new_keys (key UHUGEINT, line_index BIGINT)")
    con.execute("CREATE TABLE work.this_commit (commit_seq BIGINT, ingested_at_utc TIMESTAMP)")
    # What the datasets' projections read.
    con.execute(
        """CREATE VIEW work.fresh AS
        SELECT parsed.*, ingested_at_utc, commit_seq FROM work.parsed, work.this_commit"""
    )
    con.execute(
        """CREATE TABLE work.new_rejections (
            source_file VARCHAR, source_offset BIGINT, source_line BIGINT, reason VARCHAR, field VARCHAR, raw BLOB,
            raw_bytes BIGINT, raw_md5 VARCHAR, key UHUGEINT)"""
    )


def _measure(prepared: Prepared, result: Committed, now: datetime) -> None:
    prepared.execute("TRUNCATE work.this_commit")
    prepared.execute(
        "INSERT INTO work.this_commit VALUES ($commit_seq, $now::TIMESTAMP)", commit_seq=result.commit_seq, now=now
    )
    rows = prepared.execute(
        """SELECT event_group, dataset, count(*), epoch(max(occurred_at_utc)), count(contract_violation),
            count(*) FILTER (NOT is_known_type)
        FROM fresh LEFT JOIN shapes USING (shape) GROUP BY event_group, dataset"""
    ).fetchall()
    for group, dataset, count, last, violations, unknown in rows:
        result.accepted_by_group[group] = result.accepted_by_group.get(group, 0) + count
        result.last_event_by_group[group] = max(last, result.last_event_by_group.get(group, last))
        result.datasets |= {"events", dataset}
        result.accepted += count
        result.contract_violations += violations
        result.unknown_types += unknown
    lag = prepared.execute("SELECT epoch(ingested_at_utc) - epoch(occurred_at_utc) AS lag FROM parsed, this_commit")
    result.lag_seconds = lag.fetchnumpy()["lag"]


def _transaction(
    store: Store, batch: Batch, result: Committed,
    repeated: list[tuple[date, int]], now: datetime, projection: Callable[[str], str], *, seal: bool, fresh_rows: bool,
) -> None:  # fmt: skip
    con, prepared = store.con, store.prepared
    con.execute("BEGIN")
    try:
        if result.quarantined:
            _insert_rejections(store, result.commit_seq, now)
        if fresh_rows:
            store.keys.add(prepared, "work.new_keys")
        _touch_dates(store, result, repeated, now, fresh_rows=fresh_rows)
        if seal:
            _forget_tail(con, result, now)
        elif fresh_rows and result.accepted:
            _insert_tail(prepared, result.datasets, projection)
        write_sources(prepared, batch, now)
        prepared.execute(
            """UPDATE progress SET commit_seq = $commit_seq, committed_at_utc = $now, accepted = accepted + $accepted,
            duplicates = duplicates + $duplicates, quarantined = quarantined + $quarantined""",
            commit_seq=result.commit_seq,
            now=now,
            accepted=result.accepted,
            duplicates=result.duplicates,
            quarantined=sum(result.quarantined.values()),
        )
        failpoint("commit.written")
        con.execute("COMMIT")
    except BaseException:
        _roll_back(con)
        raise


def _roll_back(con: duckdb.DuckDBPyConnection) -> None:
    with suppress(duckdb.Error):  # a failed COMMIT has ended it already; the caller opens the store anew either way
        con.execute("ROLLBACK")


def _insert_tail(prepared: Prepared, datasets: set[str], projection: Callable[[str], str]) -> None:
    for dataset in (DATASETS[name] for name in DATASETS if name in datasets):
        prepared.execute(f"INSERT INTO {dataset.tail_table} ({dataset.column_list}) {projection(dataset.name)}")


def _forget_tail(con: duckdb.DuckDBPyConnection, result: Committed, now: datetime) -> None:
    """The tail's rows are in staged chunks now; together with this, `sealed_through` says so."""
    for dataset in DATASETS.values():
        con.execute(f"DELETE FROM {dataset.tail_table}")
    con.execute("UPDATE progress SET sealed_through = ?, sealed_at_utc = ?", [result.commit_seq, now])
    insert_chunks(con, result.chunks, result.commit_seq)


def _touch_dates(
    store: Store,
    result: Committed,
    repeated: list[tuple[date, int]],
    now: datetime,
    *,
    fresh_rows: bool,
) -> None:
    """Note which dates gold must look at again, and count what is no row of silver."""
    changed: dict[date, tuple[int, int]] = dict.fromkeys(_fresh_dates(store.prepared) if fresh_rows else [], (0, 0))
    for event_date, count in repeated:
        changed[event_date] = (0, count)
    quarantined = sum(result.quarantined.values())
    if quarantined:
        changed[now.date()] = (quarantined, changed.get(now.date(), (0, 0))[1])
        _upsert(store.con, "quarantine_counts", "quarantine_date, reason", "lines",
                [(now.date(), reason, count) for reason, count in result.quarantined.items()])  # fmt: skip
    note_changed(store.prepared, changed, result.commit_seq)


def note_changed(prepared: Prepared, changed: Mapping[date, tuple[int, int]], commit_seq: int) -> None:
    """Tell gold to look at these dates again, and add to their (quarantined lines, duplicate events)."""
    if not changed:
        return
    days = sorted(changed)
    quarantined, duplicates = [changed[day][0] for day in days], [changed[day][1] for day in days]
    prepared.execute(
        f"""UPDATE dates SET changed_seq = $commit_seq,
            quarantined_lines = dates.quarantined_lines + c.quarantined_lines,
            duplicate_events = dates.duplicate_events + c.duplicate_events
        FROM ({_CHANGED_DATES}) AS c WHERE dates.event_date = c.event_date""",
        commit_seq=commit_seq,
        days=days,
        quarantined=quarantined,
        duplicates=duplicates,
    )
    prepared.execute(
        f"""INSERT INTO dates (event_date, changed_seq, quarantined_lines, duplicate_events)
        SELECT event_date, $commit_seq, quarantined_lines, duplicate_events
        FROM ({_CHANGED_DATES}) ANTI JOIN dates USING (event_date)""",
        commit_seq=commit_seq,
        days=days,
        quarantined=quarantined,
        duplicates=duplicates,
    )


_CHANGED_DATES = """SELECT unnest($days::DATE[]) AS event_date, unnest($quarantined::BIGINT[]) AS quarantined_lines,
    unnest($duplicates::BIGINT[]) AS duplicate_events"""


def _fresh_dates(prepared: Prepared) -> list[date]:
    return [row[0] for row in prepared.execute("SELECT DISTINCT event_date FROM parsed").fetchall()]


def _upsert(
    con: duckdb.DuckDBPyConnection, table: str, keys: str, count: str, rows: list[tuple[date, str, int]]
) -> None:
    where = " AND ".join(f"{key} = ?" for key in keys.split(", "))
    for day, reason, lines in rows:
        found = con.execute(f"UPDATE {table} SET {count} = {count} + ? WHERE {where}", [lines, day, reason]).fetchone()
        if not found or not found[0]:
            con.execute(f"INSERT INTO {table} VALUES (?, ?, ?)", [day, reason, lines])


def _stage_rejections(store: Store, rejections: Sequence[Rejection]) -> dict[str, int]:
    """Put those that were not quarantined before into `new_rejections`, each once; returns how many per reason.

    A rejection's key (source file, offset, content) is among the keys of events: read again after a truncation, a
    rebuild or a restored spool, the same bad line at the same place stays one entry.
    """
    if not rejections:
        return {}
    prepared = store.prepared
    table = pa.table(
        {
            "source_file": [r.source_file for r in rejections],
            "source_offset": [r.source_offset for r in rejections],
            "source_line": [r.source_line for r in rejections],
            "reason": [r.reason.value for r in rejections],
            "field": [r.field for r in rejections],
            "raw": pa.array([r.raw for r in rejections], pa.binary()),
            "raw_bytes": [r.raw_bytes for r in rejections],
            "raw_md5": [r.raw_md5 for r in rejections],
        }
    )
    prepared.execute("TRUNCATE work.new_rejections")
    with prepared.given("rejected", table):
        prepared.execute(
            f"""INSERT INTO work.new_rejections SELECT *, {REJECTION_KEY} AS key FROM rejected
            QUALIFY row_number() OVER (PARTITION BY key) = 1"""
        )
    store.keys.drop_known(prepared, "work.new_rejections")
    return dict(prepared.execute("SELECT reason, count(*) FROM new_rejections GROUP BY reason").fetchall())


def _insert_rejections(store: Store, commit_seq: int, now: datetime) -> None:
    store.keys.add(store.prepared, "work.new_rejections")
    store.prepared.execute(
        """INSERT INTO rejections SELECT $commit_seq, $now, * EXCLUDE (key)
        FROM new_rejections ORDER BY source_file, source_offset""",
        commit_seq=commit_seq,
        now=now,
    )


REJECTION_KEY = "xor(md5_number(concat_ws(chr(0), source_file, source_offset, raw_md5)), 1::UHUGEINT)"
"""SQL for the key of a rejection. The flipped bit keeps it apart from an event whose id spells the very same text."""
