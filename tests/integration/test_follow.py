"""`piper tail`: every committed event once and in commit order, whatever is sealed or compacted meanwhile."""

from __future__ import annotations

import json
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import duckdb
import pytest
from tests.support.commands import SECONDS, Place, running, until

from piper.ops.control import ask
from piper.ops.feed import Feed, Wanted
from piper.silver.rewrite import Rewrite, partitions
from piper.writer import Writer

EVERYTHING = Wanted()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def write(place: Place, name: str, *numbers: int, event_type: str = "file.open", **fields: Any) -> None:
    """Append one event a number to a file of ws1/mia; its id is the number."""
    folder = place.raw / "ws1" / "mia"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("ab") as stream:
        for number in numbers:
            record = {
                "event_id": f"{number:05}", "event_type": event_type, "status": "success", "action_id": "a",
                "hostname": "ws1", "host_user": "mia", "occurred_at": f"2026-02-{1 + number % 28:02}T00:00:00Z",
                "payload": {"n": number}, **fields,
            }  # fmt: skip
            stream.write(json.dumps(record).encode() + b"\n")


def take_in(writer: Writer) -> None:
    writer.scan()
    while writer.ingest() is not None:
        pass


def ids(events: Any) -> list[str]:
    return [event["event_id"] for event in events]


# ---- the feed, look by look ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_each_event_comes_once_and_in_commit_order_whatever_happens_between_two_looks(place: Place, seed: int) -> None:
    chance = random.Random(seed)
    given: list[dict[str, Any]] = []
    with place.writer() as writer, closing(Feed(place.layout, EVERYTHING)) as feed:
        assert feed.last(10) == []
        number = 0
        for _ in range(60):
            match chance.choice(("write", "write", "seal", "publish", "publish", "look")):
                case "write":
                    fresh = range(number, number := number + chance.randint(1, 4))
                    write(place, f"{chance.randint(0, 3)}.jsonl", *fresh)
                    take_in(writer)
                case "seal":
                    writer.seal()
                case "publish":
                    writer.publish()
                case "look":
                    given += feed.news()
        writer.publish()
        given += feed.news()
        assert list(feed.news()) == []
    assert sorted(ids(given)) == [f"{n:05}" for n in range(number)]
    assert [event["commit_seq"] for event in given] == sorted(event["commit_seq"] for event in given)


def compact(writer: Writer) -> None:
    """Rewrite every partition into one chunk, as compaction does."""
    rewrite = Rewrite.begin(writer.store, writer.store.con)
    for partition in partitions(writer.store.con):
        rewrite.replace(writer.store.con, partition)
    rewrite.commit(now=writer.clock.now())


def test_what_was_sealed_and_compacted_between_two_looks_still_comes_once(place: Place) -> None:
    with place.writer() as writer, closing(Feed(place.layout, EVERYTHING)) as feed:
        feed.last(0)
        for number in range(4):
            write(place, "a.jsonl", number, number + 28)  # two of one date
            take_in(writer)
            writer.seal()
        compact(writer)
        writer.publish()
        assert ids(feed.news()) == ["00000", "00028", "00001", "00029", "00002", "00030", "00003", "00031"]
        write(place, "a.jsonl", 50)
        take_in(writer)
        compact(writer)
        writer.publish()
        assert ids(feed.news()) == ["00050"]
        with closing(Feed(place.layout, EVERYTHING)) as later:
            assert ids(later.last(4)) == ["00030", "00003", "00031", "00050"]
            assert len(later.last(99)) == 9


def test_the_last_events_are_found_in_the_tail_and_in_older_chunks(place: Place) -> None:
    with place.writer() as writer:
        for number in range(12):
            write(place, "a.jsonl", number, status="error" if number % 4 == 0 else "success")
            take_in(writer)
            if number < 9:
                writer.seal()
        writer.publish()
    for wanted, count, expected in [
        (EVERYTHING, 2, [10, 11]),
        (EVERYTHING, 5, [7, 8, 9, 10, 11]),
        (EVERYTHING, 0, []),
        (EVERYTHING, 99, list(range(12))),
        (Wanted(only_errors=True), 2, [4, 8]),
        (Wanted(types=("file.*",), hosts=("ws1",)), 1, [11]),
        (Wanted(types=("publish.*", "file.open")), 1, [11]),
        (Wanted(users=("noa",)), 5, []),
    ]:
        with closing(Feed(place.layout, wanted)) as feed:
            assert ids(feed.last(count)) == [f"{number:05}" for number in expected]
            assert list(feed.news()) == []


