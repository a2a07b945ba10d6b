"""Nothing silent: each thing that can happen to a spool leaves its trace in a metric and in a row of doctor."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.odd_lines import dump, full_event
from tests.support.spool_run import START, SpoolRun, spool_run

from piper.ops.checks import Check, Level, standing
from piper.ops.status import collect_status
from piper.settings_sources import load_settings

FILE = "ws1/ana/a.jsonl"


def line(event_id: str, *, when: str = "2030-03-04T10:00:00Z") -> bytes:
    return dump({**full_event("file.open", "nested", event_id), "occurred_at_utc": when}).encode() + b"\n"


def path(run: SpoolRun, name: str = FILE) -> Path:
    return run.root / "spool" / name


def looks(run: SpoolRun, seconds: float = 150.0, times: int = 4) -> None:
    """As many looks, over as long a time, as a doubt needs to be believed."""
    for _ in range(times):
        run.seconds += seconds / times
        run.look()


# ---- what happens ----------------------------------------------------------------------------------------------------


def truncated(run: SpoolRun) -> None:
    path(run).write_bytes(line("e1")[:40])
    looks(run)


def refilled(run: SpoolRun) -> None:
    path(run).write_bytes(line("other") * 3)
    looks(run)


def renamed(run: SpoolRun) -> None:
    path(run).rename(path(run, "ws1/ana/b.jsonl"))
    run.look()


def replaced(run: SpoolRun) -> None:
    path(run, "ws1/ana/new").write_bytes(line("e2"))
    path(run, "ws1/ana/new").rename(path(run))
    run.look()


def deleted_unread(run: SpoolRun) -> None:
    with path(run).open("ab") as stream:
        stream.write(b"x" * 500)
    run.look()
    path(run).unlink()
    path(run, "ws1/ana/other.jsonl").write_bytes(line("e2"))
    looks(run, 250.0, 6)


def nul_page(run: SpoolRun) -> None:
    with path(run).open("ab") as stream:
        stream.write(b"\0" * 4096 + line("e2"))
    run.look()


def hole(run: SpoolRun) -> None:
    nul_page(run)
    looks(run)


def special(run: SpoolRun) -> None:
    path(run, "ws1/ana/link.jsonl").symlink_to("/etc/passwd")
    os.mkfifo(path(run, "ws1/ana/pipe.jsonl"))
    path(run, "ws1/ana/directory.jsonl").mkdir()
    path(run, "ws2").symlink_to("/etc")
    run.look()
    run.look()


def leased(run: SpoolRun) -> None:
    """A lease of its owner would have an open wait for most of a minute."""
    fd = os.open(path(run, "ws1/ana/leased.jsonl"), os.O_RDWR | os.O_CREAT)
    os.write(fd, line("e2"))
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    try:
        run.look()
        run.look()
    finally:
        os.close(fd)


def root_gone(run: SpoolRun) -> None:
    (run.root / "spool").rename(run.root / "elsewhere")
    run.look()


def rejected(run: SpoolRun) -> None:
    run.ingest({"ws1/ana/bad.jsonl": b"bad\n" + b"x" * (2 << 20) + b"\n"})


def unknown_type(run: SpoolRun) -> None:
    run.ingest({"ws1/ana/b.jsonl": line("e2").replace(b"file.open", b"some.thing")})


def old(run: SpoolRun) -> None:
    run.ingest({"ws1/ana/b.jsonl": line("e2", when="2027-03-04T10:00:00Z")})


# ---- its trace -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trace:
    """A series with its value, and what the row of doctor says; no row: the views tell (tests of doctor)."""

    series: str
    value: float
    row: str = ""
    says: str = ""
    level: Level = Level.PASS


LOST, SPOOL, QUARANTINE = "lost", "spool_files", "quarantine"
CASES: list[tuple[Callable[[SpoolRun], None], Trace]] = [
    (truncated, Trace("piper_file_events_total{kind=truncated}", 1, SPOOL, "truncated 1")),
    (refilled, Trace("piper_file_events_total{kind=replaced}", 1, SPOOL, "replaced 1")),
    (renamed, Trace("piper_file_events_total{kind=renamed}", 1)),
    (replaced, Trace("piper_file_events_total{kind=replaced}", 1, SPOOL, "replaced 1")),
    (deleted_unread, Trace("piper_file_events_total{kind=vanished}", 1, LOST, "1 files are gone")),
    (deleted_unread, Trace("piper_lines_quarantined_total{reason=truncated_line}", 1, QUARANTINE, "truncated_line 1")),
    (nul_page, Trace("piper_file_events_total{kind=nul_deferred}", 1, SPOOL, "nul_deferred 1")),
    (hole, Trace("piper_lost_bytes_total", 4096, LOST, "4.0 KiB seen and gone unread", Level.WARN)),
    (special, Trace("piper_file_events_total{kind=special}", 4, SPOOL, "4 links, pipes")),
    (special, Trace("piper_files_special", 4, SPOOL, "not followed")),
    (leased, Trace("piper_file_events_total{kind=io_error}", 1, SPOOL, "io_error 1", Level.WARN)),
    (leased, Trace("piper_spool_errors_total{errno=EAGAIN}", 2, SPOOL, "EAGAIN 2", Level.WARN)),
    (leased, Trace("piper_files_unreadable", 1, SPOOL, "cannot be read: ws1/ana/leased.jsonl", Level.WARN)),
    (root_gone, Trace("piper_spool_errors_total{errno=ENOENT}", 1, "backlog", "unknown", Level.WARN)),
    (rejected, Trace("piper_lines_quarantined_total{reason=line_too_long}", 1, QUARANTINE, "line_too_long 1")),
    (unknown_type, Trace("piper_unknown_type_events_total", 1)),
    (old, Trace("piper_old_events_total", 1, SPOOL, "1 events over a year old")),
]


@pytest.fixture(autouse=True)
def _no_sigio() -> Iterator[None]:
    """What the kernel tells the holder of a lease."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGIO, before)


