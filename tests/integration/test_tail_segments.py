"""The segments of the published tail: which of them readers count, and how the others go away."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest
from tests.support.ground import ALL_STEPS, Ground, check_all, check_datasets
from tests.support.reader_engine import reader_environment, require_reader_site

from piper.files import sql_literal
from piper.publish.catalog import silver_view_sql
from piper.publish.snapshots import GENERATION_SECONDS
from piper.publish.tail import FAN, PARK_SECONDS, TailPublisher
from piper.silver.datasets import DATASETS
from piper.silver.segments import segments_in
from piper.writer import Writer


@dataclass
class Hands:
    """An open writer whose tail is published by a publisher with a clock of its own."""

    writer: Writer
    ground: Ground
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.tail = TailPublisher(self.writer.store.layout, lambda: self.seconds)

    def publish(self, events: int = 5) -> None:
        """Commit so many events and publish them."""
        self.ground.simulate(events)
        self.writer.scan()
        self.writer.ingest()
        self.tail.publish(self.writer.store.con, self.writer.store.progress())

    @property
    def listed(self) -> list[Path]:
        return segments_in(self.ground.layout.tail)


@contextmanager
def hands(root: Path) -> Iterator[Hands]:
    ground = Ground(root)
    with ground.writer() as writer:
        yield Hands(writer, ground)


def test_each_publish_adds_one_small_segment_and_a_full_row_of_them_becomes_one(tmp_path: Path) -> None:
    with hands(tmp_path) as h:
        h.publish(200)
        h.seconds = PARK_SECONDS
        h.publish(1)
        first, second = h.listed[-2:]
        assert second.stat().st_size < first.stat().st_size / 2
        for _ in range(FAN - 3):
            h.publish(1)
        assert len(h.listed) == FAN - 1
        h.publish(1)
        h.seconds += PARK_SECONDS
        h.tail.tidy()
        assert len(h.listed) == 1
        check_datasets(h.ground)
        assert h.ground.seen()[0] == h.writer.totals.accepted > 200


def test_a_segment_that_counts_no_more_can_be_opened_by_who_has_listed_it_for_a_minute(tmp_path: Path) -> None:
    with hands(tmp_path) as h:
        h.publish(20)
        (old,) = h.listed[-1:]
        h.writer.seal()
        h.publish(0)
        assert old in h.listed  # whoever lists the directory now may still read the control row that names it
        h.seconds += PARK_SECONDS
        h.tail.tidy()
        assert old not in h.listed
        assert duckdb.execute(f"SELECT count(*) FROM read_parquet($${old}$$) WHERE live IS NULL").fetchone() is not None
        h.seconds += GENERATION_SECONDS
        h.tail.tidy(older_than=0.0)
        assert not old.is_symlink()
        assert [path for path in h.ground.layout.generations.iterdir() if path.name.startswith(old.name)] == []
        check_datasets(h.ground)


def test_a_reader_that_does_not_find_all_segments_is_told_and_gets_no_answer_without_their_rows(tmp_path: Path) -> None:
    with hands(tmp_path) as h:
        h.publish(20)
        h.publish(20)
        missed = h.listed[-1]
        h.publish(20)
        missed.rename(tmp_path / "missed")
        for query in ("SELECT count(*) FROM silver_events", "SELECT min(event_id) FROM silver_tool_events"):
            with pytest.raises(duckdb.Error, match="the tail is not whole"):
                h.ground.query(query)
        h.publish(0)
        check_datasets(h.ground)
        assert h.ground.seen()[0] == h.writer.totals.accepted


def test_a_tail_that_was_deleted_by_hand_is_made_anew_without_news(tmp_path: Path) -> None:
    ground = Ground(tmp_path)
    ground.simulate(20)
    with ground.writer() as writer:
        writer.scan()
        writer.ingest()
        writer.publish()
        shutil.rmtree(ground.layout.tail)
        assert not writer.publish()
        writer.warehouse.tidy()  # the daemon's housekeeping
        assert writer.publish()
        check_datasets(ground)
        assert ground.seen()[0] == writer.totals.accepted == 20


def test_the_next_process_publishes_all_anew_and_takes_away_what_earlier_ones_left(tmp_path: Path) -> None:
    ground = Ground(tmp_path)
    for _ in range(4):
        ground.simulate(20)
        ground.run("ingest", "publish")
    assert len(segments_in(ground.layout.tail)) <= 4
    torn = segments_in(ground.layout.tail)[-1]
    torn.write_bytes(torn.read_bytes()[:-100])
    ground.run(*ALL_STEPS)
    check_all(ground)


LOOK = """import duckdb, sys
try:
    duckdb.execute(sys.stdin.read())
except duckdb.IOException as error:
    print(error)
"""


@pytest.mark.parametrize("present", [(), ("control",)])
def test_a_view_lists_control_rows_before_rows_in_both_engines(tmp_path: Path, present: tuple[str, ...]) -> None:
    """A whole new tail between the two looks would else be an empty one for the reader, and no error."""
    ground = Ground(tmp_path)
    ground.run("publish")
    [segment] = segments_in(ground.layout.tail)
    sql = silver_view_sql(DATASETS["events"], ground.layout)
    looks = ("control", "rows", "names")
    for name in looks:
        sql = sql.replace(f"{sql_literal(ground.layout.tail)}/**", f"{sql_literal(tmp_path / name)}/**", 1)
    for name in present:
        (tmp_path / name).mkdir()
        shutil.copy(segment, tmp_path / name)
    for environment in (None, reader_environment(require_reader_site())):
        done = subprocess.run(
            [sys.executable, "-c", LOOK], input=sql, env=environment, capture_output=True, text=True, check=True
        )
        assert f"{tmp_path / looks[len(present)]}/" in done.stdout
