"""A data root of the first schema version: it is opened, brought forward, and nothing of it is lost or seen twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
from tests.support.ground import ALL_STEPS, Ground, check_all, check_gold

from piper.silver import schema

LATER_TABLES = ("hidden_chunks", "user_names", "masking", "key_runs", "forgotten_keys")


def make_first_version(ground: Ground) -> None:
    """What the first version would have left: its tables with the same rows, and the whole tail in one file."""
    manifest = ground.layout.manifest
    old = manifest.with_name("old.duckdb")
    with duckdb.connect(str(old)) as con:
        con.execute(f"ATTACH '{str(manifest).replace(chr(39), chr(39) * 2)}' AS newer (READ_ONLY)")
        schema.MIGRATIONS[1](con)
        con.execute("CREATE TABLE manifest_meta AS FROM newer.manifest_meta WHERE key <> 'schema_version'")
        con.execute("INSERT INTO manifest_meta VALUES ('schema_version', '1')")
        con.execute("DELETE FROM progress")
        for (table,) in con.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = 'old'").fetchall():
            if table != "manifest_meta":
                con.execute(f"INSERT INTO {table} BY NAME SELECT {columns(con, table)} FROM newer.{table}")
        # A spool file whose state is lost is read from its beginning: all that is in it must be known.
        con.execute("DELETE FROM sources WHERE source_id % 2 = 0")
    old.replace(manifest)
    shutil.rmtree(ground.layout.keys)
    shutil.rmtree(ground.layout.tail)
    (ground.layout.warehouse / "tail.duckdb").write_bytes(b"")


def columns(con: duckdb.DuckDBPyConnection, table: str) -> str:
    return ", ".join(f'"{row[0]}"' for row in con.execute(f"DESCRIBE {table}").fetchall())


def test_a_manifest_of_the_first_version_goes_on_exactly_where_it_was(tmp_path: Path) -> None:
    ground = Ground(tmp_path)
    ground.simulate(300)
    ground.run("ingest", "export", "seal", "gold", "publish")
    ground.simulate(200)
    ground.run("ingest")  # a tail, and rejected lines on their way to quarantine
    make_first_version(ground)
    with duckdb.connect(str(ground.layout.manifest)) as con:
        assert schema.stored_version(con) == 1
        assert con.execute("SELECT count(*) > 0 FROM events_tail").fetchone() == (True,)
        assert con.execute("SELECT count(*) > 0 FROM rejections").fetchone() == (True,)
        tables = {name for (name,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        assert not tables & set(LATER_TABLES)

    ground.simulate(100)
    ground.run(*ALL_STEPS)

    check_all(ground)
    check_gold(ground)
    assert not (ground.layout.warehouse / "tail.duckdb").exists()
    with duckdb.connect(str(ground.layout.manifest)) as con:
        assert schema.stored_version(con) == schema.VERSION
