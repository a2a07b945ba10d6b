"""`piper demo`: whole runs as processes of their own, and what it shows of a warehouse that Writer made."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest
from prometheus_client import generate_latest
from rich.console import Console, RenderableType
from tests.support.polling import wait_until

import piper
from piper.demo.live import MARKER, run_demo
from piper.demo.probe import HEADLINES, Probe
from piper.demo.simulate import SimulateError, SimulateOptions, simulate
from piper.demo.view import line, screen
from piper.errors import DataRootError
from piper.gold.models import load_models
from piper.ops.health import Health
from piper.ops.metrics import Metrics
from piper.settings_sources import load_settings
from piper.writer import Writer

PROGRAM = """
import sys
from pathlib import Path
from rich.console import Console
from piper.demo.live import run_demo
root, seconds = sys.argv[1:]
sys.exit(run_demo(Path(root), 2, 2, 60.0, float(seconds) if seconds else None, Console(width=120)))
"""
NO_QUERY_FAILED = re.compile(r"[1-9]\d* queries on one connection, 0 failed\.")


def start_demo(root: Path, seconds: str, *, cwd: Path, stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "PYTHONPATH": str(Path(piper.__file__).parents[1]),
        # A studio's own settings: a demo that heeded them would write there.
        "PIPER_PATHS__STATE_ROOT": str(cwd / "studio"),
        "PIPER_INGEST__BATCH_EVENTS_MAX": "not a number",
        "TERM": "xterm-256color",
    }
    command = [sys.executable, "-c", PROGRAM, str(root), seconds]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=stdout, stderr=subprocess.STDOUT, start_new_session=True
    )


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()


def piperd_of(demo: subprocess.Popen[bytes]) -> int | None:
    """The child's process id, once it has become piperd (has locked its data root)."""
    try:
        children = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()
    except FileNotFoundError:
        return None
    return int(children[0]) if children else None


