"""Replay: what passes by today's rules moves into silver once and leaves quarantine; nothing else moves."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from pathlib import Path

import orjson
import pytest
from tests.support.backfills import LONG_LINES, events_of, ingested_short
from tests.support.event_lines import event_line
from tests.support.ground import KILLED, Ground, check_all, check_gold
from tests.support.piperd import Piperd
from tests.support.spool_run import NOW, SpoolRun, spool_run

from piper.backfill.replay import Replay, Replayed
from piper.events.quarantine import Reason
from piper.ops.rejected import Only
from piper.upkeep import Hands

FAILPOINTS = (
    "rewrite.staged",
    "rewrite.committed",
    "reveal.moved",
    "rewrite.revealed",
    "release.purged",
    "release.noted",
)


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return ingested_short(tmp_path, events=200)


def replay(run: SpoolRun, only: Only | None = None, *, is_dry: bool = False) -> Replayed:
    with closing(Hands(run.writer)) as hands:
        under_way = Replay(only or Only(), is_dry=is_dry)
        while under_way.step(hands):
            pass
    run.writer.export_quarantine()
    return under_way.done


def ahead(event_id: str, hours: float) -> bytes:
    """A line that is so far in the future of the clock of a run."""
    return event_line(event_id, at=NOW + timedelta(hours=hours))


def ids(run: SpoolRun) -> list[str]:
    return sorted(row["event_id"] for row in run.rows("events"))


def reasons(run: SpoolRun) -> list[str]:
    return sorted(record["reason"] for record in run.quarantined())


# ---- what passes -----------------------------------------------------------------------------------------------------


def test_a_line_of_a_fast_clock_passes_when_its_time_has_come(tmp_path: Path) -> None:
    with spool_run(tmp_path) as run:
        run.ingest({"host/user/a.jsonl": ahead("soon", 2) + ahead("late", 50) + b"no json\n"})
        assert replay(run) == Replayed(lines=3, still_rejected=3)
        run.seconds = 3 * 3600
        done = replay(run)
        assert (done.added, done.released, done.still_rejected) == (1, 1, 2)
        assert done.dates == {"2030-03-04": 1}
        assert ids(run) == ["soon"]
        assert reasons(run) == ["clock_skew", "invalid_json"]
        assert replay(run) == Replayed(lines=2, still_rejected=2), "it is done once"


def test_a_line_whose_event_came_otherwise_leaves_and_nothing_comes_twice(tmp_path: Path) -> None:
    with spool_run(tmp_path) as run:
        run.ingest({"host/user/a.jsonl": ahead("twice", 2), "host/user/b.jsonl": ahead("copied", 2)})
        run.ingest({"host/user/c.jsonl": ahead("copied", 2)})
        run.seconds = 3 * 3600
        run.ingest({"host/user/d.jsonl": ahead("twice", 2)})
        assert ids(run) == ["twice"]
        done = replay(run)
        assert (done.added, done.duplicates, done.released) == (1, 2, 3)
        assert ids(run) == ["copied", "twice"]
        assert run.quarantined() == []
        run.ingest({"host/user/e.jsonl": ahead("copied", 2)})
        assert ids(run) == ["copied", "twice"]


def test_reason_since_and_a_dry_run_choose_what_is_moved(tmp_path: Path) -> None:
    with spool_run(tmp_path, INGEST__LINE_BYTES_MAX="2048") as run:
        long = orjson.loads(ahead("long", -1))
        long["payload"]["trace"] = "x" * 3000
        run.ingest({"host/user/a.jsonl": ahead("skewed", 2) + orjson.dumps(long) + b"\n"})
    with spool_run(tmp_path) as run:
        run.seconds = 3 * 3600
        before = run.quarantined()
        assert replay(run, is_dry=True).added == 2
        assert run.quarantined() == before
        assert replay(run, Only(since=NOW + timedelta(hours=1))).lines == 0
        assert replay(run, Only(Reason.CLOCK_SKEW)).added == 1
        assert ids(run) == ["skewed"]
        assert reasons(run) == ["line_too_long"]
        assert replay(run, Only(since=NOW - timedelta(hours=1))).added == 1
        assert ids(run) == ["long", "skewed"]


def test_a_line_of_which_only_a_part_was_kept_stays_and_is_reported(tmp_path: Path) -> None:
    with spool_run(tmp_path, INGEST__LINE_BYTES_MAX="2048") as run:
        long = orjson.loads(ahead("long", -1))
        long["payload"]["trace"] = "x" * 100_000
        run.ingest({"host/user/a.jsonl": orjson.dumps(long) + b"\n"})
    with spool_run(tmp_path) as run:
        done = replay(run)
        assert (done.lines, done.cut, done.added) == (1, 1, 0)
        assert reasons(run) == ["line_too_long"]


def test_lines_that_are_rejected_after_a_release_are_appended_behind_what_is_left(tmp_path: Path) -> None:
    with spool_run(tmp_path) as run:
        run.ingest({"host/user/a.jsonl": ahead("one", 2) + b"bad\n" + ahead("two", 2)})
        run.seconds = 3 * 3600
        replay(run)
        run.ingest({"host/user/b.jsonl": b"worse\n"})
        assert [record["raw_text"] for record in run.quarantined()] == ["bad", "worse"]
        counts = run.writer.store.con.execute(
            "SELECT reason, sum(lines) FROM quarantine_counts GROUP BY ALL"
        ).fetchall()
        assert dict(counts) == {"clock_skew": 0, "invalid_json": 2}
        assert run.writer.store.progress().quarantined == 2
        days = run.writer.store.con.execute("SELECT sum(quarantined_lines) FROM dates").fetchall()
        assert days == [(2,)]


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_moves_lines_and_brings_gold_up_to_date(ground: Ground) -> None:
    before = len(events_of(ground))
    done = ground.piper_json("quarantine", "replay", "--reason", "line_too_long", "--since", "1d")
    assert (done["by"], done["added"], done["lines"]) == ("piper", LONG_LINES, LONG_LINES)
    assert len(events_of(ground)) == before + LONG_LINES
    check_all(ground)
    check_gold(ground)


@pytest.mark.parametrize("failpoint", FAILPOINTS)
@pytest.mark.timeout(300)
def test_a_replay_that_is_killed_anywhere_is_finished_by_the_next(ground: Ground, failpoint: str) -> None:
    with ground.piper_process("quarantine", "replay", PIPER_FAILPOINT=failpoint) as process:
        process.communicate()
    assert process.returncode == KILLED
    ground.piper_json("quarantine", "replay")
    check_all(ground)
    check_gold(ground)


@pytest.mark.timeout(300)
def test_a_piperd_that_runs_replays_itself(ground: Ground, tmp_path: Path) -> None:
    with Piperd(ground.raw, ground.data, tmp_path / "logs", {"INGEST__LINE_BYTES_MAX": 8192}) as piperd:
        piperd.start_ready()
        done = ground.piper_json("quarantine", "replay", "--dry-run")
        assert (done["by"], done["added"]) == ("piperd", LONG_LINES)
        done = ground.piper_json("quarantine", "replay")
        assert (done["by"], done["added"]) == ("piperd", LONG_LINES)
        piperd.stop()
    check_all(ground)
    check_gold(ground)


def test_a_wrong_reason_is_a_message(tmp_path: Path) -> None:
    with Ground(tmp_path).piper_process("quarantine", "replay", "--reason", "nonsense") as process:
        _, err = process.communicate()
    assert process.returncode == 2
    assert "there is no reason" in err
