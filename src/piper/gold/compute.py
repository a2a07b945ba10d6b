"""Compute a model's rows and put them into its table, inside the caller's transaction.

`replace` computes the rows of a scope from all of silver that decides them. `add` takes the stored rows and only the
rows that are new in silver, so that a model with a `merge` line does not read the day again every time (bench/gold.py,
busy day).
"""

from __future__ import annotations

from datetime import datetime

import duckdb

from piper.gold import store
from piper.gold.inputs import OWN_COLUMNS, SilverSource
from piper.gold.models import GoldModel
from piper.gold.own import own_relation_sql
from piper.gold.periods import Scope


def replace(con: duckdb.DuckDBPyConnection, source: SilverSource, model: GoldModel, scope: Scope, now: datetime) -> int:
    """Put what the model gives now in the place of the scope's rows; give how many rows there are."""
    con.execute(f"DELETE FROM {store.table_of(model)} WHERE {scope.stale}")
    return _inserted(con, model, _query(con, source, model, scope, now))


def add(
    con: duckdb.DuckDBPyConnection, source: SilverSource, model: GoldModel, scope: Scope, now: datetime, after_seq: int
) -> int | None:
    """Add what commits after `after_seq` brought to the scope's rows; give how many there are.

    None, and nothing is written, when the model cannot be added to, or when its rows would then not stand for as many
    events as silver has: those commits took rows away, or replaced them. That can be told only of whole dates.
    """
    if not model.merge or not after_seq or not scope.dates or not scope.is_whole:
        return None
    kept = f"SELECT * FROM {store.table_of(model)} WHERE ({scope.stale}) AND ({scope.fresh})"
    merged = con.execute(model.merged(kept, _query(con, source, model, scope, now, after_seq))).to_arrow_table()
    con.register("merged", merged)
    try:
        counted = con.execute(f"SELECT COALESCE(SUM({model.merge[0].column}), 0)::BIGINT FROM merged").fetchone()
        if counted != (source.rows_if_only_added(con, model.inputs[0], scope.dates),):
            return None
        con.execute(f"DELETE FROM {store.table_of(model)} WHERE {scope.stale}")
        return _inserted(con, model, "SELECT * FROM merged")
    finally:
        con.unregister("merged")


def _query(
    con: duckdb.DuckDBPyConnection,
    source: SilverSource,
    model: GoldModel,
    scope: Scope,
    now: datetime,
    after_seq: int = 0,
) -> str:
    relations = {
        name: own_relation_sql(name, now)
        if name in OWN_COLUMNS
        else source.relation_sql(con, name, scope.dates, after_seq)
        for name in model.inputs
    }
    return f"SELECT * FROM ({model.with_inputs(relations)}) WHERE {scope.fresh}"


def _inserted(con: duckdb.DuckDBPyConnection, model: GoldModel, query: str) -> int:
    counted = con.execute(f"INSERT INTO {store.table_of(model)} BY NAME {query}").fetchone()
    return int(counted[0]) if counted else 0
