"""Salvage of the quarantine: from its files, and what a damaged manifest had not exported yet.

A line that has a record here is not quarantined again when raw is read again: its key says so.
"""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import duckdb

from piper.files import sql_literal
from piper.silver.commit import REJECTION_KEY
from piper.silver.salvage import stop_if_machine

_LINE_BYTES_MAX = 1 << 24
"""A record is longer than its line: it may spell every byte with six."""
_COLUMNS = (
    "{quarantined_at_utc: 'VARCHAR', source_file: 'VARCHAR', source_offset: 'BIGINT', "
    "reason: 'VARCHAR', raw_md5: 'VARCHAR'}"
)


class QuarantineSalvage:
    """First both `read_…`, outside a transaction, then `fill` inside the caller's."""

    def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
        self._con = con
        self._files: list[tuple[str, date, int]] = []
        con.execute("CREATE OR REPLACE TEMP TABLE quarantined (key UHUGEINT, day DATE, reason VARCHAR)")
        con.execute("CREATE OR REPLACE TEMP TABLE pending AS SELECT *, 0::UHUGEINT AS key FROM rejections LIMIT 0")

    def read_files(self, quarantine: Path) -> list[Path]:
        """Read every quarantine file; returns those that could not be read, whose lines are quarantined once more."""
        unreadable: list[Path] = []
        for path in sorted(quarantine.glob("*/invalid-*.jsonl")):
            try:
                day = date.fromisoformat(path.parent.name)
            except ValueError:
                continue  # somebody's own folder
            size_bytes = _whole_bytes(path)
            self._files.append((str(path.relative_to(quarantine)), day, size_bytes))
            try:
                self._read_file(path, size_bytes)
            except duckdb.Error as error:
                stop_if_machine(error, path)
                unreadable.append(path)
        return unreadable

    def _read_file(self, path: Path, size_bytes: int) -> None:
        self._con.execute(
            f"""INSERT INTO quarantined
            SELECT {REJECTION_KEY} AS key, CAST(TRY_CAST(quarantined_at_utc AS TIMESTAMP) AS DATE), reason
            FROM read_json(
                '{sql_literal(path)}', format = 'newline_delimited', ignore_errors = true, columns = {_COLUMNS},
                maximum_object_size = {min(max(size_bytes, 1024), _LINE_BYTES_MAX)})
            WHERE raw_md5 IS NOT NULL AND key NOT IN (SELECT key FROM quarantined)
            QUALIFY row_number() OVER (PARTITION BY key) = 1"""
        )

    def read_manifest(self, path: Path) -> None:
        """Take over what a damaged manifest had not exported yet, as far as it can be read."""
        try:
            with duckdb.connect() as probe:
                probe.execute(f"ATTACH '{sql_literal(path)}' AS old (READ_ONLY)")
                rejections = probe.execute("FROM old.main.rejections").to_arrow_table()
        except duckdb.Error as error:
            stop_if_machine(error, path)
            return
        self._con.register("old_rejections", rejections)
        try:
            self._con.execute(
                f"""INSERT INTO pending SELECT *, {REJECTION_KEY} AS key FROM old_rejections
                WHERE key NOT IN (SELECT key FROM quarantined)"""
            )
        finally:
            self._con.unregister("old_rejections")

    def fill(self, seq: int) -> int:
        """Insert keys, files, counts and pending rejections (as of commit `seq`); returns how many lines there are."""
        con = self._con
        con.execute("INSERT INTO event_keys SELECT key FROM quarantined UNION ALL SELECT key FROM pending")
        con.execute(
            f"""INSERT INTO rejections SELECT * EXCLUDE (key) REPLACE ({seq}::BIGINT AS commit_seq) FROM pending
            ORDER BY quarantined_at_utc, source_file, source_offset"""
        )
        if self._files:
            con.executemany(
                "INSERT INTO quarantine_files (path, quarantine_date, size_bytes) VALUES (?, ?, ?)", self._files
            )
        con.execute(
            """INSERT INTO quarantine_counts SELECT day, reason, count(*) FROM (
                SELECT day, reason FROM quarantined
                UNION ALL SELECT CAST(quarantined_at_utc AS DATE), reason FROM pending
            ) WHERE day IS NOT NULL GROUP BY ALL"""
        )
        row = con.execute("SELECT coalesce(sum(lines), 0) FROM quarantine_counts").fetchone()
        return int(row[0]) if row else 0


def _whole_bytes(path: Path) -> int:
    """Cut a record without end off the file, as the next export would; returns its length then."""
    with path.open("r+b") as stream:
        size = end = stream.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            stream.seek(start)
            newline = stream.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            stream.truncate(end)
            os.fsync(stream.fileno())
        return end