def test_whatever_happens_to_a_spool_has_its_metric_and_its_row_in_doctor(tmp_path: Path) -> None:
    problems: list[str] = []
    for happens in dict.fromkeys(what for what, _ in CASES):
        with spool_run(tmp_path / happens.__name__) as run:
            path(run).parent.mkdir(parents=True)
            path(run).write_bytes(line("e1"))
            os.utime(path(run), (START, START))
            run.look()
            happens(run)
            rows = doctor_rows(run)
            for trace in (trace for what, trace in CASES if what is happens):
                problems += [f"{happens.__name__}: {problem}" for problem in missing(run, rows, trace)]

    assert not problems, "\n".join(problems)


def doctor_rows(run: SpoolRun) -> dict[str, Check]:
    status = {"state": "running", **collect_status(run.writer)}
    checks = (standing.check_lost, standing.check_spool_files, standing.check_quarantine, standing.check_backlog)
    return {check.name: check for check in (ask(status) for ask in checks)}


def missing(run: SpoolRun, rows: dict[str, Check], trace: Trace) -> Iterator[str]:
    name, _, label = trace.series.rstrip("}").partition("{")
    labels = dict([label.split("=")]) if label else {}
    value = run.writer.metrics.registry.get_sample_value(name, labels)
    if value != trace.value:
        yield f"{trace.series} is {value}"
    if trace.row:
        check = rows[trace.row]
        if trace.says not in check.value or check.level is not trace.level:
            yield f"{trace.row} says {check.level} {check.value}"


def test_dates_that_somebody_made_up_are_flagged(tmp_path: Path) -> None:
    status = {"chunks": {"files": 9000, "bytes": 1, "by_dataset": {"events": 9000}, "dates": 5000}}
    check = standing.check_chunks(status)
    assert (check.level, "5,000 dates" in check.value) == (Level.WARN, True)
    assert load_settings(env={}).settings.ingest.line_bytes_max < 2 << 20  # what `rejected` relies on
