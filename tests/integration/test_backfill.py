"""Backfill as a command and in a running piperd: the same result whoever does it and wherever it died."""

from __future__ import annotations

import os
import subprocess
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from os import stat_result
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.support.backfills import LONG_LINES, damage, events_of, ingested_short
from tests.support.event_lines import append_events, event_line
from tests.support.ground import KILLED, Ground, check_all, check_gold
from tests.support.piperd import Piperd
from tests.support.polling import wait_until
from tests.support.reader_engine import require_reader_site
from tests.support.readers import Reader

from piper.backfill.run import Backfill
from piper.backfill.scope import Scope, in_order
from piper.backfill.state import read_state
from piper.ops.control import ask
from piper.upkeep import Hands
from piper.writer import Writer

T = TypeVar("T")
FAILPOINTS = (
    "backfill.planned",
    "backfill.read",
    "rewrite.staged:2",
    "rewrite.committed:2",
    "reveal.moved:3",
    "backfill.applied:2",
    "release.purged",
    "release.noted",
)


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return ingested_short(tmp_path)


def today() -> date:
    return datetime.now(UTC).date()


def check_healed(ground: Ground) -> None:
    """Silver, quarantine and gold are what a fresh ingest gives."""
    check_all(ground)
    check_gold(ground)
    assert ground.query("SELECT count(*) FROM silver_events WHERE error_code = '?'") == [(0,)]
    assert not list(ground.layout.state.glob("backfill*"))


# ---- by command ------------------------------------------------------------------------------------------------------


def test_a_backfill_of_everything_heals_silver_releases_lines_and_brings_gold_up_to_date(ground: Ground) -> None:
    whole = set(events_of(ground))
    damage(ground)
    promised = ground.piper_json("backfill", "--all", "--dry-run")
    assert events_of(ground) != whole
    assert promised["read"] == [display for display in promised["read"] if display.endswith(".jsonl")] != []

    done = ground.piper_json("backfill", "--all")

    check_healed(ground)
    assert set(events_of(ground)) > whole
    assert len(events_of(ground)) - len(whole) == LONG_LINES == done["released"]
    for kind in ("added", "replaced", "rejected", "released", "dates"):
        assert promised[kind] == done[kind], kind
    assert (done["by"], done["unreadable"], done["gold_failed"]) == ("piper", [], [])
    assert ground.piper_json("backfill", "--all")["dates"] == {}


def test_a_backfill_of_some_days_leaves_the_others_as_they_are(ground: Ground) -> None:
    damage(ground)
    day = today() - timedelta(days=1)
    others = f"SELECT * FROM silver_events WHERE event_date <> DATE '{day}' ORDER BY event_id"
    before = ground.query(others)
    done = ground.piper_json("backfill", "--start", str(day), "--end", str(day))
    assert set(done["dates"]) == {str(day)}
    assert ground.query(others) == before
    rows, events = ground.seen()
    assert rows == events
    assert ground.query(f"SELECT count(*) FROM silver_events WHERE event_date = '{day}' AND error_code = '?'") == [(0,)]


def test_events_whose_file_is_gone_stay(ground: Ground) -> None:
    before = events_of(ground)
    ground.remove_raw()
    (ground.raw / "ws01.studio.example").mkdir()
    append_events(ground.raw, ["new"])
    assert ground.piper_json("backfill", "--all")["added"] == 0, "the pass before it has read what is new"
    assert [row for row in events_of(ground) if row[0] != "new"] == before


