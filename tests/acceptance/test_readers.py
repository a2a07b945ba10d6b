"""Readers with Grafana's DuckDB: they never wait, never fail, never see half, and hold nobody up."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.conftest import MakePiperd
from tests.support.piperd import WITHOUT_PRIVILEGES, Piperd
from tests.support.polling import wait_until
from tests.support.reader_engine import READER_VERSION, require_reader_site
from tests.support.readers import Reader
from tests.support.warehouse import GOLD_VIEWS, SILVER_VIEWS, event_count

from piper.demo.simulate import SimulateOptions, SimulateSummary, simulate

PLUGIN_SAFE_TYPES = {"VARCHAR", "BIGINT", "INTEGER", "DOUBLE", "BOOLEAN", "DATE", "TIMESTAMP"}
EVENTS_PER_SECOND = 200.0
READERS = 2


@pytest.fixture(scope="module")
def site() -> Path:
    return require_reader_site()


@dataclass
class LiveSpool:
    """A simulated studio that writes until `finish()`."""

    root: Path
    _stop: threading.Event = field(default_factory=threading.Event)
    _summaries: list[SimulateSummary] = field(default_factory=list)

    def __post_init__(self) -> None:
        options = SimulateOptions(
            self.root, hosts=3, users=2, rate=EVENTS_PER_SECOND, seed=2, malformed_ratio=0.01, duplicate_ratio=0.02,
            flush_seconds=0.2, rotate_bytes=200_000,
        )  # fmt: skip
        self._thread = threading.Thread(
            target=lambda: self._summaries.append(simulate(options, stop=self._stop.is_set)), daemon=True
        )
        self._thread.start()

    def finish(self) -> SimulateSummary:
        self._stop.set()
        self._thread.join()
        return self._summaries[0]


@contextmanager
def live_spool(root: Path) -> Iterator[LiveSpool]:
    spool = LiveSpool(root)
    try:
        yield spool
    finally:
        spool._stop.set()


def wait_for_news(piperd: Piperd, events: int = 300) -> None:
    """Until so many more events are in silver, which seals several times and refreshes gold."""
    before = event_count(piperd.data_root)
    wait_until(lambda: event_count(piperd.data_root) >= before + events, what=piperd.log_text, pause_seconds=0.2)


@pytest.mark.timeout(300)
def test_connected_readers_see_no_error_no_step_back_and_no_double_row_while_piperd_works_and_restarts(
    make_piperd: MakePiperd, raw_root: Path, data_root: Path, site: Path
) -> None:
    settings = {"INGEST__SEAL_EVENTS_MAX": 150, "PUBLISH__SECONDS": 0.1, "GOLD__REFRESH_SECONDS": 0.5}
    raw_root.mkdir()
    piperd = make_piperd(settings).start_ready()
    catalog = data_root / "warehouse" / "telemetry.duckdb"
    with ExitStack() as stack:
        readers = [stack.enter_context(Reader(site, catalog)) for _ in range(READERS)]
        for reader in readers:
            reader.wait_started()
        spool = stack.enter_context(live_spool(raw_root))
        wait_for_news(piperd, 1000)
        for publish_seconds in (1.0, 0.1):  # with the first, gold is due more often than the tail
            piperd.stop()
            piperd.start_ready(PUBLISH__SECONDS=publish_seconds)
            wait_for_news(piperd)
            piperd.kill()
            piperd.start_ready(PUBLISH__SECONDS=publish_seconds)
            wait_for_news(piperd)
        summary = spool.finish()
        wait_until(lambda: event_count(data_root) >= summary.valid, what=piperd.log_text, pause_seconds=0.2)
        piperd.stop()
        reports = [reader.stop() for reader in readers]

    for report in reports:
        assert report["problems"] == []
        assert report["version"] == f"v{READER_VERSION}"
        assert set(report["counts"]) == {*SILVER_VIEWS, *GOLD_VIEWS}
        assert report["counts"]["silver_events"] == summary.valid
        assert report["totals"]["gold_data_quality_daily"] == summary.valid
        assert report["queries"] > 50
        for view, columns in report["types"].items():
            assert set(columns.values()) <= PLUGIN_SAFE_TYPES, (view, columns)


@pytest.fixture
def warehouse(make_piperd: MakePiperd, raw_root: Path) -> Piperd:
    """A daemon that has ingested and sealed a small spool, and was stopped."""
    summary = simulate(SimulateOptions(raw_root, hosts=2, users=2, rate=0, events=600, days=1, seed=3))
    piperd = make_piperd({"INGEST__SEAL_EVENTS_MAX": 200}).start_ready()
    wait_until(lambda: event_count(piperd.data_root) >= summary.valid, what=piperd.log_text)
    piperd.stop()
    return piperd


def answer_of(site: Path, catalog: Path, prefix: list[str]) -> dict[str, int]:
    """Row counts of all views for one reader; fails when one does not answer."""
    with Reader(site, catalog, prefix=prefix) as reader:
        reader.wait_started()
        report = reader.stop()
    assert report["problems"] == []
    assert set(report["counts"]) == {*SILVER_VIEWS, *GOLD_VIEWS}
    return dict(report["counts"])


def test_a_reader_who_may_write_nothing_gets_every_view(warehouse: Piperd, data_root: Path, site: Path) -> None:
    for path in [data_root, *data_root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        counts = answer_of(site, data_root / "warehouse" / "telemetry.duckdb", [*WITHOUT_PRIVILEGES])
    finally:
        for path in [data_root, *data_root.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert counts["silver_events"] == 600


def test_a_reader_on_a_read_only_mount_gets_every_view(warehouse: Piperd, data_root: Path, site: Path) -> None:
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", script, str(data_root)]
    tried = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("mounting needs root in a namespace of its own")
    probe = subprocess.run([*prefix, "touch", str(data_root / "probe")], capture_output=True, check=False)
    assert probe.returncode != 0, "the mount is not read-only"

    assert answer_of(site, data_root / "warehouse" / "telemetry.duckdb", prefix)["silver_events"] == 600


def test_a_reader_that_locks_what_it_opens_holds_nobody_up(warehouse: Piperd, data_root: Path, site: Path) -> None:
    names = ("telemetry.duckdb", "gold.duckdb")
    with Reader(site, *(data_root / "warehouse" / name for name in names), writable=True) as rude:
        rude.wait_started()
        (data_root / "state" / "catalog.sha256").unlink()  # so that the catalog is written anew as well
        summary = simulate(SimulateOptions(warehouse.raw_root, hosts=2, users=2, rate=0, events=600, days=1, seed=4))
        warehouse.start_ready()
        wait_until(lambda: warehouse.metric("piper_events_ingested_total") == summary.valid)
        wait_until(lambda: warehouse.metric("piper_gold_refreshes_total", result="ok") > 0)
        warehouse.stop()
        assert rude.stop() == {"locked": len(names)}
    assert not re.search('"level": ?"error"', warehouse.log_text()), warehouse.log_text()
    assert event_count(data_root) == 600 + summary.valid
