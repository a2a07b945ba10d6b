"""Silver and the spool together: the source of a refresh whose models also say what is still unread."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import duckdb

from piper.gold.inputs import SilverSource, empty_relation_sql
from piper.spool.hosts import SpoolHost


class WithSpool:
    """A `SilverSource` that has `spool_hosts` beside silver's relations, as they were when it was made."""

    def __init__(self, silver: SilverSource, hosts: Sequence[SpoolHost]) -> None:
        self._silver = silver
        self._hosts = _relation_sql(hosts)

    def changed_dates(self, con: duckdb.DuckDBPyConnection, after_seq: int) -> tuple[int, list[date]]:
        """As silver says."""
        return self._silver.changed_dates(con, after_seq)

    def relation_sql(
        self, con: duckdb.DuckDBPyConnection, dataset: str, dates: Sequence[date] | None, after_seq: int = 0
    ) -> str:
        """As silver says; `spool_hosts` has no dates and no commits."""
        return self._hosts if dataset == "spool_hosts" else self._silver.relation_sql(con, dataset, dates, after_seq)

    def rows_if_only_added(self, con: duckdb.DuckDBPyConnection, dataset: str, dates: Sequence[date]) -> int | None:
        """As silver says."""
        return self._silver.rows_if_only_added(con, dataset, dates)


def _relation_sql(hosts: Sequence[SpoolHost]) -> str:
    if not hosts:
        return empty_relation_sql("spool_hosts")
    rows = ", ".join(f"({_text(host)}, {files}::BIGINT, {behind}::BIGINT)" for host, files, behind in hosts)
    return f"SELECT * FROM (VALUES {rows}) AS spool_hosts (host, files, bytes_behind)"


def _text(value: str) -> str:
    """A string literal. Artists name directories: quotes are doubled, and a NUL byte cannot be in a name."""
    return "'" + value.replace("'", "''") + "'"
