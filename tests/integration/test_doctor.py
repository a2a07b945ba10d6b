"""What doctor finds: on real warehouses in real processes, and what each threshold means."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import Place, listening

from piper.ops.checks import data, standing
from piper.ops.doctor import EXIT_CODES, Check, Level, examine, worst
from piper.ops.facts import Warehouse, network_file_system
from piper.ops.status import collect_status
from piper.writer import Clock

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"
NOW = datetime(2026, 3, 20, 12)  # noqa: DTZ001 - naive UTC, as DuckDB gives it
GROUND = {"disk", "state"}
"""Checks whose answer depends on the machine that runs the tests."""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def examined(place: Place) -> tuple[dict[str, dict[str, str]], int]:
    done = place.piper("doctor", "--json")
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    checks = {check["name"]: check for check in report["checks"]}
    assert all(check["value"] for check in checks.values())
    assert all(bool(check["hint"]) == (check["status"] != "PASS") for check in checks.values())
    levels = [Level(check["status"]) for check in checks.values()]
    assert report["status"] == max(levels, key=EXIT_CODES.__getitem__)
    assert done.returncode == EXIT_CODES[Level(report["status"])]
    return checks, done.returncode


def levels(checks: dict[str, dict[str, str]], level: str) -> set[str]:
    return {name for name, check in checks.items() if check["status"] == level and name not in GROUND}


def event(event_id: str, event_type: str, at: float) -> bytes:
    record = {
        "event_id": event_id, "event_type": event_type, "status": "success", "action_id": "a", "hostname": "ws1",
        "host_user": "mia", "occurred_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at)), "payload": {},
    }  # fmt: skip
    return json.dumps(record).encode() + b"\n"


def test_an_empty_warehouse_has_no_data_yet_and_nothing_else_to_worry_about(place: Place) -> None:
    place.raw.mkdir()
    (place.raw / "ws1").mkdir()
    place.json("init")
    checks, code = examined(place)
    assert checks["freshness"]["value"] == "no data yet"
    assert levels(checks, "WARN") == {"freshness"}
    assert levels(checks, "FAIL") == set()
    assert code >= 1


def test_a_warehouse_that_was_just_fed_is_well(place: Place) -> None:
    place.simulate(2000, malformed_ratio=0.001)
    place.json("ingest")
    checks, _ = examined(place)
    assert levels(checks, "PASS") == set(checks) - GROUND
    assert "last commit of events" in checks["freshness"]["value"]
    screen = place.piper("doctor").stdout
    assert screen.splitlines()[-1].startswith(("PASS", "WARN"))
    assert all(name in screen for name in checks)


def test_doctor_without_a_warehouse_or_a_spool_fails_and_makes_nothing(place: Place) -> None:
    checks, code = examined(place)
    assert code == 2
    assert levels(checks, "FAIL") == {"spool", "data_root", "writer"}
    assert not place.data.exists()


def test_doctor_works_while_a_daemon_writes(place: Place) -> None:
    place.simulate(500, malformed_ratio=0.0)
    with place.writer() as writer:
        writer.scan()
        writer.ingest()
        writer.publish()
        writer.refresh_gold(writer.store.cursor())

        async def handler(args: dict[str, Any], progress: object) -> dict[str, Any]:
            return {"state": "running", "pid": 4711, "uptime_seconds": 60.0, "problems": [], **collect_status(writer)}

        with listening(writer.store.layout.control_socket, {"status": handler}):
            checks, _ = examined(place)
        silent, _ = examined(place)
    assert levels(checks, "PASS") == set(checks) - GROUND
    assert "PID 4711" in checks["writer"]["value"]
    assert "500" in checks["lag"]["value"]
    assert "`piperd`" in silent["writer"]["value"]
    assert "backlog" not in silent


def test_doctor_names_unknown_types_and_broken_writers(place: Place) -> None:
    folder = place.raw / "ws1" / "mia"
    folder.mkdir(parents=True)
    now = time.time()
    lines = [event(f"e{n}", "brand.new.thing", now - 60) for n in range(10)] + [b"{broken\n"] * 5
    (folder / "a.jsonl").write_bytes(b"".join(lines))
    place.json("ingest")
    checks, code = examined(place)
    assert code == 2
    assert checks["unknown_types"]["status"] == "WARN"
    assert "10 events" in checks["unknown_types"]["value"]
    assert "brand.new.thing" in checks["unknown_types"]["value"]
    assert checks["invalid_rate"]["status"] == "FAIL"
    assert "5 of 15 lines" in checks["invalid_rate"]["value"]
    assert "invalid_json 5" in checks["quarantine"]["value"]


def test_gold_that_fell_behind_silver_is_told(place: Place) -> None:
    place.simulate(300)
    earlier = Clock(utc=lambda: time.time() - 900)
    with place.writer(clock=earlier) as writer:
        writer.scan()
        writer.ingest()
        writer.publish()
    found = {check.name: check for check in examine(place.settings)}
    assert found["gold"].level is Level.WARN
    assert "300 events behind" in found["gold"].value
    place.json("materialize")
    assert {check.name: check for check in examine(place.settings)}["gold"].level is Level.PASS


def test_a_view_that_does_not_answer_is_a_failure_with_a_way_out(place: Place) -> None:
    place.simulate(50)
    place.json("ingest")
    place.layout.gold.unlink()
    checks, code = examined(place)
    assert code == 2
    assert checks["catalog"]["status"] == "FAIL"
    assert "piper materialize" in checks["catalog"]["hint"]
    place.json("materialize")
    assert examined(place)[0]["catalog"]["status"] == "PASS"


def ago(**delta: float) -> datetime:
    return NOW - timedelta(**delta)


@pytest.mark.parametrize(
    ("check", "level"),
    [
        (data.check_freshness(Warehouse(newest_event=ago(minutes=59)), NOW), Level.PASS),
        (data.check_freshness(Warehouse(newest_event=ago(minutes=61)), NOW), Level.WARN),
        (data.check_freshness(Warehouse(newest_event=ago(hours=25)), NOW), Level.FAIL),
        (data.check_freshness(Warehouse(newest_event=ago(minutes=-30)), NOW), Level.PASS),
        (data.check_volume(Warehouse(events_today=900, earlier_days=[1000, 1000])), Level.PASS),
        (data.check_volume(Warehouse(events_today=50, earlier_days=[1000, 1000])), Level.WARN),
        (data.check_volume(Warehouse(events_today=20_000, earlier_days=[1000, 1000])), Level.WARN),
        (data.check_volume(Warehouse(events_today=1, earlier_days=[100, 100])), Level.PASS),
        (data.check_volume(Warehouse(events_today=5000)), Level.PASS),
        (data.check_invalid_rate(Warehouse(ingested=995, quarantined=5)), Level.PASS),
        (data.check_invalid_rate(Warehouse(ingested=980, quarantined=20)), Level.WARN),
        (data.check_invalid_rate(Warehouse(ingested=0, quarantined=20)), Level.FAIL),
        (data.check_clock_skew(Warehouse(clock_skew_seconds=3)), Level.PASS),
        (data.check_clock_skew(Warehouse(clock_skew_seconds=90)), Level.WARN),
        (data.check_clock_skew(Warehouse(clock_skew_seconds=2000)), Level.FAIL),
        (data.check_lag(Warehouse(lag_events=9, lag_p95_seconds=2.0), daemon_runs=True), Level.PASS),
        (data.check_lag(Warehouse(lag_events=9, lag_p95_seconds=90.0), daemon_runs=True), Level.WARN),
        (data.check_lag(Warehouse(lag_events=9, lag_p95_seconds=90.0), daemon_runs=False), Level.PASS),
        (data.check_contract(Warehouse(events=1000, contract_violations=9)), Level.PASS),
        (data.check_contract(Warehouse(events=1000, contract_violations=11)), Level.WARN),
    ],
)
def test_each_threshold_separates_normal_from_alarming(check: Check, level: Level) -> None:
    assert check.level is level
    assert bool(check.hint) == (level is not Level.PASS)


@pytest.mark.parametrize(
    ("state", "age", "level"),
    [
        ("running", 5.0, Level.PASS),
        ("running", 61.0, Level.WARN),
        ("degraded", 901.0, Level.FAIL),
        ("stopped", 3600.0, Level.PASS),
        ("stopped", 2 * 86_400.0, Level.WARN),
        ("stopped", 6 * 86_400.0, Level.FAIL),
    ],
)
def test_unread_lines_alarm_sooner_while_a_daemon_runs(state: str, age: float, level: Level) -> None:
    spool = {"reachable": True, "error": "", "unread_bytes": 10, "unread_files": 1, "oldest_unread_seconds": age}
    assert standing.check_backlog({"state": state, "spool": spool}).level is level


def test_bytes_that_went_away_unread_are_told() -> None:
    status: dict[str, Any] = {"files": {"vanished": 3}, "spool": {"lost_bytes": 2048}}
    check = standing.check_lost(status)
    assert (check.level, "2.0 KiB" in check.value) == (Level.WARN, True)
    status["spool"]["lost_bytes"] = None
    assert standing.check_lost(status).level is Level.PASS


def test_the_worst_check_is_the_exit_code() -> None:
    checks = [Check("a", Level.PASS, ""), Check("b", Level.FAIL, ""), Check("c", Level.WARN, "")]
    assert EXIT_CODES[worst(checks)] == 2
    assert EXIT_CODES[worst(checks[:1])] == 0


def test_a_network_file_system_is_known_by_the_longest_mount_point(tmp_path: Path) -> None:
    mounts = "/dev/sda1 / ext4 rw 0 0\nsrv:/x /groups nfs4 rw 0 0\n/dev/sdb /groups/my\\040disk xfs rw 0 0\nshort\n"
    assert network_file_system(Path("/groups/show/state"), mounts) == "nfs4"
    assert network_file_system(Path("/groups/my disk/state"), mounts) == ""
    assert network_file_system(Path("/groupsies"), mounts) == ""
    assert network_file_system(tmp_path, mounts) == ""
    assert network_file_system(Path("/groups"), "a /groups fuse.sshfs rw 0 0\n") == "fuse.sshfs"


def test_every_check_is_documented_and_nothing_else_is(place: Place) -> None:
    place.simulate(20)
    place.json("ingest")
    section = DOCS.read_text("utf-8").split("## `piper doctor`")[1].split("\n## ")[0]
    named = re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE)
    assert named == [check.name for check in examine(place.settings)]
