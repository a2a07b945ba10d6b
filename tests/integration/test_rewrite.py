"""Rewrites: other chunks take the place of some, whole or not at all, for readers and after a death at any step."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.ground import ALL_STEPS, KILLED, Ground, check_all, check_gold, forget, ingest, rewrite
from tests.support.reader_engine import require_reader_site
from tests.support.readers import Reader

from piper.errors import PiperError
from piper.silver.datasets import EMPTY_CHUNK
from piper.silver.hidden import forget_hidden
from piper.silver.rebuild import forget_recounts, rebuild
from piper.silver.rewrite import Partition, Rewrite, partitions

REWRITE_FAILPOINTS = ("rewrite.staged", "rewrite.committed", "reveal.moved", "rewrite.revealed")


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    """Two seals, so that partitions have several chunks, and a tail."""
    ground = Ground(tmp_path)
    for _ in range(2):
        ground.simulate(300)
        ground.run(*ALL_STEPS)
    ground.simulate(100)
    ground.run("ingest", "publish", "export", "gold")
    return ground


def chunks(ground: Ground) -> set[str]:
    silver = ground.layout.silver
    return {str(path.relative_to(silver)) for path in silver.rglob("*.parquet") if path.name != EMPTY_CHUNK}


def leaves(ground: Ground) -> int:
    return len({path.parent for path in ground.layout.silver.rglob("*.parquet") if path.name != EMPTY_CHUNK})


def events_of(ground: Ground) -> list[tuple[object, ...]]:
    return ground.query("SELECT * FROM silver_events ORDER BY event_id")


def test_after_a_rewrite_and_forgetting_every_partition_is_one_chunk_with_the_same_rows(ground: Ground) -> None:
    before = events_of(ground)
    old = chunks(ground)

    ground.run("rewrite", "publish")
    assert chunks(ground) > old, "old chunks stay for the queries that are reading them"
    assert events_of(ground) == before
    check_all(ground)

    ground.run("forget", "publish")
    assert not chunks(ground) & old
    assert len(chunks(ground)) == leaves(ground)
    assert events_of(ground) == before
    ground.run("rewrite", "publish", "forget", "publish", "gold")  # of chunks that are a rewrite's themselves
    check_all(ground)
    check_gold(ground)


def test_before_the_next_tail_readers_see_nothing_of_a_rewrite(ground: Ground) -> None:
    with ground.writer() as writer:
        under_way = Rewrite.begin(writer.store, writer.store.con)
        for partition in partitions(writer.store.con):
            under_way.replace(
                writer.store.con, partition, select=lambda rows: f"SELECT * REPLACE ('x' AS status) FROM ({rows})"
            )
        under_way.commit(now=writer.clock.now())
        assert ground.query("SELECT count(*) FROM silver_events WHERE status = 'x'") == [(0,)]
        check_all(ground)
        writer.publish()
        assert ground.query("SELECT count(*) FROM silver_events WHERE status = 'x'") == [(600,)]
        check_all(ground)


def test_rows_that_a_rewrite_leaves_out_and_partitions_that_it_drops_are_gone(ground: Ground) -> None:
    with ground.writer() as writer:
        con = writer.store.con
        under_way = Rewrite.begin(writer.store, con)
        first, *others = [p for p in partitions(con) if p.dataset == "events"]
        under_way.drop(first)
        assert under_way.replace(con, others[0], select=lambda rows: f"FROM ({rows}) WHERE FALSE") is None
        under_way.commit(now=writer.clock.now())
        writer.publish()
    assert ground.seen()[0] == ground.written.valid - first.rows - others[0].rows
    ground.run("forget", "publish")
    assert not (ground.layout.silver / first.directory).exists()
    assert ground.seen()[0] == ground.written.valid - first.rows - others[0].rows


@pytest.mark.parametrize("failpoint", REWRITE_FAILPOINTS)
def test_a_death_in_a_rewrite_leaves_all_of_it_or_nothing(ground: Ground, failpoint: str) -> None:
    assert ground.die_at(f"{failpoint}:2" if failpoint != "rewrite.committed" else failpoint, "rewrite") in (KILLED, 0)
    check_all(ground)  # readers go on meanwhile
    ground.run("publish")
    check_all(ground)
    assert list(ground.layout.staging.iterdir()) == []
    ground.run("ingest", "seal", "rewrite", "publish", "forget", "publish", "gold")
    check_all(ground)
    check_gold(ground)
    assert len(chunks(ground)) == leaves(ground)


def test_a_death_while_old_chunks_are_deleted_hurts_nobody(ground: Ground) -> None:
    ground.run("rewrite", "publish")
    assert ground.die_at("rewrite.deleted:3", "forget") == KILLED
    check_all(ground)
    ground.run("forget", "publish")
    check_all(ground)
    assert len(chunks(ground)) == leaves(ground)


def test_a_rewrite_that_met_a_changed_partition_changes_nothing_and_can_be_repeated(ground: Ground) -> None:
    with ground.writer() as writer:
        con = writer.store.con
        some = partitions(con)[0]
        stale = Partition(some.dataset, some.event_date, some.directory, (*some.paths, "gone.parquet"), 0, 0)
        under_way = Rewrite.begin(writer.store, con)
        under_way.replace(con, some)
        under_way.drop(stale, ["gone.parquet"])
        with pytest.raises(PiperError, match="already"):
            Rewrite.begin(writer.store, con)
        with pytest.raises(PiperError, match="changed meanwhile"):
            under_way.commit(now=writer.clock.now())
        assert list(ground.layout.staging.iterdir()) == []
        rewrite(writer)
        writer.publish()
    check_all(ground)


def test_chunks_are_not_deleted_before_a_published_tail_has_hidden_them_long_enough(ground: Ground) -> None:
    with ground.writer() as writer:
        old = chunks(ground)
        before = writer.store.progress().commit_seq
        rewrite(writer)
        now = writer.clock.now()
        assert forget_hidden(writer.store, published_seq=before, now=now.replace(year=now.year + 1)) == 0
        writer.publish()
        assert forget_hidden(writer.store, published_seq=before + 1, now=now) == 0
        assert chunks(ground) > old
        assert forget_hidden(writer.store, published_seq=before + 1, now=now.replace(year=now.year + 1)) == len(old)


@pytest.mark.parametrize("is_published", [True, False])
def test_a_lost_manifest_is_rebuilt_from_old_and_new_chunks_without_a_double(
    ground: Ground, is_published: bool
) -> None:
    ground.run("rewrite", *["publish"][: int(is_published)])
    ground.layout.manifest.unlink()
    rebuild(ground.settings)
    with ground.writer() as writer:
        ingest(writer)
        forget_recounts(writer.store)
        writer.publish()
        writer.export_quarantine()
        writer.refresh_gold(writer.store.con)
        check_all(ground)
        rewrite(writer)
        writer.publish()
        forget(writer)
        writer.publish()
    check_all(ground)
    check_gold(ground)


def test_connected_readers_see_no_double_no_gap_and_no_error_while_chunks_are_rewritten(ground: Ground) -> None:
    with Reader(require_reader_site(), ground.layout.catalog) as reader:
        reader.wait_started()
        with ground.writer() as writer:
            for _ in range(8):
                rewrite(writer)
                writer.publish()
                ground.simulate(50)
                ingest(writer)
                writer.publish()
                writer.seal()
                writer.publish()
        report = reader.stop()
    assert report["problems"] == []
    assert report["counts"]["silver_events"] == ground.written.valid
