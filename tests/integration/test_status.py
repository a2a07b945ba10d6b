"""`piper status`: hosts, files behind, rates and problems, once or watched, with and without a daemon."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.support.commands import SECONDS, Place, listening, running, until

from piper.errors import PiperError
from piper.ops.backlog import Unread, by_host, total
from piper.ops.control import ask
from piper.ops.jobs import Jobs
from piper.ops.pace import WINDOW_SECONDS, Pace
from piper.ops.status import collect_status
from piper.ops.status_screen import ago
from piper.writer import Writer


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def write(place: Place, host: str, count: int, *, seconds_ago: float, name: str = "a") -> Path:
    """Append events of one host that happened so long ago."""
    folder = place.raw / host / "mia"
    folder.mkdir(parents=True, exist_ok=True)
    at = datetime.fromtimestamp(time.time() - seconds_ago, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    path = folder / f"{name}.jsonl"
    with path.open("a") as stream:
        for number in range(count):
            record = {
                "event_id": f"{host}-{name}-{number}-{time.time_ns()}", "event_type": "file.open", "status": "success",
                "action_id": "a", "hostname": host, "host_user": "mia", "occurred_at": at, "payload": {},
            }  # fmt: skip
            stream.write(json.dumps(record) + "\n")
    return path


def hosts_of(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["host"]: row for row in status["hosts"]}


def test_hosts_and_files_that_wait_are_told_without_a_daemon(place: Place) -> None:
    write(place, "ws1", 5, seconds_ago=60)
    write(place, "ws2", 5, seconds_ago=7200)
    place.json("ingest")
    late = write(place, "ws3", 40, seconds_ago=1)
    write(place, "ws1", 2, seconds_ago=1, name="b")
    day_ago = time.time() - 90_000
    os.utime(late, (day_ago, day_ago))
    status = place.json("status")
    hosts = hosts_of(status)
    assert status["hosts"][0]["host"] == "ws3"
    assert hosts["ws3"]["unread_files"] == 1
    assert hosts["ws3"]["last_event_utc"] is None
    assert hosts["ws1"]["unread_files"] == 1
    assert hosts["ws1"]["events_last_hour"] == hosts["ws2"]["events_last_hour"] == 5
    assert 60 <= hosts["ws1"]["lag_seconds"] < 7200 <= hosts["ws2"]["lag_seconds"]
    assert [file["source_file"] for file in status["spool"]["behind"]] == ["ws3/mia/a.jsonl", "ws1/mia/b.jsonl"]
    assert status["spool"]["unread_bytes"] == sum(row["unread_bytes"] for row in status["hosts"])
    assert status["rates"] is None
    problems = {row["name"]: row for row in status["open_problems"]}
    assert problems["backlog"]["status"] == "WARN"
    screen = place.piper("status").stdout
    assert "backlog: " in screen
    assert "ws3/mia/a.jsonl" in screen
    assert len(screen.splitlines()) <= 24


def test_while_a_daemon_runs_rates_and_lag_are_of_now(place: Place) -> None:
    write(place, "ws1", 10, seconds_ago=1)
    with place.piperd():
        until(lambda: hosts_of(place.json("status")).get("ws1", {}).get("events_last_hour") == 10)
        status = place.json("status")
        screen = place.piper("status").stdout
    assert status["rates"]["events_per_second"] > 0
    assert status["rates"]["seconds"] <= WINDOW_SECONDS
    assert status["versions"]["piper"] == status["version"]
    assert status["last_publish_utc"] >= status["commits"]["last_commit_utc"]
    assert "events/s" in screen


def test_a_host_that_the_daemon_is_behind_with_is_named(place: Place) -> None:
    write(place, "ws1", 3, seconds_ago=1)
    with place.writer() as writer:
        writer.scan()

        async def handler(args: dict[str, Any], progress: object) -> dict[str, Any]:
            return {"state": "running", "pid": 1, "uptime_seconds": 1.0, "problems": [], **collect_status(writer)}

        with listening(writer.store.layout.control_socket, {"status": handler}):
            status = place.json("status")
    (row,) = status["hosts"]
    assert (row["host"], row["unread_files"]) == ("ws1", 1)
    assert status["spool"]["behind"][0]["unread_bytes"] == row["unread_bytes"] > 0


# ---- watching --------------------------------------------------------------------------------------------------------


def test_watching_as_json_gives_an_object_a_line_and_outlives_a_look_that_fails(place: Place) -> None:
    write(place, "ws1", 3, seconds_ago=1)
    place.json("ingest")
    away = place.root / "away"
    with running(place.command("status", "--watch", "0.1", "--json"), place.env) as process:
        assert process.stdout is not None
        states = [json.loads(process.stdout.readline())["state"]]
        place.data.rename(away)
        until(lambda: "error" in json.loads(process.stdout.readline()))  # type: ignore[union-attr]
        away.rename(place.data)
        until(lambda: "state" in json.loads(process.stdout.readline()))  # type: ignore[union-attr]
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=SECONDS)
    assert states == ["stopped"]
    assert (process.returncode, err) == (0, "")
    assert all(json.loads(line) for line in rest.splitlines())


def test_watching_without_a_terminal_repeats_the_screen_with_its_time(place: Place) -> None:
    place.json("init")
    with running(place.command("status", "--watch", "0.1"), place.env) as process:
        assert process.stdout is not None
        seen: list[str] = []
        while sum(line.startswith("piperd is not running") for line in seen) < 3:
            seen.append(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=SECONDS)[1] == ""
    assert process.returncode == 0
    assert datetime.fromisoformat(seen[0].strip()).tzinfo is not None
    assert not any("\x1b" in line for line in seen)


def test_watching_on_a_terminal_draws_in_place(place: Place) -> None:
    place.json("init")
    terminal, theirs = pty.openpty()
    env = {**place.env, "TERM": "xterm"}
    with subprocess.Popen(place.command("status", "--watch", "0.1"), env=env, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = ""
        deadline = time.monotonic() + SECONDS
        while shown.count("piperd is not running") < 3 and time.monotonic() < deadline:
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 1 << 16).decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
    os.close(terminal)
    assert "\x1b[1A" in shown


def test_seconds_without_watch_are_a_usage_error(place: Place) -> None:
    for arguments in (["5"], ["--watch", "0"]):
        done = place.piper("status", *arguments)
        assert done.returncode == 2
        assert "--watch" in done.stderr


# ---- what it is made of ----------------------------------------------------------------------------------------------


def test_what_waits_is_summed_in_all_and_by_host_and_the_largest_files_are_named() -> None:
    files = [Unread(f"ws{number % 3}/mia/{number:02}.jsonl", 10 * number, float(number)) for number in range(1, 21)]
    sums = total(files)
    assert (sums["unread_files"], sums["unread_bytes"], sums["oldest_unread_seconds"]) == (20, 2100, 20.0)
    assert [file["unread_bytes"] for file in sums["behind"]] == list(range(200, 100, -10))
    hosts = by_host(files)
    assert set(hosts) == {"ws0", "ws1", "ws2"}
    assert sum(host["unread_bytes"] for host in hosts.values()) == 2100
    assert hosts["ws1"]["oldest_unread_seconds"] == 19.0
    assert total([])["behind"] == []


def test_the_pace_is_of_the_last_minute_and_of_less_after_a_start() -> None:
    now = [100.0]
    pace = Pace(lambda: now[0])
    now[0] += 10
    pace.add(50, 1000)
    assert pace.rates() == {"seconds": 10.0, "events_per_second": 5.0, "bytes_per_second": 100.0}
    now[0] += WINDOW_SECONDS - 1
    pace.add(10, 20)
    assert pace.rates() == {"seconds": 60.0, "events_per_second": 1.0, "bytes_per_second": 17.0}
    now[0] += 2
    assert pace.rates()["events_per_second"] == round(10 / 60, 2)


def test_times_are_words_and_a_clock_that_is_ahead_is_told() -> None:
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert ago(None, now) == "never"
    assert ago("2026-03-01T11:59:30Z", now) == "30.0 s ago"
    assert ago("2026-03-01T12:00:01Z", now) == "0.0 s ago"
    assert ago("2026-03-01T12:10:00Z", now) == "10 min ahead"


def test_a_job_that_was_refused_is_not_done_later(place: Place) -> None:
    done: list[Writer] = []
    jobs = Jobs(lambda: None, lambda: PiperError("not now"))
    with pytest.raises(PiperError, match="not now"):
        anyio.run(jobs.do, done.append)
    with place.writer() as writer:
        jobs.run_all(writer)
    assert done == []


def test_the_daemon_tells_its_unread_files_by_host(place: Place) -> None:
    write(place, "ws1", 3, seconds_ago=1)
    with place.piperd():
        until(lambda: ask(place.layout.control_socket, "status")["events"]["accepted"] == 3)
        status = ask(place.layout.control_socket, "status")
    assert status["hosts"] == {}
    assert status["spool"]["behind"] == []
