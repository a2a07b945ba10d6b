"""Log lines on stderr and in the run log, on real files, with a clock that the test moves."""

from __future__ import annotations

import json
import logging
import os
import resource
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from piper.ops import logging as piper_logging
from piper.ops.logging import RETRY_AFTER, RunLog, close_run_log, configure_logging, get_logger

NOON = datetime(2026, 3, 1, 12, 0, 5, tzinfo=UTC)


class Clock:
    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def pass_by(self, time: timedelta) -> None:
        self.now += time


@pytest.fixture(autouse=True)
def _logging_of_its_own() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    close_run_log()
    for handler in root.handlers[:]:
        if type(handler).__module__ == piper_logging.__name__:
            root.removeHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def logged(path: Path | None) -> list[dict[str, Any]]:
    assert path is not None
    return lines_of(path.read_text())


def name_at(root: Path, day: str, name: str) -> Path:
    return root / "run_logs" / day / f"{name}-{os.getpid()}.jsonl"


# Lines


def test_a_line_begins_with_time_level_component_and_event(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    get_logger("spool.tail").warning("file vanished", path=Path("/r/h/u/é.jsonl"), bytes=3)
    (line,) = lines_of(capsys.readouterr().err)
    assert list(line) == ["timestamp", "level", "component", "event", "path", "bytes"]
    assert datetime.strptime(line["timestamp"], "%Y-%m-%dT%H:%M:%S.%f%z").tzinfo is UTC
    assert len(line["timestamp"]) == len("2026-03-01T12:00:05.123Z")
    assert list(line.values())[1:] == ["warning", "spool.tail", "file vanished", "/r/h/u/é.jsonl", 3]


def test_text_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "text")
    get_logger("gold").info("refreshed", model="gold_farm_pressure_daily")
    text = capsys.readouterr().err
    assert "[info     ] refreshed" in text
    assert "model=gold_farm_pressure_daily" in text
    assert "component=gold" in text


def test_lines_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("warning", "json")
    get_logger("gold").info("no")
    logging.getLogger("library").info("no")
    get_logger("gold").warning("yes")
    logging.getLogger("library").warning("yes")
    assert [line["event"] for line in lines_of(capsys.readouterr().err)] == ["yes", "yes"]


def test_the_standard_library_and_warnings_go_the_same_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_log = RunLog(tmp_path, "piperd", Clock())
    configure_logging("info", "json", run_log)
    logging.getLogger("asyncio").warning("slow callback: %s", "x")
    logging.getLogger("watchfiles.main").info("5 changes detected")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", UserWarning, stacklevel=1)
    close_run_log()
    lines = lines_of(capsys.readouterr().err)
    assert [line["component"] for line in lines] == ["asyncio", "py.warnings"]
    assert lines[0]["event"] == "slow callback: x"
    assert logged(run_log.path) == lines


def test_an_exception_is_structured_and_tells_no_locals(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    for log in (get_logger("silver").exception, logging.getLogger("library").exception):
        try:
            secret = "kim.artist"
            raise OSError(28, "No space left on device", f"/d/{len(secret)}")
        except OSError as error:
            try:
                raise RuntimeError("commit failed") from error
            except RuntimeError:
                log("batch lost")
    text = capsys.readouterr().err
    assert "kim.artist" not in text
    for line in lines_of(text):
        outer, cause = line["exception"]
        assert (outer["exc_type"], outer["exc_value"], cause["exc_type"]) == (
            "RuntimeError",
            "commit failed",
            "OSError",
        )
        assert outer["frames"][-1]["name"] == "test_an_exception_is_structured_and_tells_no_locals"


class Hostile:
    def __repr__(self) -> str:
        raise ValueError("no")


def test_no_value_can_break_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    circle: list[object] = []
    circle.append(circle)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own handler breaks on such values
    configure_logging("info", "json")
    get_logger("spool").info(
        "odd\udcff",
        path=Path(os.fsdecode(b"/r/\xff.jsonl")),
        lone="\ud800",
        raw=b"a\xff",
        big=2**70,
        nan=float("nan"),
        circle=circle,
        hostile=Hostile(),
        inner={"k\udcfe": [datetime(2026, 3, 1, tzinfo=UTC)], 3: "x"},
    )
    logging.getLogger("library").warning("file %s", "\udcff")
    odd, library = lines_of(capsys.readouterr().err)
    assert odd["event"] == "odd\\xff"
    assert odd["path"] == "/r/\\xff.jsonl"
    assert odd["lone"] == "\\ud800"
    assert odd["raw"] == "a\\xff"
    assert odd["big"] == str(2**70)
    assert odd["nan"] is None
    assert odd["hostile"] == "<Hostile whose repr raised ValueError>"
    assert odd["inner"] == {"k\\xfe": ["2026-03-01T00:00:00+00:00"], "3": "x"}
    assert library["event"] == "file \\xff"


def test_text_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "text")
    try:
        raise ValueError("\x1b[2Jgone")
    except ValueError:
        get_logger("spool").exception("bad\x1b[31m", path="/r/\x1b]0;x\x07\udcff\nforged", nested=["\x1b"])
    text = capsys.readouterr().err
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\nforged" not in text
    assert "ValueError: \\x1b[2Jgone\n" in text


