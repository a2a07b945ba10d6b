"""A restore by the runbook: a data root that was copied while piperd wrote it, without its state; `piper rebuild`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.support.ground import Ground, check_all, check_gold
from tests.support.piperd import Piperd
from tests.support.polling import wait_until

import piper

COPIED = ("warehouse", "quarantine", "silver")
"""What the runbook saves, in the worst order: rows that are sealed after the tail was copied come with chunks, rows
that are committed after it come with nothing."""
EXACT_GOLD = ("gold_publish_health_daily", "gold_tool_reliability_daily", "gold_render_health_daily")
"""Models whose rows are made of events alone, and not of when they were ingested."""


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


@pytest.fixture
def piperd(ground: Ground, tmp_path: Path) -> Iterator[Piperd]:
    settings = {"INGEST__SEAL_EVENTS_MAX": 150, "DUCKDB__THREADS": 1}
    with Piperd(ground.raw, ground.data, tmp_path / "logs", settings) as daemon:
        yield daemon


def copy_live(source: Path, target: Path) -> None:
    """A copy as the runbook's rsync makes it: without links, and without what disappears on the way."""

    def copy(name: str, to: str) -> None:
        if not Path(name).is_symlink():
            with suppress(FileNotFoundError):
                shutil.copy2(name, to)

    left_out = shutil.ignore_patterns(".staging", ".parked", ".generations", ".*.tmp")
    shutil.copytree(source, target, copy_function=copy, ignore=left_out)


def ingested(piperd: Piperd, ground: Ground) -> bool:
    return piperd.metric("piper_events_ingested_total") == ground.written.valid


def gold_rows(ground: Ground) -> list[list[Any]]:
    """Fractions to nine digits: the order in which rows are added up is not the same after a rebuild."""
    rows = [row for model in EXACT_GOLD for row in ground.query(f"SELECT * FROM {model} ORDER BY ALL")]
    return [[float(f"{value:.9g}") if isinstance(value, float) else value for value in row] for row in rows]


def test_a_copy_taken_while_piperd_ran_is_made_whole_and_what_came_later_is_read_again(
    ground: Ground, piperd: Piperd, tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    ground.simulate(400)
    piperd.start_ready()
    for directory in COPIED:
        wait_until(lambda: ingested(piperd, ground), what=piperd.log_text)
        copy_live(ground.data / directory, backup / directory)
        ground.simulate(100)  # piperd commits and seals them before the next directory is copied
    wait_until(lambda: ingested(piperd, ground), what=piperd.log_text)
    piperd.stop()
    before = gold_rows(ground)
    check_all(ground)

    shutil.rmtree(ground.data)  # and with it the manifest, which was in state/
    shutil.copytree(backup, ground.data)
    rebuilt = subprocess.run(
        [sys.executable, "-m", "piper", "rebuild", "--yes", "--json"],
        env={**os.environ, **ground.environment, "PYTHONPATH": str(Path(piper.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert rebuilt.returncode == 0, rebuilt.stderr
    found = json.loads(rebuilt.stdout)
    assert found["found"]["chunk_events"] > 0
    assert found["read"]["accepted"] > 0, "the copy held everything: nothing was tried"
    check_all(ground)
    check_gold(ground)
    assert gold_rows(ground) == before
    piperd.start_ready()
    ground.simulate(50)
    wait_until(lambda: piperd.metric("piper_events_ingested_total") == 50, what=piperd.log_text)
    piperd.stop()
    check_all(ground)