def test_a_look_that_fails_loses_nothing(place: Place) -> None:
    with place.writer() as writer, closing(Feed(place.layout, EVERYTHING)) as feed:
        feed.last(0)
        write(place, "a.jsonl", 1)
        take_in(writer)
        writer.seal()
        write(place, "a.jsonl", 2)
        take_in(writer)
        writer.publish()
        (chunk,) = (place.layout.silver / "events").glob("event_date=2026*/*/*.parquet")
        away = chunk.rename(chunk.with_name("away"))
        chunk.write_bytes(b"")
        with pytest.raises(duckdb.Error):
            list(feed.news())
        away.rename(chunk)
        assert ids(feed.news()) == ["00001", "00002"]


# ---- the command -----------------------------------------------------------------------------------------------------


class Follower:
    """A `piper tail` process whose lines can be waited for."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._queue: SimpleQueue[str] = SimpleQueue()
        Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line)

    def wait_for(self, count: int) -> list[str]:
        while len(self.lines) < count:
            self.lines.append(self._queue.get(timeout=SECONDS))
        return self.lines

    def end(self) -> int:
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(SECONDS)


def accepted(place: Place) -> int:
    return int(ask(place.layout.control_socket, "status")["events"]["accepted"])


@contextmanager
def following(place: Place, *arguments: str) -> Iterator[Follower]:
    with running(place.command("tail", *arguments), place.env) as process:
        yield Follower(process)


def test_a_follower_sees_every_event_once_although_it_sleeps_through_seals(place: Place) -> None:
    place = Place(place.root, {"PIPER_INGEST__SEAL_EVENTS_MAX": "200", "PIPER_PUBLISH__SECONDS": "0.1"})
    write(place, "first.jsonl", 0)
    with place.piperd():
        until(lambda: accepted(place) == 1)
        with following(place, "-n", "1", "--json") as follower:
            follower.wait_for(1)
            total = 1
            for signal_number in (signal.SIGCONT, signal.SIGSTOP, signal.SIGCONT):
                follower.process.send_signal(signal_number)
                for part in range(5):
                    write(place, f"{total}-{part}.jsonl", *range(total, total + 100))
                    total += 100
                    until(lambda wanted=total: accepted(place) == wanted)  # type: ignore[misc]
            events = [json.loads(line) for line in follower.wait_for(total)]
            assert follower.end() == 0
            assert follower.process.stderr is not None
            assert follower.process.stderr.read() == ""
        assert place.json("status")["chunks"]["files"] > 3
    assert sorted(ids(events)) == [f"{n:05}" for n in range(total)]
    committed = [event["ingested_at_utc"] for event in events]
    assert committed == sorted(committed)
    assert events[7]["payload"] == {"n": int(events[7]["event_id"])}


def test_people_get_a_line_an_event_and_nothing_that_steers_their_terminal(place: Place) -> None:
    error = {"status": "error", "error_code": "E1", "error_message": "no \x1b[2J room\nat all", "payload": {}}
    write(place, "a.jsonl", 1, event_type="publish.usd", scope={"show": "lunch", "shot": "A_010"}, **error)
    place.json("ingest")
    with following(place) as follower:
        (line,) = follower.wait_for(1)
        assert follower.end() == 0
    assert line.startswith("2026-02-02 00:00:00  error    publish.usd")
    assert "mia@ws1  lunch/A_010  E1: no ·[2J room·at all" in line


def test_without_a_warehouse_there_is_nothing_to_follow(place: Place) -> None:
    done = place.piper("tail")
    assert (done.returncode, done.stdout) == (1, "")
    assert "piper init" in done.stderr


def test_a_reader_that_goes_away_ends_it_quietly(place: Place) -> None:
    write(place, "a.jsonl", *range(30))
    place.json("ingest")
    command = f"{' '.join(place.command('tail', '-n', '30'))} | head -n 2"
    done = subprocess.run(["sh", "-c", command], env=place.env, capture_output=True, text=True, check=False)
    assert (len(done.stdout.splitlines()), done.stderr) == (2, "")
