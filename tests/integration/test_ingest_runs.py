"""`piper ingest` from cron: each run is a new process that knows only what the manifest kept, and each run ends."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from piper.ops.metrics import Metrics
from piper.settings_sources import load_settings
from piper.spool.tail import Tailer
from piper.spool.turn import Span
from piper.writer import Clock, Writer

A, B, C = "host/user/a.jsonl", "host/user/b.jsonl", "host/user/c.jsonl"


class Cron:
    """Runs over one data root, five minutes apart."""

    def __init__(self, directory: Path) -> None:
        self.raw = directory / "raw"
        environment = {
            "PIPER_PATHS__RAW_ROOT": str(self.raw),
            "PIPER_PATHS__DATA_ROOT": str(directory / "data"),
            "PIPER_INGEST__BATCH_BYTES_MAX": "65536",
            "PIPER_INGEST__LINE_BYTES_MAX": "4096",
        }
        self.settings = load_settings(env=environment).settings
        self.now = time.time()

    def append(self, name: str, data: bytes) -> None:
        path = self.raw / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as stream:
            stream.write(data)

    def run(self) -> int:
        """One run; returns how many events it accepted."""
        clock = Clock(monotonic=lambda: self.now, utc=lambda: self.now)
        writer = Writer.open(self.settings, Metrics(), command="piper ingest", clock=clock)
        try:
            writer.scan()
            for _ in range(1000):
                if writer.ingest() is None:
                    break
            else:
                raise AssertionError("a run without end")
            assert not writer.tailer.ready, "a run that ended before everything was read"
            self.events = {row[0] for row in writer.store.con.execute("SELECT event_id FROM events_tail").fetchall()}
            self.rejected = writer.store.con.execute(
                "SELECT reason, source_file, source_offset, raw_bytes FROM rejections ORDER BY ALL"
            ).fetchall()
            self.sources = writer.store.con.execute(
                "SELECT source_file, vanished FROM sources ORDER BY source_file"
            ).fetchall()
            self.commits, self.duplicates = writer.totals.commits, writer.totals.duplicates
            self.known = sum(row[0] for row in writer.store.con.execute("SELECT accepted FROM progress").fetchall())
            return writer.totals.accepted
        finally:
            writer.close()
            self.now += 300


@pytest.fixture
def cron(tmp_path: Path) -> Cron:
    return Cron(tmp_path)


def events(*names: str) -> bytes:
    event = {
        "event_type": "tool.open", "status": "success", "occurred_at": "2026-09-01T10:00:00Z", "action_id": "s",
        "hostname": "host", "host_user": "user", "payload": {},
    }  # fmt: skip
    return b"".join(json.dumps({"event_id": name} | event).encode() + b"\n" for name in names)


def test_a_truncation_is_believed_after_some_runs_and_not_before(cron: Cron) -> None:
    cron.append(A, events("a1", "a2", "a3", "a4") + b'{"cut')
    cron.append(B, events("b1", "b2", "b3", "b4"))
    assert cron.run() == 8
    (cron.raw / A).write_bytes(events("a1", "a5"))
    (cron.raw / B).write_bytes(events("x1", "x2", "x3", "x4", "x5", "x6"))
    assert [cron.run(), cron.run()] == [0, 0]
    assert cron.run() == 7
    assert cron.events == {"a1", "a2", "a3", "a4", "a5", "b1", "b2", "b3", "b4", "x1", "x2", "x3", "x4", "x5", "x6"}
    assert [row[0] for row in cron.rejected] == ["truncated_line"]
    assert [cron.run(), cron.run()] == [0, 0]


def test_a_half_read_file_is_renamed_and_replaced_between_two_runs(cron: Cron) -> None:
    cron.append(A, events("1", "2") + events("3")[:50])
    assert cron.run() == 2
    (cron.raw / A).rename(cron.raw / B)
    cron.append(A, events("9"))
    cron.append(B, events("3")[50:] + events("4"))
    assert cron.run() == 3
    assert cron.rejected == []


def test_the_cut_line_of_a_file_that_is_deleted_between_two_runs_is_quarantined_once(cron: Cron) -> None:
    cron.append(A, b'{"only a cut line')
    cron.append(B, events("1") + b'{"cut')
    cron.append(C, events("2"))
    assert cron.run() == 2
    (cron.raw / A).unlink()
    (cron.raw / B).unlink()
    for _ in range(5):
        assert cron.run() == 0
    assert cron.rejected == [("truncated_line", A, 0, 17), ("truncated_line", B, len(events("1")), 5)]


def test_holes_and_endless_lines_are_passed_by_runs_whose_batches_are_small(cron: Cron) -> None:
    cron.append(A, b"")
    os.truncate(cron.raw / A, 100 << 20)
    cron.append(A, events("1"))
    cron.append(B, b"x" * (30 << 20) + b"\n" + events("2"))
    accepted = [cron.run() for _ in range(4)]
    assert accepted == [1, 0, 1, 0]
    assert cron.events == {"1", "2"}
    assert cron.rejected == [("line_too_long", B, 0, 30 << 20)]


def test_a_spool_that_is_away_for_some_runs_costs_nothing(cron: Cron) -> None:
    cron.append(A, events("1"))
    assert cron.run() == 1
    cron.raw.rename(cron.raw.with_name("away"))
    assert cron.run() == 0
    cron.raw.mkdir()
    assert cron.run() == 0
    cron.raw.rmdir()
    cron.raw.with_name("away").rename(cron.raw)
    cron.append(A, events("2"))
    assert cron.run() == 1
    assert cron.rejected == []


def test_a_file_that_vanished_long_ago_leaves_the_manifest(cron: Cron) -> None:
    cron.append(A, events("1"))
    cron.append(B, events("2"))
    cron.run()
    (cron.raw / A).unlink()
    for _ in range(4):
        cron.run()
    assert cron.sources == [(A, True), (B, False)]
    cron.now -= 40 * 86400  # what is written now is old for the manifest, which looks at the real clock
    (cron.raw / B).unlink()
    cron.append(C, events("3"))
    for _ in range(4):
        cron.run()
    assert cron.sources == [(A, True), (C, False)]


def test_a_backlog_of_many_batches_comes_once_with_its_repeated_and_broken_lines(cron: Cron) -> None:
    """Files go through several batches; a repeated id is in another one than the first."""
    filler = b'"' + b"x" * 3500 + b'"'
    lines = events(*(f"{number}" for number in range(6000)), *(f"{number}" for number in range(0, 6000, 7)))
    padded = lines.replace(b'"payload": {}', b'"payload": {"note": ' + filler + b"}")
    cron.append(A, padded + b"{broken}\n")
    cron.append(B, b"{broken}\n" + padded)
    cron.append(C, b'{"cut')
    assert cron.run() == 6000
    assert cron.commits > 10
    assert cron.duplicates == 6000 + 2 * len(range(0, 6000, 7))
    assert [row[1:3] for row in cron.rejected] == [(A, len(padded)), (B, 0)]
    assert cron.run() == 0
    cron.append(C, b" line}\n")
    assert cron.run() == 0
    assert len(cron.rejected) == 3


def test_an_error_while_a_batch_is_read_leaves_the_ones_before_it_committed(
    cron: Cron, monkeypatch: pytest.MonkeyPatch
) -> None:
    filler = b'"' + b"x" * 3500 + b'"'
    for name, first in ((A, 0), (B, 2000)):
        lines = events(*(f"{number}" for number in range(first, first + 2000)))
        cron.append(name, lines.replace(b'"payload": {}', b'"payload": {"note": ' + filler + b"}"))
    calls = iter(range(1000))
    read = Tailer.read

    def fail_once(*arguments: Any, **options: Any) -> list[Span]:
        if next(calls) == 2:
            raise OSError(errno.EIO, "the spool is gone")
        return read(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Tailer, "read", fail_once)
        with pytest.raises(OSError, match="the spool is gone"):
            cron.run()
    assert 0 < cron.run() < 4000
    assert cron.known == 4000
