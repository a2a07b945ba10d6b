"""Compare: what of one day in silver differs from the lines in the workbench.

Both sides have the form in which silver stores events (masks included), in all datasets. What says when and from where
an event came does not count: an event that is the same stays as it was committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime

from piper.backfill.workbench import Workbench
from piper.events.dialects import shapes_sql
from piper.files import sql_literal
from piper.silver.datasets import DATASETS, Dataset, projection_sql
from piper.silver.masking import masked_projection_sql, translation_of_parsed
from piper.silver.rewrite import Partition, partitions
from piper.upkeep import Hands

UNCOMPARED = frozenset({"event_id", "ingested_at_utc", "commit_seq", "source_file", "source_offset", "source_line"})


@dataclass(slots=True)
class Changes:
    """What is to change on a day. The rows are in the workbench: `new_<dataset>`, `removed`, `brought`."""

    day: date
    added: int = 0
    replaced: int = 0
    rejected: int = 0
    """Events whose line is none by today's rules."""
    unchanged: int = 0
    released: int = 0
    """Lines that leave quarantine."""
    dates: set[date] = field(default_factory=set)
    """Days whose rows change: `day`, and those that an event leaves or goes to."""

    def __bool__(self) -> bool:
        return bool(self.added or self.replaced or self.rejected or self.released)

    def counts(self) -> dict[str, int]:
        """By kind."""
        return {name: getattr(self, name) for name in KINDS}


KINDS = ("added", "replaced", "rejected", "released", "unchanged")


class InTailError(Exception):
    """An event that is to change, or is thought to be missing, is still in the tail: seal it, and compare again."""


def keep_first(bench: Workbench) -> None:
    """Of several lines with one event_id keep the first."""
    with bench.transaction():
        bench.con.execute(
            """DELETE FROM bench.staged
            WHERE rowid NOT IN (SELECT arg_min(rowid, ordinal) FROM bench.staged GROUP BY key)"""
        )
        bench.con.execute("UPDATE bench.run SET stage = 'comparing'")


def compare(bench: Workbench, hands: Hands, day: date, first: date, last: date, *, only_add: bool) -> Changes:
    """Find out what changes on `day`, one of the days from `first` to `last`. Changes nothing.

    `only_add`: events that silver has stay as they are. Raises InTailError.
    """
    changes = Changes(day)
    stored = partitions(hands.con, start=day, end=day)
    _find_old(bench, hands, stored)
    _take_lines(bench, day, first, last)
    _project(bench, hands)
    _find_changed(bench, hands, stored, only_add=only_add)
    _find_elsewhere(bench, hands, changes, only_add=only_add)
    _find_rejected(bench, changes, only_add=only_add)
    _count(bench, changes, hands.writer.clock.now())
    return changes


def _find_old(bench: Workbench, hands: Hands, stored: Sequence[Partition]) -> None:
    """`old`: every event that silver has on the day."""
    rows = rows_of(hands, DATASETS["events"], stored, "event_id, event_date, source_offset, ingested_at_utc")
    bench.con.execute(f"CREATE OR REPLACE TABLE bench.old AS {rows}")


def _take_lines(bench: Workbench, day: date, first: date, last: date) -> None:
    """`parsed`: the lines of the day, and those of days out of range whose event silver has on this day."""
    if bench.value("SELECT count(*) FROM duckdb_tables() WHERE database_name = 'work' AND table_name = 'parsed'"):
        bench.con.execute("DROP TABLE work.parsed")  # the parser's, which has done its work
    bench.con.execute(
        f"""CREATE OR REPLACE VIEW work.parsed AS
        SELECT * EXCLUDE (ordinal, key)
        FROM bench.staged
        WHERE event_date = DATE '{day}'
            OR (event_date NOT BETWEEN DATE '{first}' AND DATE '{last}'
                AND event_id IN (SELECT event_id FROM bench.old))"""
    )
    bench.con.execute(f"CREATE OR REPLACE TABLE work.shapes AS {shapes_sql()}")
    bench.con.execute(
        """CREATE OR REPLACE VIEW work.fresh AS
        SELECT *, NULL::TIMESTAMP AS ingested_at_utc, 0::BIGINT AS commit_seq FROM work.parsed"""
    )


