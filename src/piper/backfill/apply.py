"""Apply: the changes of one day take effect, by one rewrite: rows, keys, counts and released lines, or none of it.

Ingest goes on meanwhile. Should it have committed one of the missing events before us, nothing is done and the day is
compared again: an event is in silver once.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from functools import partial

import duckdb
import pyarrow as pa

from piper.backfill.compare import Changes, rows_of
from piper.backfill.workbench import Workbench
from piper.errors import PiperError
from piper.silver.datasets import DATASETS, UNKNOWN_PARTITION, Dataset
from piper.silver.release import release
from piper.silver.rewrite import Partition, Rewrite, partitions
from piper.silver.store import Store
from piper.upkeep import Hands


class ComeMeanwhileError(PiperError):
    """Ingest has committed an event that was missing when the day was compared."""

    def __init__(self) -> None:
        super().__init__("events came in while they were being backfilled", hint="Run it again.")


def apply(
    bench: Workbench, hands: Hands, changes: Changes, write: Callable[[duckdb.DuckDBPyConnection, Changes], None]
) -> None:
    """Make the changes that `compare` found durable; `write` adds to the transaction. Raises ComeMeanwhileError."""
    fresh = bench.con.execute("SELECT event_id FROM bench.absent WHERE NOT is_known").to_arrow_table()
    withdrawn = bench.con.execute("SELECT DISTINCT event_id FROM bench.withdrawn").to_arrow_table()
    released = _released(bench, changes.day)
    rewrite = Rewrite.begin(hands.writer.store, hands.con)
    try:
        _take_out(bench, hands, rewrite)
        _bring_in(bench, hands, rewrite)
        hands.check()
    except BaseException:
        rewrite.abandon()
        raise

    def also(con: duckdb.DuckDBPyConnection, seq: int) -> None:
        _note_keys(hands.writer.store, fresh, withdrawn)
        con.execute("UPDATE progress SET accepted = greatest(0, accepted + ?)", [changes.added - changes.rejected])
        release(hands.writer.store, released, seq)
        write(con, changes)

    hands.commit(rewrite, changed=sorted(changes.dates), also=also)


def _released(bench: Workbench, day: date) -> pa.Table:
    return bench.con.execute(
        "SELECT DISTINCT key::VARCHAR AS key, file, day, reason FROM bench.passing WHERE event_date = ?", [day]
    ).to_arrow_table()


def _take_out(bench: Workbench, hands: Hands, rewrite: Rewrite) -> None:
    """Write the chunks anew that hold events of `removed`, without these."""
    if not bench.value("SELECT count(*) FROM bench.removed"):
        return
    days = [day for (day,) in bench.rows("SELECT DISTINCT event_date FROM bench.removed")]
    root = f"{hands.writer.store.layout.silver}/"
    for partition in partitions(hands.con, start=min(days), end=max(days)):
        if partition.event_date not in days:
            continue
        mine = f"(SELECT event_id FROM bench.removed WHERE event_date = DATE '{partition.event_date}')"
        rows = _rows_with_names(hands, partition)
        found = bench.rows(f"SELECT DISTINCT filename FROM ({rows}) WHERE event_id IN {mine}")
        paths = sorted(name.removeprefix(root) for (name,) in found)
        if paths:
            rewrite.replace(bench.con, partition, paths, select=partial(_without, mine))
        hands.check()


def _without(events: str, rows: str) -> str:
    return f"FROM ({rows}) WHERE event_id NOT IN {events}"


def _rows_with_names(hands: Hands, partition: Partition) -> str:
    return rows_of(hands, DATASETS[partition.dataset], [partition], "event_id, filename", with_filename=True)


def _bring_in(bench: Workbench, hands: Hands, rewrite: Rewrite) -> None:
    """Write the new rows of `brought`, a chunk a partition."""
    for dataset in DATASETS.values():
        kind = (
            f"CASE WHEN is_known_type THEN event_type ELSE '{UNKNOWN_PARTITION}' END"
            if dataset.has_type_partition
            else "NULL"
        )
        ingested = "ingested_at_utc" if dataset.has_type_partition else None
        columns = ", ".join(f'b."{name}"' if name == ingested else f'n."{name}"' for name, _ in dataset.stored)
        rows = f"""SELECT {columns}, {kind} AS kind
            FROM bench.new_{dataset.name} AS n JOIN bench.brought AS b USING (event_id)"""
        for day, name in bench.rows(f"SELECT DISTINCT event_date, kind FROM ({rows}) ORDER BY ALL"):
            part = f"SELECT * EXCLUDE (kind) FROM ({rows}) WHERE event_date = DATE '{day}'"
            if name is not None:
                part += f" AND kind = '{name}'"
            rewrite.add(bench.con, _leaf(dataset, day, name), part)
            hands.check()


def _leaf(dataset: Dataset, day: date, kind: str | None) -> Partition:
    directory = f"{dataset.name}/event_date={day}" + (f"/event_type={kind}" if kind else "")
    return Partition(dataset.name, day, directory, (), 0, 0)


def _note_keys(store: Store, fresh: pa.Table, withdrawn: pa.Table) -> None:
    con, keys = store.con, store.keys
    if fresh.num_rows:
        _take_keys(con, fresh, "brought_keys")
        keys.drop_known(store.prepared, "brought_keys")
        left = con.execute("SELECT count(*) FROM brought_keys").fetchone()
        if left != (fresh.num_rows,):
            raise ComeMeanwhileError
        keys.add(store.prepared, "brought_keys")
    if withdrawn.num_rows:
        _take_keys(con, withdrawn, "withdrawn_keys")
        keys.forget(con, "withdrawn_keys")


def _take_keys(con: duckdb.DuckDBPyConnection, events: pa.Table, into: str) -> None:
    con.register("these_events", events)
    try:
        con.execute(f"CREATE OR REPLACE TEMP TABLE {into} AS SELECT md5_number(event_id) AS key FROM these_events")
    finally:
        con.unregister("these_events")
