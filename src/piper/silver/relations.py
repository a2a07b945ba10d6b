"""Silver as gold reads it: the tail's rows and the chunks of given dates, by name, within one transaction.

The manifest names the chunks, so a refresh of one date opens that date's files only, however long the history is.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import duckdb

from piper.layout import Layout
from piper.silver.datasets import DATASETS, Dataset
from piper.silver.store import Store

_DATABASE = "ingest_manifest.main"


class SilverRelations:
    """The `SilverSource` of a warehouse that this process writes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._layout: Layout = store.layout

    def changed_dates(self, con: duckdb.DuckDBPyConnection, after_seq: int) -> tuple[int, list[date]]:
        """(last commit, dates changed after `after_seq`).

        Fixes the transaction's view of the manifest, between commits and never between a commit and the reveal of its
        chunks; so every chunk that this transaction finds in the manifest is in its place.
        """
        with self._store.reveal_lock:
            through = self._store.progress(con).commit_seq
        rows = con.execute(
            f"SELECT event_date FROM {_DATABASE}.dates WHERE changed_seq > ? ORDER BY event_date", [after_seq]
        ).fetchall()
        return through, [row[0] for row in rows]

    def relation_sql(
        self, con: duckdb.DuckDBPyConnection, dataset: str, dates: Sequence[date] | None, after_seq: int = 0
    ) -> str:
        """SELECT of a silver relation (`silver_<dataset>`, or `ingest_counts`) for `dates`, None = all.

        With `after_seq` only rows of later commits; only chunks that were written since are opened for them.
        """
        where = "TRUE" if dates is None else f"event_date IN ({_date_list(dates)})"
        if dataset == "ingest_counts":
            return f"SELECT event_date, quarantined_lines, duplicate_events FROM {_DATABASE}.dates WHERE {where}"
        found = DATASETS[dataset.removeprefix("silver_")]
        if after_seq:
            where += f" AND commit_seq > {after_seq:d}"
        tail = f"SELECT {found.column_list} FROM {_DATABASE}.{found.tail_table} WHERE {where}"
        chunks = self._chunks(con, found, where)
        if not chunks:
            return tail
        return f"{tail} UNION ALL {chunks}" + (f" WHERE commit_seq > {after_seq:d}" if after_seq else "")

    def rows_if_only_added(self, con: duckdb.DuckDBPyConnection, dataset: str, dates: Sequence[date]) -> int | None:
        """Rows of `silver_<dataset>` for `dates`, from the manifest alone; None when a rewrite wrote some of them.

        Such rows no longer tell by which commit they came, and a backfill may have changed them.
        """
        found = DATASETS[dataset.removeprefix("silver_")]
        where = f"event_date IN ({_date_list(dates)})"
        row = con.execute(
            f"""SELECT coalesce(sum(row_count), 0)::BIGINT
                + (SELECT count(*) FROM {_DATABASE}.{found.tail_table} WHERE {where})
            FROM {_DATABASE}.chunks WHERE dataset = ? AND {where}
            HAVING count(*) FILTER (commit_seq < 0) = 0""",
            [found.name],
        ).fetchone()
        return int(row[0]) if row else None

    def _chunks(self, con: duckdb.DuckDBPyConnection, dataset: Dataset, where: str) -> str:
        rows = con.execute(
            f"SELECT path FROM {_DATABASE}.chunks WHERE dataset = ? AND {where} ORDER BY path", [dataset.name]
        ).fetchall()
        if not rows:
            return ""
        files = ", ".join("'" + str(self._layout.silver / row[0]).replace("'", "''") + "'" for row in rows)
        return dataset.chunk_rows_sql(f"[{files}]")


def _date_list(dates: Sequence[date]) -> str:
    return ", ".join(f"DATE '{day.isoformat()}'" for day in dates) or "NULL"