@dataclass(frozen=True)
class Finished:
    root: Path
    cwd: Path
    output: str
    exit_code: int


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One demo that ran for a few seconds into a pipe, in a folder whose `.env` names other places."""
    cwd = tmp_path_factory.mktemp("cwd")
    (cwd / ".env").write_text(f"PIPER_PATHS__DATA_ROOT={cwd / 'studio-data'}\n")
    root = cwd / "root with a space"
    process = start_demo(root, "4", cwd=cwd)
    try:
        output, _ = process.communicate(timeout=100)
    finally:
        end(process)
    return Finished(root, cwd, output.decode(), process.returncode)


def raw_event_ids(raw: Path) -> set[str]:
    """By the standard library: every line of the spool that holds what a reader needs, malformed ones aside."""
    found = set()
    for path in raw.glob("*/*/*.jsonl"):
        for text in path.read_bytes().splitlines():
            try:
                found.add(json.loads(text.decode())["event_id"])
            except (ValueError, KeyError):
                continue
    return found


def test_a_finished_demo_left_every_event_in_silver_once(finished: Finished) -> None:
    assert finished.exit_code == 0, finished.output
    with duckdb.connect(str(finished.root / "data/warehouse/telemetry.duckdb"), read_only=True) as con:
        ids = [key for (key,) in con.execute("SELECT event_id FROM silver_events").fetchall()]
        gold = con.execute("SELECT sum(total_events), sum(quarantined_lines) FROM gold_data_quality_daily").fetchone()
    assert len(ids) == len(set(ids)) > 5_000
    # Some malformed lines are JSON with an event_id, so the raw ids are a few more.
    assert set(ids) <= raw_event_ids(finished.root / "raw")
    assert gold is not None
    assert gold[0] == len(ids)
    written, visible = re.search(
        r"([\d,]+) live events written, ([\d,]+) of them in silver_events", finished.output
    ).groups()
    assert written == visible != "0"


def test_a_demo_prints_lines_into_a_pipe_and_no_query_fails(finished: Finished) -> None:
    assert re.search(r"^ +\d+ s +\d+ written, \d+ visible", finished.output, re.MULTILINE), finished.output
    assert "\x1b" not in finished.output
    assert NO_QUERY_FAILED.search(finished.output), finished.output


def test_the_command_that_a_demo_tells_at_its_end_works(finished: Finished) -> None:
    command = finished.output.rstrip().splitlines()[-1]
    answer = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert "total_events" in answer.stdout


def test_a_demo_heeds_neither_environment_nor_env_file_of_a_studio(finished: Finished) -> None:
    assert (finished.root / "data/state/ingest_manifest.duckdb").exists()
    assert sorted(path.name for path in finished.cwd.iterdir()) == [".env", "root with a space"]


def test_a_second_demo_in_the_same_root_goes_on(finished: Finished) -> None:
    files_before = len(list((finished.root / "raw").glob("*/*/*.jsonl")))
    process = start_demo(finished.root, "2", cwd=finished.cwd)
    try:
        output, _ = process.communicate(timeout=100)
    finally:
        end(process)
    assert process.returncode == 0, output.decode()
    written, visible = re.search(rb"([\d,]+) live events written, ([\d,]+) of them", output).groups()
    assert written == visible != b"0"
    # Four live writers, and no second history.
    assert len(list((finished.root / "raw").glob("*/*/*.jsonl"))) == files_before + 4


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path, Path]]:
    """A demo without an end on a terminal; what it draws goes to a file."""
    root, drawn = tmp_path / "root", tmp_path / "drawn"
    controller, terminal = pty.openpty()
    process = start_demo(root, "", cwd=tmp_path, stdout=terminal)
    os.close(terminal)
    with drawn.open("wb") as target:
        copier = subprocess.Popen(["cat"], stdin=controller, stdout=target, stderr=subprocess.DEVNULL)
    os.close(controller)
    try:
        yield process, root, drawn
    finally:
        piperd = piperd_of(process)
        end(process)
        if piperd:
            os.kill(piperd, signal.SIGKILL)
        copier.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_live_screen_and_piperd_cleanly(
    endless: tuple[subprocess.Popen[bytes], Path, Path], number: signal.Signals
) -> None:
    process, root, drawn = endless
    wait_until(lambda: b"piper \xc2\xb7 live" in drawn.read_bytes(), what="the live screen")
    piperd = piperd_of(process)
    os.killpg(process.pid, number)  # as a terminal does
    assert process.wait(60) == 0, drawn.read_text()
    text = wait_until(
        lambda: drawn.read_text() if "Ask it something" in drawn.read_text() else "", what="the last words"
    )
    assert NO_QUERY_FAILED.search(text)
    assert "\x1b[?25h" in text  # the cursor is back
    assert not Path(f"/proc/{piperd}").exists()
    assert " stopped " in (root / "piperd.log").read_text()


def test_a_piperd_that_dies_ends_the_demo_with_its_log(
    endless: tuple[subprocess.Popen[bytes], Path, Path],
) -> None:
    process, root, drawn = endless
    wait_until(lambda: b"piper \xc2\xb7 live" in drawn.read_bytes(), what="the live screen")
    os.kill(piperd_of(process), signal.SIGKILL)
    assert process.wait(60) == 1
    text = wait_until(lambda: drawn.read_text() if "All of it" in drawn.read_text() else "", what="the last words")
    assert "piperd ended with exit code -9" in text
    assert "component=daemon" in text
    assert str(root / "piperd.log") in text


def test_a_piperd_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / MARKER).touch()
    (tmp_path / "data").write_text("in the way")
    shown = io.StringIO()
    assert run_demo(tmp_path, 1, 1, 10.0, 30.0, Console(file=shown)) == 1
    assert "piperd ended with exit code 1" in shown.getvalue()
    assert f"{tmp_path / 'data'}" in shown.getvalue()


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(DataRootError, match="no demo made it"):
        run_demo(tmp_path, 1, 1, 10.0, 1.0, Console(file=io.StringIO()))
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_a_demo_needs_a_rate(tmp_path: Path, rate: float) -> None:
    with pytest.raises(SimulateError, match="rate is"):
        run_demo(tmp_path / "root", 1, 1, rate, 1.0, Console(file=io.StringIO()))
    assert not (tmp_path / "root").exists()


# ---- what is shown ---------------------------------------------------------------------------------------------------


@dataclass
class Warehouse:
    writer: Writer
    metrics: Metrics
    raw: Path

    @property
    def catalog(self) -> Path:
        return self.writer.store.layout.catalog

    @property
    def exposition(self) -> str:
        return generate_latest(self.metrics.registry).decode()

    def ingest(self) -> None:
        self.writer.scan()
        while self.writer.ingest():
            pass
        self.writer.publish()
        self.writer.refresh_gold(self.writer.store.cursor())


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Warehouse]:
    raw = tmp_path / "raw"
    raw.mkdir()
    environment = {"PIPER_PATHS__RAW_ROOT": str(raw), "PIPER_PATHS__DATA_ROOT": str(tmp_path / "data")}
    metrics = Metrics()
    metrics.show_health(Health(conditions=()))
    writer = Writer.open(load_settings(env=environment, cwd=tmp_path).settings, metrics, command="test")
    yield Warehouse(writer, metrics, raw)
    writer.close()


def drawn(view: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=140, record=True)
    console.print(view)
    return console.export_text()


def test_the_headlines_are_of_gold_models() -> None:
    assert HEADLINES.keys() <= {model.name for model in load_models()}


def test_a_sample_counts_what_is_visible_and_holds_all_headlines(warehouse: Warehouse) -> None:
    written = simulate(SimulateOptions(warehouse.raw, rate=0, days=2, events=3_000, malformed_ratio=0.01))
    warehouse.ingest()
    probe = Probe(warehouse.catalog, "telemetry-")
    sample = probe.look(written.valid, warehouse.exposition)
    probe.close()
    assert (sample.visible, sample.quarantined, sample.duplicates) == (
        written.valid,
        written.malformed,
        written.duplicates,
    )
    assert (sample.files_tracked, sample.backlog_bytes, sample.queries_failed) == (written.files, 0, 0)
    assert set(sample.headlines) == set(HEADLINES)
    assert f"{written.valid:,} events" in sample.headlines["gold_data_quality_daily"]
    text = drawn(screen(sample, elapsed_seconds=12, root="/some/root", phase="live"))
    assert all(headline in text for headline in sample.headlines.values())
    assert f"{written.valid:,}" in text
    assert f"{written.valid:,} visible" in line(sample, elapsed_seconds=12)


def test_files_of_an_earlier_demo_are_not_this_runs(warehouse: Warehouse) -> None:
    simulate(SimulateOptions(warehouse.raw, rate=0, days=1, events=100))
    warehouse.ingest()
    probe = Probe(warehouse.catalog, "telemetry-9")
    assert probe.look(0, warehouse.exposition).visible == 0
    probe.close()


def test_an_event_takes_as_long_as_the_rate_needs_for_those_on_their_way(warehouse: Warehouse) -> None:
    moments = iter([100.0, 110.0])
    probe = Probe(warehouse.catalog, "telemetry-", clock=lambda: next(moments))
    probe.look(0, warehouse.exposition)
    sample = probe.look(500, warehouse.exposition)
    probe.close()
    assert (sample.rate_in, sample.rate_out, sample.behind_seconds) == (50.0, 0.0, 10.0)


def test_an_empty_warehouse_shows_dashes_and_no_failure(warehouse: Warehouse) -> None:
    probe = Probe(warehouse.catalog, "telemetry-")
    sample = probe.look(0, warehouse.exposition)
    probe.close()
    assert (sample.headlines, sample.queries, sample.queries_failed) == ({}, 7, 0)
    assert "0 failed" in drawn(screen(sample, elapsed_seconds=0, root="/some/root", phase="live"))


def test_before_piperd_answers_nothing_is_asked_of_the_catalog(tmp_path: Path) -> None:
    probe = Probe(tmp_path / "not there", "telemetry-")
    sample = probe.look(7, "")
    assert (sample.ready, sample.queries) == (False, 0)
    assert "not ready" in line(sample, elapsed_seconds=1)


def test_a_failed_query_is_counted_and_the_last_answer_stays(warehouse: Warehouse) -> None:
    simulate(SimulateOptions(warehouse.raw, rate=0, days=1, events=200))
    warehouse.ingest()
    probe = Probe(warehouse.catalog, "telemetry-")
    before = probe.look(200, warehouse.exposition)
    warehouse.writer.store.layout.gold.unlink()
    after = probe.look(200, warehouse.exposition)
    probe.close()
    assert (before.queries_failed, after.queries_failed) == (0, 6)
    assert after.headlines == before.headlines
    assert "6 failed" in drawn(screen(after, elapsed_seconds=1, root="/some/root", phase="live"))
