"""The sample spool, ingested in one shot, against counts and a recomputation from its raw lines."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.support import gold_reference
from tests.support.piperd import SOURCE_ROOT
from tests.support.warehouse import SILVER_VIEWS, assert_gold_is, assert_silver_is, catalog, count_of, domain_view

from piper.demo.simulate import SimulateOptions, simulate

SAMPLE_VARIABLE = "PIPER_SAMPLE_SPOOL"
EVENTS = 2400


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """The spool that the pipeline's own emitter wrote, or as many simulated events where it is absent."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "sample_spool"
    found = Path(os.environ.get(SAMPLE_VARIABLE) or beside)
    if found.is_dir():
        return found
    made = tmp_path / "sample"
    options = SimulateOptions(
        made, hosts=4, users=2, rate=0, events=EVENTS, days=5, malformed_ratio=0, duplicate_ratio=0
    )
    assert simulate(options).lines == EVENTS
    return made


def test_the_sample_spool_arrives_whole_and_gold_equals_a_recomputation(sample: Path, tmp_path: Path) -> None:
    files = sorted(sample.rglob("*.jsonl"))
    events: list[dict[str, Any]] = [orjson.loads(line) for file in files for line in file.read_bytes().splitlines()]
    assert len({event["event_id"] for event in events}) == len(events) == EVENTS
    types = {gold_reference.event_type_of(event) for event in events}
    assert types == set(gold_reference.REGISTRY), "the sample must hold all types"

    summary = ingest_once(sample, tmp_path / "data")
    assert (summary["accepted"], summary["duplicates"], summary["quarantined"]) == (EVENTS, 0, 0)

    by_view = Counter(domain_view(gold_reference.event_type_of(event)) for event in events)
    with catalog(tmp_path / "data") as con:
        counts = {view: count_of(con, view) for view in SILVER_VIEWS}
        assert counts == {"silver_events": EVENTS} | {view: by_view[view] for view in SILVER_VIEWS[1:]}
        assert_silver_is(con, events)
        assert_gold_is(con, events)


def ingest_once(raw_root: Path, data_root: Path) -> dict[str, Any]:
    """`piper ingest`: one pass over everything unread, then seal, gold, publish; its summary."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PIPER_")}
    roots = {"PIPER_PATHS__RAW_ROOT": str(raw_root), "PIPER_PATHS__DATA_ROOT": str(data_root)}
    done = subprocess.run(
        [sys.executable, "-m", "piper", "ingest", "--json"],
        env=inherited | roots | {"PYTHONPATH": str(SOURCE_ROOT)},
        cwd=data_root.parent,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    summary = orjson.loads(done.stdout)
    assert isinstance(summary, dict)
    return summary
