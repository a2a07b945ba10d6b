"""What doctor finds: on real warehouses in real processes, and what each threshold means."""

from __future__ import annotations

import json
import os
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from tests.support.commands import Place, listening

from piper import __version__
from piper.ops.checks import data, standing
from piper.ops.doctor import EXIT_CODES, Check, Level, examine, worst
from piper.ops.facts import HostSeen, Warehouse, network_file_system, storage_versions
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

        async def verify(args: dict[str, Any], progress: object) -> dict[str, Any]:
            return {"chunks": 12, "broken": 0, "examples": [], "unfinished_repair": False}

        with listening(writer.store.layout.control_socket, {"status": handler, "verify": verify}):
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


def test_a_damaged_chunk_is_a_failure_until_it_is_put_back(place: Place) -> None:
    place.simulate(50)
    place.json("ingest")
    chunk = next(path for path in sorted(place.layout.silver.glob("events/*/*/*.parquet")) if "-empty" not in path.name)
    content = chunk.read_bytes()
    chunk.write_bytes(content[:-8] + b"12345678")
    checks, code = examined(place)
    assert code == 2
    assert checks["catalog"]["status"] == "FAIL"
    assert "piper repair" in checks["catalog"]["hint"]
    chunk.write_bytes(content)
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


# ---- hosts, fields, disks, versions, permissions ---------------------------------------------------------------------


def feed(place: Place, *events: bytes) -> None:
    folder = place.raw / "ws1" / "mia"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "a.jsonl").open("ab") as stream:
        stream.writelines(events)
    place.json("ingest")


