"""What docs/scaling.md promises: two data roots asked as one, and other engines on the Parquet tree."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
from tests.support.ground import Ground
from tests.support.reader_engine import reader_environment, require_reader_site

ALL_STEPS = ("ingest", "export", "publish", "gold")


def test_two_data_roots_are_asked_as_one_by_the_readers_engine(tmp_path: Path) -> None:
    site = require_reader_site()
    london, vancouver = Ground(tmp_path / "london"), Ground(tmp_path / "vancouver")
    london.simulate(60)
    vancouver.simulate(90)
    for ground in (london, vancouver):
        ground.run(*ALL_STEPS)
    script = """
import duckdb, json, sys
con = duckdb.connect()
for name, path in zip(("london", "vancouver"), sys.argv[1:]):
    con.execute("ATTACH '" + path.replace("'", "''") + "' AS " + name + " (READ_ONLY)")
rows = con.execute('''
    SELECT 'london' AS site, count(*) FROM london.silver_events
    UNION ALL SELECT 'vancouver', count(*) FROM vancouver.silver_events
    UNION ALL SELECT 'gold', sum(total_events)::BIGINT FROM
        (FROM london.gold_data_quality_daily UNION ALL BY NAME FROM vancouver.gold_data_quality_daily)
''').fetchall()
print(json.dumps(dict(rows)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(london.layout.catalog), str(vancouver.layout.catalog)],
        env=reader_environment(site),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"london": 60, "vancouver": 90, "gold": 150}


def test_arrow_finds_every_sealed_event_in_the_tree_twice_only_while_a_rewrite_is_fresh(tmp_path: Path) -> None:
    ground = Ground(tmp_path)
    ground.simulate(80)
    ground.run("ingest", "seal", "publish", "rewrite", "publish")
    just_merged = event_ids(ground)
    assert len(just_merged) > len(set(just_merged)) == 80
    ground.run("forget")
    later = event_ids(ground)
    assert len(later) == len(set(later)) == 80


def event_ids(ground: Ground) -> list[str]:
    tree = pyarrow.dataset.dataset(
        ground.layout.silver / "events",
        format="parquet",
        partitioning=pyarrow.dataset.partitioning(
            pa.schema([("event_date", pa.date32()), ("event_type", pa.string())]), flavor="hive"
        ),
    )
    ids: list[str] = tree.to_table(columns=["event_id"])["event_id"].to_pylist()
    return ids
