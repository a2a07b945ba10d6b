"""Compaction: closed days become one chunk a partition; nobody sees it happen, and no death in it matters."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random

import duckdb
import orjson
import pytest
from tests.conftest import MakePiperd
from tests.support.event_lines import event_line
from tests.support.ground import Ground, check_all, check_gold
from tests.support.numbered import NumberedWriters, WriterThread
from tests.support.piperd import Piperd
from tests.support.polling import wait_until
from tests.support.reader_engine import require_reader_site
from tests.support.readers import Reader
from tests.support.warehouse import GOLD_VIEWS

from piper.compaction import Compaction, CompactionRun, MergeError
from piper.duties import forget
from piper.hours import Hours
from piper.ops.control import ask
from piper.ops.storage import hidden_chunks
from piper.silver import compact
from piper.silver.datasets import EMPTY_CHUNK
from piper.silver.rewrite import partitions
from piper.upkeep import Hands
from piper.writer import Clock, Writer

ALWAYS = Hours.parse("always")
DAY = 86_400.0
SEALS = 3
FAILPOINTS = ("rewrite.staged:4", "rewrite.committed", "reveal.moved:3", "rewrite.revealed")
PUTTING_AWAY = ("rewrite.parked:3", "rewrite.deleted:3")


def made(root: Path) -> Ground:
    """Several seals of the same days."""
    ground = Ground(root)
    for _ in range(SEALS):
        ground.simulate(300, days=3)
        ground.run("ingest", "seal", "publish", "export", "gold")
    return ground


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return made(tmp_path)


def clock_in(days: float) -> Clock:
    return Clock(utc=lambda: time.time() + days * DAY)


@contextmanager
def hands_of(ground: Ground, *, days_later: float = 0.0) -> Iterator[Hands]:
    with ground.writer(clock_in(days_later)) as writer, closing(Hands(writer)) as hands:
        yield hands
        writer.publish()


def compact_due(ground: Ground, *, days_later: float, hours: str = "always") -> int:
    """Everything that is due by then; how many chunks gave way."""
    compaction = Compaction()
    with hands_of(ground, days_later=days_later) as hands:
        return sum(iter(lambda: compaction.merge_due(hands, Hours.parse(hours)).chunks_before, 0))


def chunk_counts(ground: Ground) -> Counter[str]:
    """Chunks by partition, as the manifest has them."""
    with ground.writer() as writer:
        return _counts(writer)


def _counts(writer: Writer) -> Counter[str]:
    return Counter({partition.directory: len(partition.paths) for partition in partitions(writer.store.con)})


def gold_of(ground: Ground) -> dict[str, list[tuple[object, ...]]]:
    history = (view for view in GOLD_VIEWS if view.endswith(("_daily", "_weekly")))
    return {view: ground.query(f"FROM {view} ORDER BY ALL") for view in history}


def events_of(ground: Ground) -> list[tuple[object, ...]]:
    return ground.query("FROM silver_events ORDER BY event_id")


# ---- what is merged when ---------------------------------------------------------------------------------------------


def test_closed_days_become_one_chunk_a_partition_with_the_same_rows_and_the_same_gold(ground: Ground) -> None:
    events, gold = events_of(ground), gold_of(ground)

    assert compact_due(ground, days_later=2) > 0

    assert set(chunk_counts(ground).values()) == {1}
    assert events_of(ground) == events
    ground.run("gold")
    assert gold_of(ground) == gold
    assert compact_due(ground, days_later=2) == 0, "what is done is not done again"


def test_merged_chunks_are_sorted_by_time(ground: Ground) -> None:
    compact_due(ground, days_later=2)
    with ground.writer() as writer:
        largest = max((p for p in partitions(writer.store.con) if p.dataset == "events"), key=lambda p: p.rows)
    with duckdb.connect() as con:
        times = con.read_parquet(str(ground.layout.silver / largest.paths[0])).select("occurred_at_utc").fetchall()
    assert len(times) > SEALS
    assert times == sorted(times)


def test_a_day_is_left_alone_until_nothing_was_added_for_an_hour(ground: Ground) -> None:
    assert compact_due(ground, days_later=0.5 / 24) == 0


def test_outside_its_hours_only_crowded_partitions_are_merged(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = SEALS + 2
    monkeypatch.setattr(compact, "CROWD", crowd)
    later = time.localtime(time.time() + 2 * DAY)
    away = f"{(later.tm_hour + 10) % 24:02d}:00-{(later.tm_hour + 11) % 24:02d}:00"
    assert compact_due(ground, days_later=2, hours=away) == 0
    assert compact_due(ground, days_later=2, hours="never") == 0

    with ground.writer() as writer:
        while max(_counts(writer).values()) < crowd:
            ground.simulate(20, days=1)
            writer.scan()
            writer.ingest()
            writer.seal()
    before = chunk_counts(ground)
    assert compact_due(ground, days_later=0, hours=away) >= crowd, "also on a day that is not over"
    after = chunk_counts(ground)
    assert {where for where in before if after[where] != before[where]} == {
        where for where, count in before.items() if count >= crowd
    }
    ground.run("export", "gold")
    check_all(ground)


def test_late_events_of_a_compacted_day_are_merged_once_they_have_settled(ground: Ground) -> None:
    compact_due(ground, days_later=2)
    ground.simulate(200, days=3)
    ground.run("ingest", "seal", "publish", "export", "gold")
    assert max(chunk_counts(ground).values()) == 2

    assert compact_due(ground, days_later=2) > 0
    assert set(chunk_counts(ground).values()) == {1}
    check_all(ground)
    check_gold(ground)


def test_a_piece_gives_way_to_lines_that_wait(ground: Ground) -> None:
    compaction = Compaction()
    with ground.writer(clock_in(2)) as writer, closing(Hands(writer, is_behind=lambda: True)) as hands:
        assert compaction.merge_due(hands, ALWAYS).merges == 1


def test_rows_too_large_to_be_sorted_are_merged_in_the_order_of_their_chunks(tmp_path: Path) -> None:
    ground, rng = Ground(tmp_path), Random(1)
    folder = ground.raw / "ws01.studio.example" / "amara"
    folder.mkdir(parents=True)
    long_ago = datetime.now(UTC) - timedelta(days=3)
    noon = long_ago.replace(hour=12)
    for part in range(4):
        lines = []
        for number in range(1000):
            event = orjson.loads(event_line(f"large-{part}-{number}", at=noon + timedelta(seconds=number)))
            event["payload"]["trace"] = rng.randbytes(25_000).hex()
            lines.append(orjson.dumps(event))
        (folder / f"telemetry-{part}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        ground.run("ingest", "seal", "publish")
    before = ground.query("SELECT event_id, md5(payload) FROM silver_events ORDER BY ALL")
    run = CompactionRun(None, date.max)
    with hands_of(ground) as hands:
        run.plan(hands)
        while run.step(hands):
            pass
        chunk = next(p for p in partitions(hands.con) if p.dataset == "events").paths[0]
    assert (run.failed, run.done.chunks_before, run.done.rows) == ([], 8, 8000)
    assert ground.query("SELECT event_id, md5(payload) FROM silver_events ORDER BY ALL") == before
    with duckdb.connect() as con:
        times = con.read_parquet(str(ground.layout.silver / chunk)).select("occurred_at_utc").fetchall()
    assert times != sorted(times), "they could be sorted after all: this test needs larger ones"


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_damaged_chunk_keeps_its_partition_from_being_merged_and_no_other(ground: Ground) -> None:
    with ground.writer() as writer:
        damaged = next(p for p in partitions(writer.store.con) if p.dataset == "events" and len(p.paths) > 1)
        several = {p.directory for p in partitions(writer.store.con) if len(p.paths) > 1}
    path = ground.layout.silver / damaged.paths[0]
    sound = path.read_bytes()
    path.write_bytes(sound[:40] + bytes(len(sound) - 80) + sound[-40:])
    compaction, failures = Compaction(), []
    with hands_of(ground, days_later=2) as hands:
        while True:
            try:
                if not compaction.merge_due(hands, ALWAYS).merges:
                    break
            except MergeError as error:
                failures.append(error.directory)
        assert failures == [damaged.directory]
        assert {p.directory for p in partitions(hands.con) if len(p.paths) > 1} == {damaged.directory}
    assert several > {damaged.directory}
    assert list(ground.layout.staging.iterdir()) == []
    path.write_bytes(sound)
    check_all(ground)


def test_a_chunk_of_fewer_rows_than_were_sealed_is_never_merged_away(ground: Ground) -> None:
    with ground.writer() as writer:
        where = next(p for p in partitions(writer.store.con) if p.dataset == "events" and len(p.paths) > 1)
        writer.store.con.execute("UPDATE chunks SET row_count = row_count + 1 WHERE path = ?", [where.paths[0]])
    run = CompactionRun(None, where.event_date)
    with hands_of(ground) as hands:
        run.plan(hands)
        while run.step(hands):
            pass
    assert run.failed == [where.directory]
    assert run.done.merges == run.planned.merges - 1
    check_all(ground)


@pytest.mark.parametrize("failpoint", [*FAILPOINTS, *PUTTING_AWAY])
@pytest.mark.timeout(300)
def test_a_piperd_that_is_killed_in_a_compaction_loses_and_doubles_nothing(tmp_path: Path, failpoint: str) -> None:
    ground = made(tmp_path)
    if failpoint in PUTTING_AWAY:
        compact_due(ground, days_later=2)
        _age_hidden(ground)
    if failpoint.startswith("rewrite.deleted"):
        with hands_of(ground) as hands:
            assert forget(hands)
        _age_hidden(ground)
    _age(ground)
    logs = tmp_path / "logs"
    with Piperd(ground.raw, ground.data, logs, {"COMPACTION__HOURS": "always"}) as piperd:
        ground.simulate(100, days=3)
        assert piperd.start(FAILPOINT=failpoint).wait() == -9, piperd.log_text()
        ground.simulate(100, days=3)
        piperd.start_ready()
        wait_until(lambda: _events(ground) >= ground.written.valid, what=piperd.log_text)
        while ask(ground.layout.control_socket, "compact", {"end": "9999-12-31"})["merges"]:
            pass
        piperd.stop()
    check_all(ground)
    check_gold(ground)
    assert set(chunk_counts(ground).values()) == {1}
    assert list(ground.layout.staging.iterdir()) == []


def _events(ground: Ground) -> int:
    return int(ground.query("SELECT count(*) FROM silver_events")[0][0])


def _age(ground: Ground) -> None:
    """Let every chunk have been sealed, or parked, three hours ago."""
    for path in ground.layout.silver.rglob("*.parquet"):
        os.utime(path, (time.time() - 3 * 3600,) * 2, follow_symlinks=False)


def _age_hidden(ground: Ground) -> None:
    """Let what is hidden have been hidden, or parked, three hours ago."""
    with ground.writer() as writer:
        writer.store.con.execute("UPDATE hidden_chunks SET hidden_at_utc = now() AT TIME ZONE 'UTC' - INTERVAL 3 HOUR")
    _age(ground)


# ---- readers and commands --------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_connected_readers_see_every_row_once_while_piperd_ingests_and_compacts(
    tmp_path: Path, make_piperd: MakePiperd
) -> None:
    ground = made(tmp_path / "ground")
    _age(ground)
    gold = gold_of(ground)
    writers = NumberedWriters(ground.raw, Random(7))
    piperd = make_piperd(
        {"COMPACTION__HOURS": "always", "INGEST__SEAL_EVENTS_MAX": 300}, raw_root=ground.raw, data_root=ground.data
    )
    with Reader(require_reader_site(), ground.layout.catalog) as reader:
        reader.wait_started()
        thread = WriterThread(writers)
        piperd.start_ready()
        wait_until(lambda: piperd.metric("piper_compacted_chunks_total") > 0, what=piperd.log_text)
        assert gold_of(ground) == gold, "compaction of what was there tells gold nothing"
        thread.start()
        for _ in range(6):
            before = piperd.metric("piper_events_ingested_total")
            wait_until(lambda before=before: piperd.metric("piper_events_ingested_total") >= before + 300)
            ask(ground.layout.control_socket, "compact", {"end": "9999-12-31"})
        thread.finish()
        expected = ground.written.valid + len(writers.events)
        wait_until(lambda: _events(ground) >= expected, what=piperd.log_text)
        ask(ground.layout.control_socket, "compact", {"end": "9999-12-31"})
        piperd.stop()
        report = reader.stop()
    assert report["problems"] == []
    assert report["counts"]["silver_events"] == expected
    assert not [line for line in piperd.log_events() if line["level"] == "error"]
    assert max(chunk_counts(ground).values()) <= 2, "the last seal may have come after the last merge"


@pytest.mark.parametrize("with_piperd", [False, True])
def test_the_command_does_what_its_dry_run_says(tmp_path: Path, make_piperd: MakePiperd, with_piperd: bool) -> None:
    ground = made(tmp_path / "ground")
    if with_piperd:
        make_piperd({"COMPACTION__HOURS": "never"}, raw_root=ground.raw, data_root=ground.data).start_ready()
    before = events_of(ground)

    said = ground.piper_json("compact", "--dry-run")
    assert said["bytes_after"] is None
    done = ground.piper_json("compact")

    changing = {"dry_run", "bytes_after", "seconds"}
    assert {k: v for k, v in done.items() if k not in changing} == {k: v for k, v in said.items() if k not in changing}
    assert done["by"] == ("piperd" if with_piperd else "piper")
    assert done["chunks_before"] > done["chunks_after"] == done["merges"] > 0
    assert 0 < done["bytes_after"] < done["bytes_before"]
    assert ground.piper_json("compact")["merges"] == 0
    assert events_of(ground) == before


def test_runs_from_cron_compact_and_put_away_what_was_replaced(ground: Ground) -> None:
    _age(ground)
    ground.simulate(10, days=1)
    summary = ground.piper_json("ingest", PIPER_COMPACTION__HOURS="always")
    assert summary["compacted"] > 0
    assert hidden(ground) == summary["compacted"]
    for _ in range(2):
        _age_hidden(ground)
        ground.piper_json("ingest", PIPER_COMPACTION__INGEST_SECONDS="0")
    assert hidden(ground) == 0
    files = [path for path in ground.layout.silver.rglob("*.parquet") if path.name != EMPTY_CHUNK]
    assert len(files) == chunk_counts(ground).total()
    check_all(ground)
    check_gold(ground)


def hidden(ground: Ground) -> int:
    with ground.writer() as writer:
        return hidden_chunks(writer.store.con)


def test_connected_readers_miss_no_file_when_replaced_chunks_are_put_away(ground: Ground) -> None:
    with Reader(require_reader_site(), ground.layout.catalog) as reader:
        reader.wait_started()
        for _ in range(4):
            ground.simulate(100, days=3)
            ground.run("ingest", "seal", "publish", "export", "gold", "rewrite", "publish")
            replaced = hidden(ground)
            for _ in ("parked", "deleted"):
                reader.wait_round()  # what had listed them is over
                _age_hidden(ground)
                with hands_of(ground) as hands:
                    assert forget(hands)
            assert replaced > 0
            assert hidden(ground) == 0
        report = reader.stop()
    assert report["problems"] == []
    assert report["counts"]["silver_events"] == ground.written.valid
    assert list(ground.layout.parked.iterdir()) == []


def test_a_parked_chunk_is_listed_by_no_query_and_open_to_those_that_have_listed_it(ground: Ground) -> None:
    ground.run("rewrite", "publish")
    _age_hidden(ground)
    with ground.writer() as writer:
        old = [path for (path,) in writer.store.con.execute("SELECT path FROM hidden_chunks").fetchall()]
        under_silver = ground.layout.silver / old[0]
        before = under_silver.read_bytes()
        with closing(Hands(writer)) as hands:
            assert forget(hands)
    assert under_silver.is_symlink()
    assert under_silver.read_bytes() == before
    with duckdb.connect() as con:
        pattern = str(ground.layout.silver).replace("'", "''") + "/*/*/**"
        listed = {name for (name,) in con.execute(f"SELECT file FROM glob('{pattern}')").fetchall()}
    assert listed
    assert not {str(ground.layout.silver / path) for path in old} & listed
    check_all(ground)


def test_foreign_files_beside_chunks_do_not_disturb_readers(ground: Ground) -> None:
    with ground.writer() as writer:
        chunk = ground.layout.silver / partitions(writer.store.con)[0].paths[0]
    for name in (".nfs000000000001", f"{chunk.name}.damaged", "notes.txt"):
        chunk.with_name(name).write_text("not Parquet")
        chunk.parent.parent.joinpath(name).write_text("not Parquet")
    check_all(ground)