def _project(bench: Workbench, hands: Hands) -> None:
    """`new_<dataset>`: the lines as silver would store them."""
    masking = hands.writer.masking
    translation = None
    if masking.is_on:
        users = {user for (user,) in bench.rows("SELECT DISTINCT host_user FROM parsed")}
        users |= {user for (user,) in bench.rows("SELECT DISTINCT split_part(source_file, '/', 2) FROM parsed")}
        hands.in_writer(lambda writer: writer.masking.note_users(users))
        translation = translation_of_parsed(
            bench.con,
            masking.names,
            users,
            lambda words: hands.in_writer(lambda writer: writer.masking.names.add(words, is_searched=True)),
        )
    for name in DATASETS:
        rows = masked_projection_sql(name, translation) if translation else projection_sql(name)
        bench.con.execute(f"CREATE OR REPLACE TABLE bench.new_{name} AS {rows}")
        hands.check()


def _find_changed(bench: Workbench, hands: Hands, stored: Sequence[Partition], *, only_add: bool) -> None:
    """`changed`: events that silver has on the day, and that differ in any dataset."""
    con = bench.con
    con.execute("CREATE OR REPLACE TABLE bench.changed (event_id VARCHAR)")
    if only_add:
        return
    for dataset in DATASETS.values():
        names = [name for name, _ in dataset.stored if name not in UNCOMPARED]
        old = rows_of(hands, dataset, stored, ", ".join(f'"{name}"' for name in ["event_id", *names]))
        differs = " OR ".join(f'o."{name}" IS DISTINCT FROM n."{name}"' for name in names)
        con.execute(
            f"""INSERT INTO bench.changed
            SELECT event_id FROM (SELECT event_id, o.status AS os, n.status AS ns, ({differs}) AS differs
                FROM ({old}) AS o FULL JOIN bench.new_{dataset.name} AS n USING (event_id))
            WHERE event_id IN (SELECT event_id FROM bench.old) AND event_id IN (SELECT event_id FROM bench.new_events)
                AND (os IS NULL OR ns IS NULL OR differs)"""
        )
        hands.check()


def _find_elsewhere(bench: Workbench, hands: Hands, changes: Changes, *, only_add: bool) -> None:
    """`absent`: events that silver does not have on the day; `elsewhere`: those of them that it has on another day."""
    con = bench.con
    con.execute(
        """CREATE OR REPLACE TABLE bench.absent AS
        SELECT event_id, FALSE AS is_known FROM bench.new_events ANTI JOIN bench.old USING (event_id)"""
    )
    con.execute("CREATE OR REPLACE TABLE bench.elsewhere AS SELECT * FROM bench.old LIMIT 0")
    if _mark_known(bench, hands):
        for partition in partitions(hands.con):
            if partition.dataset == "events" and partition.event_date != changes.day:
                columns = "event_id, event_date, source_offset, ingested_at_utc"
                rows = rows_of(hands, DATASETS["events"], [partition], columns)
                con.execute(
                    f"""INSERT INTO bench.elsewhere
                    SELECT * FROM ({rows})
                    WHERE event_id IN (SELECT event_id FROM bench.absent WHERE is_known)"""
                )
                hands.check()
    if only_add:
        con.execute("DELETE FROM bench.absent WHERE event_id IN (SELECT event_id FROM bench.elsewhere)")
        con.execute("DELETE FROM bench.elsewhere")


def _mark_known(bench: Workbench, hands: Hands) -> bool:
    """Mark the events of `absent` whose key is known: on another day, or pruned long ago. Raises InTailError.

    Returns whether there are any. Tables go from engine to engine as they are: 20,000 of their values as Python objects
    would keep every other thread, ingest among them, from running for seconds.
    """
    absent = bench.con.execute("SELECT event_id FROM bench.absent").to_arrow_table()
    if not absent.num_rows:
        return False
    hands.con.register("absent", absent)
    try:
        hands.writer.store.keys.find_known(hands.con, "SELECT md5_number(event_id) AS key FROM absent")
        known = hands.con.execute(
            "SELECT event_id FROM absent WHERE md5_number(event_id) IN (SELECT key FROM known_keys)"
        ).to_arrow_table()
        in_tail = """SELECT 1 FROM ingest_manifest.main.events_tail
            WHERE event_id IN (SELECT event_id FROM absent)
                AND md5_number(event_id) IN (SELECT key FROM known_keys) LIMIT 1"""
        if known.num_rows and hands.con.execute(in_tail).fetchone():
            raise InTailError
    finally:
        hands.con.unregister("absent")
    bench.con.register("known", known)
    try:
        bench.con.execute("UPDATE bench.absent SET is_known = TRUE WHERE event_id IN (SELECT event_id FROM known)")
    finally:
        bench.con.unregister("known")
    return bool(known.num_rows)


