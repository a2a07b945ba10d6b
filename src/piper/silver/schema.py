"""The manifest's tables, versioned.

A manifest is only ever moved forward, one version at a time and each in one transaction; a manifest of a newer version
is refused. Version 2 brought rewrites (silver/rewrite.py) and what masks stand for (silver/masking.py), version 3 key
runs (silver/keys.py).
"""

from __future__ import annotations

from collections.abc import Callable

import duckdb

from piper.silver.datasets import DATASETS

VERSION = 3

_CREATE_META = "CREATE TABLE IF NOT EXISTS manifest_meta (key VARCHAR, value VARCHAR)"
_VERSION_1 = (
    # One row: where this warehouse stands. sealed_through: all rows of commits up to it are in chunks.
    """CREATE TABLE progress (
        commit_seq BIGINT NOT NULL, sealed_through BIGINT NOT NULL, committed_at_utc TIMESTAMP,
        sealed_at_utc TIMESTAMP, accepted BIGINT NOT NULL, duplicates BIGINT NOT NULL, quarantined BIGINT NOT NULL)""",
    "INSERT INTO progress VALUES (0, 0, NULL, NULL, 0, 0, 0)",
    # Spool files. No index anywhere: DuckDB's primary keys make files five times larger.
    """CREATE TABLE sources (
        source_id BIGINT NOT NULL, path BLOB NOT NULL, source_file VARCHAR NOT NULL, device UBIGINT, inode UBIGINT,
        read_offset BIGINT, lines BIGINT, head BLOB, head_bytes INTEGER, guard BLOB, guard_bytes INTEGER,
        size BIGINT, mtime_ns BIGINT, vanished BOOLEAN, fragment BLOB,
        doubt VARCHAR, doubt_since DOUBLE, doubt_looks INTEGER, updated_at_utc TIMESTAMP)""",
    # md5 of every event_id in silver and of every quarantined line: what makes "once" exact over the whole history.
    "CREATE TABLE event_keys (key UHUGEINT NOT NULL)",
    """CREATE TABLE chunks (
        dataset VARCHAR NOT NULL, event_date DATE NOT NULL, path VARCHAR NOT NULL, row_count BIGINT NOT NULL,
        size_bytes BIGINT NOT NULL, commit_seq BIGINT NOT NULL)""",
    # One row a date that has anything: what gold must look at again, and the counts that are not rows of silver.
    """CREATE TABLE dates (
        event_date DATE NOT NULL, changed_seq BIGINT NOT NULL, quarantined_lines BIGINT NOT NULL,
        duplicate_events BIGINT NOT NULL)""",
    # Rejected lines on their way to the quarantine files, and how far each file is durable.
    """CREATE TABLE rejections (
        commit_seq BIGINT NOT NULL, quarantined_at_utc TIMESTAMP NOT NULL, source_file VARCHAR NOT NULL,
        source_offset BIGINT NOT NULL, source_line BIGINT NOT NULL, reason VARCHAR NOT NULL, field VARCHAR NOT NULL,
        raw BLOB NOT NULL, raw_bytes BIGINT NOT NULL, raw_md5 VARCHAR NOT NULL)""",
    "CREATE TABLE quarantine_files (path VARCHAR NOT NULL, quarantine_date DATE NOT NULL, size_bytes BIGINT NOT NULL)",
    "CREATE TABLE quarantine_counts (quarantine_date DATE NOT NULL, reason VARCHAR NOT NULL, lines BIGINT NOT NULL)",
)


def _create_version_1(con: duckdb.DuckDBPyConnection) -> None:
    for statement in _VERSION_1:
        con.execute(statement)
    for dataset in DATASETS.values():
        columns = ", ".join(f'"{name}" {kind}' for name, kind in dataset.stored)
        con.execute(f"CREATE TABLE {dataset.tail_table} ({columns})")


UNFINISHED = "rebuilding"
"""Key in manifest_meta while `piper rebuild` fills a new manifest: until it is gone, the manifest knows too little."""


