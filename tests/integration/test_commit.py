"""A writer that dies at any step of commit, seal, reveal or publish: what readers see, what the next one makes of
it.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest
from tests.support.ground import ALL_STEPS, KILLED, Ground, check_all, check_datasets, check_gold

from piper.silver.source_states import read_sources

FAILPOINTS = (
    "seal.copied",
    "seal.staged:3",
    "commit.staged",
    "commit.committed",
    "commit.committed:2",
    "reveal.moved:20",
    "commit.revealed",
    "publish.tail.written:2",
    "publish.tail.swapped:2",
    "publish.tail.written:3",
    "publish.gold.written:2",
    "publish.gold.swapped:2",
)


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_a_death_at_any_step_loses_nothing_and_doubles_nothing(ground: Ground, failpoint: str) -> None:
    ground.simulate(300)
    ground.run("ingest", "publish")  # these rows wait in the tail when the second writer seals
    ground.simulate(200)

    assert ground.die_at(failpoint, *ALL_STEPS) == KILLED
    rows, events = ground.seen()
    assert rows == events >= 300
    check_datasets(ground)

    ground.run(*ALL_STEPS)
    check_all(ground)
    check_gold(ground)
    with ground.writer() as writer:
        progress = writer.store.progress()
        assert read_sources(writer.store.con)
    assert (progress.accepted, progress.duplicates, progress.quarantined) == (
        ground.written.valid,
        ground.written.duplicates,
        ground.written.malformed,
    )
    assert list(ground.layout.staging.iterdir()) == []


@pytest.mark.parametrize("failpoint", ["catalog.filled", "publish.tail.written", "publish.gold.linked"])
def test_a_death_on_the_very_first_start_is_made_good_by_the_next(ground: Ground, failpoint: str) -> None:
    ground.simulate(20)
    assert ground.die_at(failpoint, *ALL_STEPS) == KILLED
    ground.run(*ALL_STEPS)
    check_all(ground)
    check_gold(ground)


def test_a_commit_that_failed_while_sealing_leaves_no_chunk_that_a_later_one_would_reveal(ground: Ground) -> None:
    ground.simulate(100)
    ground.run("ingest", "publish")
    assert ground.die_at("commit.staged", "seal") == KILLED
    staged = next(directory for directory in ground.layout.staging.iterdir() if directory.name.isdigit())
    kept = ground.raw.parent / "kept"
    staged.rename(kept)
    with ground.writer() as writer:
        kept.rename(staged)  # as a failed attempt of this very process would have left it
        ground.simulate(50)
        writer.scan()
        done = writer.ingest()
        assert done is not None
        assert done.commit_seq == int(staged.name)
        writer.seal()
        writer.publish()
        writer.export_quarantine()
    with ground.writer():
        check_all(ground)


def test_a_reader_that_stays_connected_sees_each_row_once_through_every_step(ground: Ground) -> None:
    ground.simulate(200)
    ground.run("ingest", "publish")
    before = 200
    with duckdb.connect(str(ground.layout.catalog), read_only=True) as reader:
        for failpoint in ("commit.committed", "reveal.moved:5", "publish.tail.swapped:2"):
            assert ground.die_at(failpoint, "seal", "publish") == KILLED
            seen = reader.execute("SELECT count(*), count(DISTINCT event_id) FROM silver_events").fetchone()
            assert seen is not None
            assert seen[0] == seen[1] >= before
            before = seen[0]
            ground.simulate(50)
            ground.run("ingest")
        ground.run("seal", "publish", "export")
        assert reader.execute("SELECT count(*) FROM silver_events").fetchone() == (350,)
    check_all(ground)