def _find_rejected(bench: Workbench, changes: Changes, *, only_add: bool) -> None:
    """`withdrawn`: events whose very line, by id and offset, is none by today's rules, and that no other line gives."""
    bench.con.execute(
        f"""CREATE OR REPLACE TABLE bench.withdrawn AS
        SELECT DISTINCT event_id, event_date FROM bench.old
        WHERE {not only_add} AND (event_id, source_offset) IN (SELECT (event_id, source_offset) FROM bench.rejected)
            AND md5_number(event_id) NOT IN (SELECT key FROM bench.staged)"""
    )
    changes.rejected = bench.value("SELECT count(*) FROM bench.withdrawn")


def _count(bench: Workbench, changes: Changes, now: datetime) -> None:
    """`removed`: (event, day) that leave their chunks; `brought`: events with new rows, their old times or `now`."""
    con = bench.con
    con.execute(  # a missing event may have left its row in another dataset
        f"""CREATE OR REPLACE TABLE bench.removed AS
        SELECT event_id, event_date FROM bench.old WHERE event_id IN (SELECT event_id FROM bench.changed)
        UNION SELECT event_id, event_date FROM bench.elsewhere
        UNION SELECT event_id, event_date FROM bench.withdrawn
        UNION SELECT event_id, DATE '{changes.day}' FROM bench.absent"""
    )
    con.execute(
        """CREATE OR REPLACE TABLE bench.brought AS
        SELECT event_id, coalesce(any_value(ingested_at_utc), ?) AS ingested_at_utc FROM (
            SELECT event_id, ingested_at_utc FROM bench.old WHERE event_id IN (SELECT event_id FROM bench.changed)
            UNION ALL SELECT event_id, ingested_at_utc FROM bench.elsewhere
            UNION ALL SELECT event_id, NULL FROM bench.absent
        ) GROUP BY event_id""",
        [now],
    )
    elsewhere = bench.value("SELECT count(DISTINCT event_id) FROM bench.elsewhere")
    changes.added = bench.value("SELECT count(*) FROM bench.absent") - elsewhere
    changes.replaced = bench.value("SELECT count(DISTINCT event_id) FROM bench.changed") + elsewhere
    changes.unchanged = bench.value("SELECT count(*) FROM bench.new_events") - changes.added - changes.replaced
    [(changes.released,)] = bench.rows(
        "SELECT count(DISTINCT key) FROM bench.passing WHERE event_date = ?", [changes.day]
    )
    changes.dates = {
        day
        for (day,) in bench.rows(
            """SELECT event_date FROM bench.removed
            UNION SELECT event_date FROM bench.new_events WHERE event_id IN (SELECT event_id FROM bench.brought)"""
        )
    }


def rows_of(
    hands: Hands, dataset: Dataset, stored: Sequence[Partition], columns: str, *, with_filename: bool = False
) -> str:
    """SELECT of columns of a dataset's chunks in these partitions."""
    root = hands.writer.store.layout.silver
    files = [root / path for partition in stored if partition.dataset == dataset.name for path in partition.paths]
    if not files:
        typed = ", ".join(f'NULL::{kind} AS "{name}"' for name, kind in dataset.stored)
        return f"SELECT {columns} FROM (SELECT {typed}) WHERE FALSE"
    named = ", ".join(f"'{sql_literal(file)}'" for file in files)
    inner = dataset.column_list + (", filename" if with_filename else "")
    return f"SELECT {columns} FROM ({dataset.chunk_rows_sql(f'[{named}]', inner, with_filename=with_filename)})"
