"""Retention: what is old enough goes, whole and nothing else; gold keeps its history, and nothing pruned comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.conftest import MakePiperd
from tests.support.ground import KILLED, Ground, check_datasets, check_quarantine
from tests.support.polling import wait_until
from tests.support.reader_engine import require_reader_site
from tests.support.readers import Reader
from tests.support.warehouse import GOLD_VIEWS, SILVER_VIEWS

from piper.errors import PiperError
from piper.ops.storage import storage_bytes
from piper.retention import Pruned, prune
from piper.settings import Retention
from piper.silver.rebuild import forget_recounts, rebuild
from piper.upkeep import Hands
from piper.writer import Clock

DAYS = 30
SILVER_DAYS = 14
RETENTION = {"PIPER_RETENTION__SILVER_DAYS": str(SILVER_DAYS)}
KINDS = ("silver", "quarantine", "run_logs", "sources")
LONG_AGO = date(2020, 1, 1)


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    """A month of events, sealed twice, and everything computed."""
    ground = Ground(tmp_path)
    for _ in range(2):
        ground.simulate(120, days=DAYS)
        ground.run("ingest", "seal", "publish", "export", "gold")
    return ground


def retention(ground: Ground, **days: int) -> Retention:
    return ground.settings.retention.model_copy(update={"silver_days": SILVER_DAYS, **days})


@contextmanager
def hands_of(ground: Ground) -> Iterator[Hands]:
    with ground.writer() as writer, closing(Hands(writer)) as hands:
        yield hands


def prune_now(ground: Ground, *, dry_run: bool = False, **days: int) -> dict[str, Pruned]:
    with hands_of(ground) as hands:
        done = prune(hands, retention(ground, **days), dry_run=dry_run)
        hands.writer.publish()
        return done


def horizon() -> date:
    return datetime.now(UTC).date() - timedelta(days=SILVER_DAYS)


def gold_of(ground: Ground) -> dict[str, list[tuple[Any, ...]]]:
    history = (view for view in GOLD_VIEWS if view.endswith(("_daily", "_weekly")))
    return {view: ground.query(f"FROM {view} ORDER BY ALL") for view in history}


def old_events(ground: Ground) -> int:
    return int(ground.query(f"SELECT count(*) FROM silver_events WHERE event_date < DATE '{horizon()}'")[0][0])


def old_line(ground: Ground, **changes: str) -> bytes:
    """A line of a day that is pruned, with other values."""
    place = ground.query(
        f"""SELECT source_file, source_offset FROM silver_events WHERE event_date < DATE '{horizon()}'
        ORDER BY event_date, event_id LIMIT 1"""
    )[0]
    data = (ground.raw / place[0]).read_bytes()[place[1] :]
    event = orjson.loads(data[: data.index(b"\n")])
    return orjson.dumps(event | changes) + b"\n"


def deliver(ground: Ground, line: bytes) -> None:
    folder = ground.raw / "late.studio.example" / "artist"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "telemetry-late.jsonl").open("ab") as stream:
        stream.write(line)


# ---- silver and gold -------------------------------------------------------------------------------------------------


def test_the_command_deletes_what_its_dry_run_says_and_gold_stays(ground: Ground) -> None:
    gold, old = gold_of(ground), old_events(ground)

    said = ground.piper_json("prune", "--dry-run", **RETENTION)
    assert (old_events(ground), said["silver"]["rows"]) == (old, old)
    done = ground.piper_json("prune", **RETENTION)

    assert done["by"] == "piper"
    assert {kind: done[kind] for kind in KINDS} == {kind: said[kind] for kind in KINDS}
    assert done["silver"]["before"] == horizon().isoformat()
    assert done["silver"]["files"] > 0
    assert done["silver"]["bytes"] > 0
    assert old_events(ground) == 0
    assert ground.seen() == (ground.written.valid - old,) * 2
    check_datasets(ground)
    assert gold_of(ground) == gold
    assert ground.piper_json("prune", **RETENTION)["silver"]["rows"] == 0


def test_a_running_piperd_does_the_command_by_its_own_settings(ground: Ground, make_piperd: MakePiperd) -> None:
    old = old_events(ground)
    make_piperd(raw_root=ground.raw, data_root=ground.data).start_ready()
    done = ground.piper_json("prune", **RETENTION)
    assert (done["by"], done["silver"]["before"], done["silver"]["rows"]) == ("piperd", None, 0)
    assert old_events(ground) == old


def test_a_running_piperd_prunes_by_itself(ground: Ground, make_piperd: MakePiperd) -> None:
    gold, old = gold_of(ground), old_events(ground)
    piperd = make_piperd({"RETENTION__SILVER_DAYS": SILVER_DAYS}, raw_root=ground.raw, data_root=ground.data)
    piperd.start_ready()
    wait_until(lambda: old_events(ground) == 0, what=piperd.log_text)
    assert piperd.metric("piper_pruned_rows_total", kind="silver") == old
    assert gold_of(ground) == gold
    piperd.stop()


def test_late_events_of_pruned_days_go_with_the_next_prune_and_do_not_change_gold(ground: Ground) -> None:
    late, again = old_line(ground, event_id="late-1"), old_line(ground)
    gold = gold_of(ground)
    prune_now(ground)

    deliver(ground, late)
    ground.run("ingest", "seal", "publish", "gold")
    assert old_events(ground) == 1
    assert gold_of(ground) == gold

    assert prune_now(ground)["silver"].rows == 1
    deliver(ground, late)
    deliver(ground, again)
    ground.run("ingest", "publish", "gold")
    assert old_events(ground) == 0, "what was pruned is known, and stays away"
    assert gold_of(ground) == gold


def test_gold_computed_from_scratch_keeps_the_rows_of_pruned_days(ground: Ground) -> None:
    gold = gold_of(ground)
    prune_now(ground)
    assert ground.piper_json("materialize")["failed"] == []
    assert gold_of(ground) == gold


@pytest.mark.parametrize("damage", ["lost", "damaged"])
def test_gold_of_pruned_days_survives_the_loss_of_its_database(ground: Ground, damage: str) -> None:
    gold = gold_of(ground)
    prune_now(ground)
    ground.piper_json("materialize")  # so that the published copy knows what silver has no more
    if damage == "lost":
        ground.layout.gold_state.unlink()
    else:
        ground.layout.gold_state.write_bytes(b"damaged" * 10_000)
    ground.run("gold")
    assert gold_of(ground) == gold
    prune_now(ground)
    ground.piper_json("materialize")
    assert gold_of(ground) == gold


def test_gold_of_pruned_days_survives_the_loss_of_the_manifest(ground: Ground) -> None:
    gold = ground.query(f"FROM gold_tool_reliability_daily WHERE event_date < DATE '{horizon()}' ORDER BY ALL")
    assert gold
    prune_now(ground)
    ground.run("forget", "forget")
    ground.remove_raw()
    ground.layout.manifest.unlink()
    rebuild(ground.settings)
    with ground.writer() as writer:
        forget_recounts(writer.store)
        writer.publish()
        writer.refresh_gold(writer.store.con)
    assert old_events(ground) == 0
    assert ground.query(f"FROM gold_tool_reliability_daily WHERE event_date < DATE '{horizon()}' ORDER BY ALL") == gold


def test_silver_keeps_what_gold_has_not_counted(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    old = old_events(ground)
    deliver(ground, old_line(ground, event_id="not-counted"))
    ground.run("ingest", "seal", "publish")
    with hands_of(ground) as hands:
        monkeypatch.setattr(hands.writer, "refresh_gold", lambda *_, **__: False)
        with pytest.raises(PiperError, match="gold is not up to date"):
            prune(hands, retention(ground))
    assert old_events(ground) == old + 1


@pytest.mark.parametrize("failpoint", ["prune.kept", "rewrite.committed", "rewrite.revealed"])
def test_a_death_while_silver_is_pruned_is_made_good_by_the_next_prune(ground: Ground, failpoint: str) -> None:
    gold, old = gold_of(ground), old_events(ground)
    with ground.piper_process("prune", PIPER_FAILPOINT=failpoint, **RETENTION) as process:
        process.communicate()
        assert process.returncode == KILLED
    assert old_events(ground) in (0, old)
    ground.piper_json("prune", **RETENTION)
    assert old_events(ground) == 0
    assert gold_of(ground) == gold
    check_datasets(ground)


def test_connected_readers_see_all_of_the_pruned_days_or_nothing(ground: Ground) -> None:
    before = {view: ground.query(f"SELECT count(*) FROM {view}")[0][0] for view in SILVER_VIEWS}
    with Reader(require_reader_site(), ground.layout.catalog, may_shrink=True) as reader:
        reader.wait_started()
        reader.wait_round()
        prune_now(ground)
        reader.wait_round()
        report = reader.stop()
    after = {view: ground.query(f"SELECT count(*) FROM {view}")[0][0] for view in SILVER_VIEWS}
    assert after["silver_events"] < before["silver_events"]
    assert report["problems"] == []
    for view in SILVER_VIEWS:
        assert set(report["saw"][view]) == {before[view], after[view]}


# ---- folders and the manifest ----------------------------------------------------------------------------------------


def test_old_quarantine_goes_by_day_and_its_counts_stay(tmp_path: Path) -> None:
    ground = Ground(tmp_path)
    ground.simulate(20)
    past = Clock(utc=lambda: time.time() - 100 * 86_400)  # to which all these events are from the future
    with ground.writer(past) as writer:
        writer.scan()
        writer.ingest()
        writer.export_quarantine()
    ground.simulate(200)
    ground.run("ingest", "seal", "publish", "export", "gold")
    counts = ground.query("SELECT event_date, quarantined_lines FROM gold_data_quality_daily ORDER BY ALL")
    folders = sorted(path.name for path in ground.layout.quarantine.iterdir())
    assert len(folders) == 2

    said, done = prune_now(ground, dry_run=True), prune_now(ground)

    assert said["quarantine"] == done["quarantine"]
    assert done["quarantine"].files == 1
    assert done["quarantine"].rows >= 20
    assert sorted(path.name for path in ground.layout.quarantine.iterdir()) == folders[1:]
    with ground.writer() as writer:
        assert storage_bytes(writer.store)["quarantine"] == sum(
            path.stat().st_size for path in ground.layout.quarantine.rglob("*.jsonl")
        )
        writer.refresh_gold(writer.store.con, rebuild=True)
    assert ground.query("SELECT event_date, quarantined_lines FROM gold_data_quality_daily ORDER BY ALL") == counts


def test_only_files_of_ours_are_deleted_and_no_link_is_followed(ground: Ground, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.jsonl").write_text("{}")
    logs = ground.layout.run_logs
    day, mixed, linked = (logs / f"2020-01-0{number}" for number in (1, 2, 3))
    for folder in (day, mixed):
        folder.mkdir()
        (folder / "piperd-101010Z-7.jsonl").write_text("{}\n")
    (mixed / "notes.txt").write_text("why it broke")
    (mixed / "link.jsonl").symlink_to(outside / "precious.jsonl")
    linked.symlink_to(outside)
    (logs / "archive").mkdir()
    (logs / "archive" / "old.jsonl").write_text("{}\n")
    today = logs / datetime.now(UTC).date().isoformat()
    today.mkdir(exist_ok=True)
    (today / "now.jsonl").write_text("{}\n")

    said, done = prune_now(ground, dry_run=True), prune_now(ground)

    assert said["run_logs"] == done["run_logs"]
    assert (done["run_logs"].files, done["run_logs"].bytes) == (2, 6)
    assert not day.exists()
    assert sorted(path.name for path in mixed.iterdir()) == ["link.jsonl", "notes.txt"]
    assert linked.is_symlink()
    assert (outside / "precious.jsonl").exists()
    assert (logs / "archive" / "old.jsonl").exists()
    assert (today / "now.jsonl").exists()


def test_zero_days_keep_everything(ground: Ground) -> None:
    folder = ground.layout.run_logs / LONG_AGO.isoformat()
    folder.mkdir()
    (folder / "piperd.jsonl").write_text("{}\n")
    done = prune_now(ground, silver_days=0, quarantine_days=0, run_log_days=0)
    assert not any(done.values())
    assert done["silver"].before is None
    assert (folder / "piperd.jsonl").exists()


def test_states_of_long_vanished_files_are_forgotten_and_their_lines_are_still_known(ground: Ground) -> None:
    with ground.writer() as writer:
        writer.store.con.execute(
            "UPDATE sources SET vanished = TRUE, updated_at_utc = updated_at_utc - INTERVAL 31 DAY WHERE source_id = 1"
        )
        with closing(Hands(writer)) as hands:
            said, done = prune(hands, retention(ground), dry_run=True), prune(hands, retention(ground))
        assert said["sources"].rows == done["sources"].rows == 1
        known = writer.store.progress().duplicates
        writer.publish()
    seen = ground.seen()
    ground.run("ingest", "publish", "export")  # the file is still there, and read from its begin
    assert ground.seen() == seen
    check_quarantine(ground)
    with ground.writer() as writer:
        assert writer.store.progress().duplicates > known