def is_unfinished(con: duckdb.DuckDBPyConnection) -> bool:
    """Whether the open manifest is what a rebuild that died has left."""
    if not _has_meta(con):
        return False
    return con.execute("SELECT 1 FROM manifest_meta WHERE key = ?", [UNFINISHED]).fetchone() is not None


def mark_unfinished(con: duckdb.DuckDBPyConnection) -> None:
    """From now until `mark_finished` commits, only another rebuild opens this manifest."""
    con.execute(_CREATE_META)
    con.execute(
        "INSERT INTO manifest_meta SELECT ?, 'true' WHERE ? NOT IN (SELECT key FROM manifest_meta)",
        [UNFINISHED, UNFINISHED],
    )


def mark_finished(con: duckdb.DuckDBPyConnection) -> None:
    """Inside the caller's transaction: with its COMMIT the manifest is whole."""
    con.execute("DELETE FROM manifest_meta WHERE key = ?", [UNFINISHED])


_VERSION_2 = (
    # Rewrites 1 to rewritten_through are durable; the rows of rewrite k have commit_seq -k.
    "ALTER TABLE progress ADD COLUMN rewritten_through BIGINT DEFAULT 0",
    # Chunks whose rows are in others now: hidden from readers, and deleted when no query can still need them.
    """CREATE TABLE hidden_chunks (
        dataset VARCHAR NOT NULL, path VARCHAR NOT NULL, hidden_seq BIGINT NOT NULL,
        hidden_at_utc TIMESTAMP NOT NULL)""",
    # What a mask stands for. is_searched: no row of history can hold the name.
    "CREATE TABLE user_names (name VARCHAR NOT NULL, mask VARCHAR NOT NULL, is_searched BOOLEAN NOT NULL)",
    # One row once it is known (silver/masking.py): is_on: masks take the place of names in the rows that come now;
    # is_pending: older rows may differ; switched_seq: the commit that made them alike, while older files are there.
    """CREATE TABLE masking (
        is_on BOOLEAN NOT NULL, is_pending BOOLEAN NOT NULL, searched_at_utc TIMESTAMP NOT NULL,
        switched_seq BIGINT, is_gold_clean BOOLEAN NOT NULL, cleaned_from_utc TIMESTAMP)""",
)


def _create_version_2(con: duckdb.DuckDBPyConnection) -> None:
    for statement in _VERSION_2:
        con.execute(statement)


_VERSION_3 = (
    # Files in state/keys, each with keys that left event_keys; forgotten_keys are in them and count no more.
    "CREATE TABLE key_runs (number BIGINT NOT NULL, name VARCHAR NOT NULL, keys BIGINT NOT NULL)",
    "CREATE TABLE forgotten_keys (key UHUGEINT NOT NULL)",
)


def _create_version_3(con: duckdb.DuckDBPyConnection) -> None:
    for statement in _VERSION_3:
        con.execute(statement)


MIGRATIONS: dict[int, Callable[[duckdb.DuckDBPyConnection], None]] = {
    1: _create_version_1,
    2: _create_version_2,
    3: _create_version_3,
}
"""What brings a manifest from version n - 1 to version n."""


def stored_version(con: duckdb.DuckDBPyConnection) -> int:
    """Version of the open manifest; 0 when it is empty."""
    if not _has_meta(con):
        return 0
    found = con.execute("SELECT value FROM manifest_meta WHERE key = 'schema_version'").fetchone()
    return int(found[0]) if found else 0


def _has_meta(con: duckdb.DuckDBPyConnection) -> bool:
    row = con.execute("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'manifest_meta'").fetchone()
    return bool(row and row[0])


def upgrade(con: duckdb.DuckDBPyConnection) -> None:
    """Bring the open manifest to VERSION. If we die on the way, it stands at a whole version."""
    for version in range(stored_version(con) + 1, VERSION + 1):
        con.execute("BEGIN")
        try:
            con.execute(_CREATE_META)
            MIGRATIONS[version](con)
            con.execute("DELETE FROM manifest_meta WHERE key = 'schema_version'")
            con.execute("INSERT INTO manifest_meta VALUES ('schema_version', ?)", [str(version)])
            con.execute("COMMIT")
        except BaseException:
            con.execute("ROLLBACK")
            raise