def opened(event_id: str, days_ago: float, host: str = "ws1", **payload: Any) -> bytes:
    """An event of a known type, whole as the registry wants it."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 86_400 * days_ago))
    fields = {"entity_type": "shot", "entity_code": "A_010", "path": "/x.ma", "versioned": True}
    record = {
        "event_id": event_id, "event_type": "file.open", "status": "success", "action_id": "a", "hostname": host,
        "host_user": "mia", "occurred_at": at, "payload": fields | payload,
    }  # fmt: skip
    return json.dumps(record).encode() + b"\n"


def check_of(place: Place, name: str) -> Check:
    return {check.name: check for check in examine(place.settings)}[name]


def test_fields_that_a_release_added_are_named_with_their_hosts(place: Place) -> None:
    before = [opened(f"old{n}", 9 + n % 3) for n in range(30)]
    feed(place, *before, *(opened(f"new{n}", n % 3) for n in range(5)))
    assert check_of(place, "new_fields").level is Level.PASS
    feed(place, *(opened(f"newer{n}", 0.01, f"ws{n}", colour_space="acescg") for n in range(3)))
    check = check_of(place, "new_fields")
    assert check.level is Level.WARN
    assert "file.open payload.colour_space (3 hosts)" in check.value


def test_a_type_that_is_new_itself_has_no_new_fields(place: Place) -> None:
    feed(place, *(opened(f"e{n}", 0.5) for n in range(50)))
    assert check_of(place, "new_fields").level is Level.PASS


def test_violations_and_clocks_are_told_by_type_and_host(place: Place) -> None:
    ahead = opened("e1", -0.02, "ws7")
    broken = event("e2", "shot.setup", time.time() - 60)
    feed(place, ahead, broken, opened("e3", 0.1))
    checks, _ = examined(place)
    assert "shot.setup: payload.entity_type 1" in checks["contract"]["value"]
    assert "ws7 29 min" in checks["clock_skew"]["value"]
    assert checks["clock_skew"]["status"] == "WARN"


def test_doctor_opens_no_partition_older_than_two_weeks(place: Place) -> None:
    feed(place, *(opened(f"e{days}", days) for days in (0.01, 3, 40, 80)))
    long_ago = (datetime.now(UTC) - timedelta(days=20)).date().isoformat()
    spoilt = 0
    for chunk in (place.layout.silver / "events").glob("*/event_type=file.open/*.parquet"):
        if chunk.parts[-3].removeprefix("event_date=") < long_ago:
            chunk.write_bytes(b"x" * chunk.stat().st_size)  # nobody looks inside for a size that is right
            spoilt += 1
    checks, _ = examined(place)
    assert spoilt == 2
    assert levels(checks, "FAIL") == set()


def host(name: str, days: int, span_days: int, silent: timedelta) -> HostSeen:
    return HostSeen(name, days, span_days, NOW - silent)


@pytest.mark.parametrize(
    ("hosts", "level", "named"),
    [
        ([host("farm", 14, 14, timedelta(hours=20))], Level.PASS, ""),
        ([host("farm", 12, 12, timedelta(hours=30))], Level.WARN, "farm for 30.0 h"),
        ([host("ws1", 8, 11, timedelta(days=2.5))], Level.PASS, ""),
        ([host("ws1", 8, 9, timedelta(days=5))], Level.PASS, "ws1 for 5 days"),
        ([host("visitor", 2, 3, timedelta(days=9))], Level.PASS, ""),
        ([host(f"ws{n}", 5, 9, timedelta(days=4)) for n in range(3)], Level.WARN, "ws0 for 4 days"),
        (
            [host(f"ws{n}", 5, 9, timedelta(days=4)) for n in range(3)]
            + [host(f"on{n}", 9, 14, timedelta(hours=1)) for n in range(20)],
            Level.PASS,
            "ws0 for 4 days",
        ),
    ],
)
def test_a_silent_server_and_many_silent_workstations_are_alarming(
    hosts: list[HostSeen], level: Level, named: str
) -> None:
    check = data.check_hosts(Warehouse(newest_event=NOW, hosts=hosts))
    assert check.level is level
    assert named in check.value
    assert ("silent" in check.value) == bool(named)


@pytest.mark.parametrize(
    ("free_days", "level"), [(400.0, Level.PASS), (29.0, Level.WARN), (6.0, Level.FAIL), (None, Level.PASS)]
)
def test_the_disk_is_judged_by_when_it_will_be_full(free_days: float | None, level: Level) -> None:
    per_day = None if free_days is None else 1000
    free_bytes = int(1000 * (free_days or 1))
    status = {"disk": {"free_bytes": free_bytes}, "chunks": {"bytes_per_day": per_day}}
    check = standing.check_disk_forecast(status)
    assert check.level is level
    assert bool(check.hint) == (level is not Level.PASS)


def test_growth_is_that_of_whole_days(place: Place) -> None:
    feed(place, *(opened(f"e{days}-{n}", days) for days in (0, 1, 2, 4, 30) for n in range(9)))
    status = place.json("status")
    sizes = {
        path.parts[-3]: path.stat().st_size
        for path in (place.layout.silver / "events").glob("*/event_type=file.open/*.parquet")
    }
    with duckdb.connect(str(place.layout.manifest), read_only=True) as con:
        total = con.execute(
            "SELECT sum(size_bytes) FROM chunks WHERE event_date BETWEEN ? AND ?",
            [datetime.now(UTC).date() - timedelta(days=14), datetime.now(UTC).date() - timedelta(days=1)],
        ).fetchone()
    assert len(sizes) == 5
    assert total is not None
    assert status["chunks"]["bytes_per_day"] == round(total[0] / 4)
    assert sum(status["chunks"]["by_dataset"].values()) == status["chunks"]["files"] > 0


def test_versions_that_do_not_fit_together_are_told(place: Place) -> None:
    status = {"versions": {"piper": __version__, "duckdb": "1.5.6"}, "schema_version": 1}
    assert standing.check_versions(status, {"gold.duckdb": "v1.0.0"}).level is Level.PASS
    newer = standing.check_versions(status, {"telemetry.duckdb": "v2.0.0", "gold.duckdb": "v1.5.0"})
    assert (newer.level, "telemetry.duckdb cannot be read" in newer.value) == (Level.WARN, True)
    other = standing.check_versions({**status, "versions": {"piper": "9.9", "duckdb": "1.5.6"}}, {})
    assert (other.level, "piperd is 9.9" in other.value) == (Level.WARN, True)
    place.json("init")
    assert storage_versions(place.layout) == dict.fromkeys(("telemetry.duckdb", "gold.duckdb"), "v1.0.0")


def test_who_may_read_what_is_checked(place: Place) -> None:
    place.json("init")
    assert check_of(place, "permissions").level is Level.PASS
    for path, mode, word in [
        (place.layout.state, 0o755, "others can open"),
        (place.layout.warehouse, 0o700, "only its owner"),
        (place.layout.tail, 0o600, "only its owner"),
    ]:
        before = path.stat().st_mode
        path.chmod(mode)
        check = check_of(place, "permissions")
        path.chmod(before)
        assert (check.level, word in check.value, str(path) in check.hint) == (Level.WARN, True, True)
    if os.geteuid() == 0:
        os.chown(place.layout.gold, 12345, -1)
        check = check_of(place, "permissions")
        assert "gold.duckdb belongs to user 12345" in check.value
        assert f"chown -R root {place.layout.silver} " in check.hint
        assert f" {place.data} " not in f"{check.hint} ", "the spool may be in it"


def test_so_many_chunks_that_queries_slow_down_are_told() -> None:
    status = {"chunks": {"files": 30_000, "bytes": 1 << 30, "by_dataset": {"events": 20_001, "tool_events": 9_999}}}
    check = standing.check_chunks(status)
    assert (check.level, "most in events: 20,001" in check.value) == (Level.WARN, True)
    status["chunks"]["by_dataset"] = {"events": 20_000}
    assert standing.check_chunks(status).level is Level.PASS