def test_added_events_say_when_they_came_and_replaced_ones_when_they_first_did(ground: Ground) -> None:
    times = "SELECT event_id, ingested_at_utc FROM silver_events"
    damage(ground)
    before = dict(ground.query(times))
    done = ground.piper_json("backfill", "--all")
    after = dict(ground.query(times))
    added = after.keys() - before.keys()
    assert done["added"] == len(added) > 0
    assert min(after[event] for event in added) > max(before.values())
    assert all(after[event] == before[event] for event in after.keys() & before.keys())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--start", "2026-02-03", "--end", "2026-02-01"), "is after"),
        (("--start", "2026-02-03", "--end", "2999-02-01"), "in the future"),
        (("--end", "2026-02-01"), "which days"),
        (("--all", "--start", "2026-02-01"), "one or the other"),
        (("--start", "yesterday"), "yesterday"),
    ],
)
def test_days_that_make_no_sense_are_refused_with_a_message(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    with Ground(tmp_path).piper_process("backfill", *arguments) as process:
        out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert words in err
    assert "Traceback" not in err


def test_days_that_retention_has_pruned_are_refused(ground: Ground) -> None:
    start = today() - timedelta(days=30)
    with ground.piper_process("backfill", "--start", str(start), PIPER_RETENTION__SILVER_DAYS="14") as process:
        _, err = process.communicate()
    assert process.returncode == 1
    assert "silver keeps nothing of days before" in err


def test_without_a_spool_nothing_is_backfilled(ground: Ground) -> None:
    ground.set_raw_aside()
    ground.raw.rmdir()
    with ground.piper_process("backfill", "--all") as process:
        _, err = process.communicate()
    assert process.returncode == 1
    assert "the spool cannot be read" in err


# ---- which files, which line -----------------------------------------------------------------------------------------


def _status(day: str) -> stat_result:
    stamp = datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()
    return stat_result((0, 0, 0, 0, 0, 0, 1, stamp, stamp, stamp))


@pytest.mark.parametrize(
    ("name", "written", "is_read"),
    [
        (b"telemetry-20260310T080000Z-1-0001.jsonl", "2026-03-10", True),
        (b"telemetry-20260301T080000Z-1-0001.jsonl", "2026-03-04", True),
        (b"telemetry-20260201T080000Z-1-0001.jsonl", "2026-03-02", False),
        (b"telemetry-20260313T080000Z-1-0001.jsonl", "2026-03-20", False),
        (b"telemetry-20260312T080000Z-1-0001.jsonl", "2026-03-20", True),
        (b"anything.jsonl", "2026-05-01", True),
        (b"telemetry-20269910T080000Z-1-0001.jsonl", "2026-05-01", True),
    ],
)
def test_files_are_chosen_by_name_and_time_with_room_for_wrong_clocks(name: bytes, written: str, is_read: bool) -> None:
    assert Scope(date(2026, 3, 10), date(2026, 3, 10)).can_hold(b"host/user/" + name, _status(written)) is is_read


def test_files_are_read_in_the_order_of_their_names_wherever_they_lie() -> None:
    paths = [b"z/a/telemetry-1.jsonl", b"a/a/telemetry-2.jsonl", b"b/a/telemetry-1.jsonl"]
    assert in_order(dict.fromkeys(paths, _status("2026-03-01"))) == [paths[2], paths[0], paths[1]]


# ---- killed, and beside ingest ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("failpoint", FAILPOINTS)
@pytest.mark.timeout(300)
def test_a_backfill_that_is_killed_anywhere_is_finished_by_the_same_command(ground: Ground, failpoint: str) -> None:
    damage(ground)
    with ground.piper_process("backfill", "--all", PIPER_FAILPOINT=failpoint) as process:
        process.communicate()
    assert process.returncode == KILLED
    rows, events = ground.seen()
    assert rows == events
    ground.piper_json("backfill", "--all")
    check_healed(ground)


@pytest.mark.timeout(300)
def test_piperd_goes_on_with_a_backfill_that_was_killed_and_reads_live_lines_meanwhile(
    ground: Ground, tmp_path: Path
) -> None:
    damage(ground)
    with Piperd(ground.raw, ground.data, tmp_path / "logs") as piperd:
        piperd.start_ready(FAILPOINT="backfill.read:1:hang")
        with ground.piper_process("backfill", "--all") as command:
            wait_until(lambda: "backfill_begun" in piperd.log_text(), what=piperd.log_text)
            append_events(ground.raw, ["live"])
            ground.written.valid += 1
            is_there = "SELECT count(*) FROM silver_events WHERE event_id = 'live'"
            wait_until(lambda: ground.query(is_there) == [(1,)], what=piperd.log_text)
            assert command.poll() is None, "the backfill is still hanging"
            piperd.kill()
            _, err = command.communicate()
            assert command.returncode == 1
            assert "piperd ended before" in err
        piperd.start_ready()
        wait_until(lambda: "backfill_finished" in piperd.log_text(), 120, what=piperd.log_text)
        wait_until(lambda: ground.query("SELECT count(*) FROM silver_events WHERE error_code = '?'") == [(0,)])
        piperd.stop()
    check_healed(ground)


@pytest.mark.timeout(300)
def test_a_backfill_is_handed_to_piperd_and_a_connected_reader_sees_no_row_twice_or_missing(
    ground: Ground, tmp_path: Path
) -> None:
    damage(ground)
    progress: list[dict[str, Any]] = []
    with (
        Piperd(ground.raw, ground.data, tmp_path / "logs") as piperd,
        Reader(require_reader_site(), ground.layout.catalog) as reader,
    ):
        piperd.start_ready()
        reader.wait_started()
        done = ask(ground.layout.control_socket, "backfill", {"start": None, "end": None}, progress.append)
        reader.wait_round()
        report = reader.stop()
        assert ground.piper_json("backfill", "--all")["by"] == "piperd"
        lag = piperd.metric("piper_ingest_lag_seconds_count")
        piperd.stop()
    check_healed(ground)
    assert report["problems"] == []
    assert report["counts"]["silver_events"] == ground.written.valid
    assert done["added"] > 0
    assert done["replaced"] > 0
    assert [p["done"] for p in progress] == sorted(p["done"] for p in progress)
    assert lag == 0, "nothing of it came by ingest"


def test_piperd_with_backfill_is_the_same_command(ground: Ground) -> None:
    damage(ground)
    program = "from piper.cli import main_daemon; main_daemon()"
    done = subprocess.run(
        [os.sys.executable, "-c", program, "--backfill", "--all", "--json"],  # type: ignore[attr-defined]
        env={**os.environ, **ground.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    check_healed(ground)


def test_an_event_that_ingest_commits_while_it_is_backfilled_comes_once(ground: Ground) -> None:
    at = datetime.now(UTC) - timedelta(days=1)
    folder = ground.raw / "ws01.studio.example" / "amara"
    with ground.writer() as writer:
        (folder / "telemetry-a.jsonl").write_bytes(event_line("raced", at=at))
        is_raced = False

        def race(action: Any) -> Any:
            nonlocal is_raced
            if action.__name__ == "commit" and not is_raced:
                is_raced = True
                (folder / "telemetry-b.jsonl").write_bytes(event_line("raced", at=at))
                writer.scan()
                writer.ingest()
            return action(writer)

        with closing(Hands(writer, race)) as hands:
            backfill = Backfill(is_live=False)
            backfill.begin(hands, Scope())
            while backfill.step(hands) is not None:
                pass
        writer.publish()
        assert is_raced
    assert ground.query("SELECT count(*) FROM silver_events WHERE event_id = 'raced'") == [(1,)]


def test_what_the_tailer_has_not_read_yet_is_left_to_it(ground: Ground) -> None:
    append_events(ground.raw, ["unread"])
    with ground.writer() as writer, closing(Hands(writer)) as hands:
        backfill = Backfill(is_live=True)
        backfill.begin(hands, Scope())
        while backfill.step(hands) is not None:
            pass
        state = read_state(hands.con)
        assert state is not None
        assert state.summary()["added"] == LONG_LINES
        _read_all(writer)
        assert (writer.totals.accepted, writer.totals.duplicates) == (1, 0)
        writer.publish()
    assert ground.query("SELECT count(*) FROM silver_events WHERE event_id = 'unread'") == [(1,)]


def test_a_malformed_line_that_ingest_met_under_another_name_meanwhile_is_quarantined_once(ground: Ground) -> None:
    """A backfill that was killed after reading, and whose files ingest has read since, with other names for a while."""
    folder = ground.raw / "ws01.studio.example" / "amara"
    (folder / "telemetry-b.jsonl").write_bytes(event_line("b-1") + b"no json\n")
    with ground.writer() as writer, closing(Hands(writer)) as hands:
        backfill = Backfill(is_live=False)
        backfill.begin(hands, Scope())
        while backfill.step(hands) is not None:
            if not _records_of_no_json(ground, writer):
                (folder / "telemetry-b.jsonl").rename(folder / "telemetry-a.jsonl")
                _read_all(writer)
                assert _records_of_no_json(ground, writer) == 1
                (folder / "telemetry-a.jsonl").rename(folder / "telemetry-b.jsonl")
                _read_all(writer)
        assert _records_of_no_json(ground, writer) == 1


def test_a_file_that_took_the_name_and_inode_of_one_that_was_read_is_left_to_the_tailer(ground: Ground) -> None:
    """Else an event would be in silver whose beginning the tailer has seen, and quarantines when its file goes."""
    file = ground.raw / "ws01.studio.example" / "amara" / "telemetry-b.jsonl"
    file.write_bytes(b"".join(event_line(f"first-{number}") for number in range(5)))
    with ground.writer() as writer, closing(Hands(writer)) as hands:
        _read_all(writer)
        backfill = Backfill(is_live=True)
        backfill.begin(hands, Scope())
        file.write_bytes(b"".join(event_line(f"other-{number}") for number in range(5)))  # the same inode
        while backfill.step(hands) is not None:
            pass
        writer.publish()
        assert ground.query("SELECT count(*) FROM silver_events WHERE event_id LIKE 'other-%'") == [(0,)]
        state = read_state(hands.con)
        assert state is not None
        assert state.summary()["unreadable"] == []


def _records_of_no_json(ground: Ground, writer: Writer) -> int:
    """How often quarantine holds that line."""
    writer.export_quarantine()
    return sum(file.read_bytes().count(b"no json") for file in ground.layout.quarantine.glob("**/*.jsonl"))


def _read_all(writer: Writer) -> None:
    writer.scan()
    while writer.ingest():
        pass


class MaskedGround(Ground):
    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "PIPER_PRIVACY__MASK_USERS": "true"}


def test_with_masks_nothing_changes_that_is_masked_already_and_what_comes_is_masked(tmp_path: Path) -> None:
    ground = MaskedGround(tmp_path)
    ground.simulate(200, days=3)
    ground.piper_json("ingest")
    before = events_of(ground)
    assert ground.piper_json("backfill", "--all")["dates"] == {}
    damage(ground)
    assert events_of(ground) != before
    ground.piper_json("backfill", "--all")
    assert events_of(ground) == before
    everyone = "SELECT bool_and(host_user LIKE 'user-%' AND split_part(source_file, '/', 2) LIKE 'user-%')"
    assert ground.query(f"{everyone} FROM silver_events") == [(True,)]