def test_a_closed_stderr_stops_nothing(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, sys\n"
        "from piper.ops.logging import *\n"
        "configure_logging('info', 'json', RunLog(pathlib.Path(sys.argv[1]), 'ingest'))\n"
        "os.close(2)\n"
        "get_logger('x').info('still here')\n"
        "print('done')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, check=True, timeout=60)
    assert done.stdout == b"done\n"
    (file,) = (tmp_path / "run_logs").glob("*/ingest-*.jsonl")
    assert [line["event"] for line in logged(file)] == ["still here"]


# The run log's files


def test_a_run_log_is_named_by_day_command_time_and_pid_and_closed_to_strangers(tmp_path: Path) -> None:
    run_log = RunLog(tmp_path, "../backfill now", Clock())
    umask = os.umask(0o077)
    try:
        assert run_log.write(b"{}") is None
    finally:
        os.umask(umask)
    assert run_log.path == name_at(tmp_path, "2026-03-01", "backfill-now-120005Z")
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (run_log.path, *run_log.path.parents[:2])]
    assert modes == [0o640, 0o750, 0o750]


def test_nothing_is_created_before_the_first_line(tmp_path: Path) -> None:
    RunLog(tmp_path, "piperd", Clock()).close()
    assert list(tmp_path.iterdir()) == []


def test_a_long_run_moves_on_to_a_new_file_at_utc_midnight(tmp_path: Path) -> None:
    clock = Clock()
    run_log = RunLog(tmp_path, "piperd", clock)
    run_log.write(b"1")
    clock.now = datetime(2026, 3, 1, 23, 59, 59, 999999, tzinfo=UTC)
    run_log.write(b"2")
    clock.now = datetime.fromisoformat("2026-03-02T01:00:00+01:00")
    run_log.write(b"3")
    assert name_at(tmp_path, "2026-03-01", "piperd-120005Z").read_bytes() == b"1\n2\n"
    assert name_at(tmp_path, "2026-03-02", "piperd-000000Z").read_bytes() == b"3\n"


def test_a_file_that_was_cleaned_away_is_made_again(tmp_path: Path) -> None:
    run_log = RunLog(tmp_path, "piperd", Clock())
    run_log.write(b"1")
    assert run_log.path is not None
    run_log.path.unlink()
    run_log.path.parent.rmdir()
    assert run_log.write(b"2") is None
    assert run_log.path.read_bytes() == b"2\n"


# When the run log cannot be written


def test_a_missing_data_root_is_told_once_retried_later_and_never_created(tmp_path: Path) -> None:
    clock = Clock()
    root = tmp_path / "mount"
    run_log = RunLog(root, "piperd", clock)
    notice = run_log.write(b"1")
    assert notice is not None
    assert notice.level == logging.ERROR
    assert "No such file or directory" in str(notice.details["error"])
    clock.pass_by(RETRY_AFTER)
    assert run_log.write(b"2") is None
    assert not root.exists()

    root.mkdir()
    assert run_log.write(b"3") is None
    assert list(root.iterdir()) == []
    clock.pass_by(RETRY_AFTER)
    notice = run_log.write(b"4")
    assert notice is not None
    assert (notice.level, notice.details["lost_lines"]) == (logging.WARNING, 3)
    assert run_log.path is not None
    assert run_log.path.read_bytes() == b"4\n"
    assert run_log.write(b"5") is None


def test_a_line_that_a_full_disk_cut_does_not_spoil_the_next(tmp_path: Path) -> None:
    clock = Clock()
    run_log = RunLog(tmp_path, "piperd", clock)
    run_log.write(b'{"n":1}')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12, hard))
    try:
        assert run_log.write(b'{"n":2}') is not None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    clock.pass_by(RETRY_AFTER)
    assert run_log.write(b'{"n":3}') is not None
    assert run_log.path is not None
    assert run_log.path.read_bytes() == b'{"n":1}\n{"n"\n{"n":3}\n'


def test_failure_and_recovery_are_on_stderr_and_the_gap_is_explained_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    root = tmp_path / "mount"
    run_log = RunLog(root, "piperd", clock)
    log = get_logger("daemon")
    configure_logging("info", "json", run_log)
    for event in ("one", "two"):
        log.info(event)
    close_run_log()
    root.mkdir()
    clock.pass_by(RETRY_AFTER)
    configure_logging("info", "json", run_log)
    log.info("three")
    close_run_log()

    cannot, again = (
        "run log cannot be written, its lines are on stderr only",
        "run log is written again, with a gap",
    )
    events = [line["event"] for line in lines_of(capsys.readouterr().err)]
    assert sorted(events) == sorted(["one", "two", "three", cannot, again])
    three, gap = logged(run_log.path)
    assert (three["event"], gap["event"], gap["level"], gap["lost_lines"]) == ("three", again, "warning", 2)


def test_a_disk_that_hangs_holds_up_no_caller_and_what_it_cannot_hold_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reached, back = threading.Event(), threading.Event()

    def hanging_clock() -> datetime:
        reached.set()
        assert back.wait(60)
        return NOON

    monkeypatch.setattr(piper_logging, "_QUEUE_LINES_MAX", 2)
    run_log = RunLog(tmp_path, "piperd", hanging_clock)
    configure_logging("info", "json", run_log)
    log = get_logger("daemon")
    log.info("0")
    assert reached.wait(60)
    for number in range(1, 6):
        log.info(str(number))
    assert [line["event"] for line in lines_of(capsys.readouterr().err)] == ["0", "1", "2", "3", "4", "5"]
    back.set()
    close_run_log()
    lines = logged(run_log.path)
    assert [line["event"] for line in lines] == ["0", "1", "run log is written again, with a gap", "2"]
    assert lines[2]["lost_lines"] == 3


def test_the_end_of_the_process_writes_what_is_queued(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys\n"
        "from piper.ops.logging import *\n"
        "configure_logging('info', 'json', RunLog(pathlib.Path(sys.argv[1]), 'ingest'))\n"
        "for n in range(500): get_logger('x').info('line', n=n)\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path], stderr=subprocess.DEVNULL, check=True, timeout=60)
    (file,) = (tmp_path / "run_logs").glob("*/ingest-*.jsonl")
    assert [line["n"] for line in logged(file)] == list(range(500))
