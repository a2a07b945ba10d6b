"""Case 14 through a fault layer below the data root: writes fail, are torn, or nothing can be changed any more.

The daemon says so, answers, and comes back by itself; killed in the middle of it, the next one finds an exact state.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.event_lines import append_events, ids
from tests.support.faultfs import FaultFs, Rule
from tests.support.piperd import Piperd
from tests.support.polling import wait_until
from tests.support.warehouse import catalog, quarantine_records

CHANGES = ("write", "sync", "make")
FAULTS = {
    "full": Rule("*", on=("write",), error="ENOSPC"),
    "read-only": Rule("*", on=CHANGES, error="EROFS"),
    "torn manifest": Rule("/data/state/ingest_manifest.duckdb*", on=("write",), error="EIO", torn=100),
    "no sync": Rule("*", on=("sync",), error="EIO"),
    "torn readers' files": Rule("/data/warehouse/*", on=("write",), error="EIO", torn=5000),
    "torn chunks": Rule("/data/silver/*", on=("write",), error="EIO", torn=1000),
}
EVENTS = 40


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FaultFs]:
    with FaultFs(tmp_path, writable=True) as fs:
        yield fs


@pytest.mark.timeout(400)
@pytest.mark.parametrize("both_ways", [False, pytest.param(True, marks=pytest.mark.minutes)])
def test_case_14_writes_that_fail_or_tear_are_told_and_cost_nothing_killed_or_not(
    disk: FaultFs, tmp_path: Path, both_ways: bool
) -> None:
    plan = [(name, name.startswith("torn")) for name in FAULTS]  # whether it is killed in the middle of it
    plan += [(name, not killed) for name, killed in plan] if both_ways else []
    expected: list[str] = []
    settings = {"INGEST__SEAL_SECONDS": 1, "GOLD__REFRESH_SECONDS": 1}
    with Piperd(tmp_path / "raw", disk.root / "data", tmp_path / "logs", settings) as piperd:

        def feed(name: str) -> None:
            new = ids(name, EVENTS)
            append_events(piperd.raw_root, new, name=f"{name}.jsonl")
            expected.extend(new)

        def is_well() -> bool:
            return piperd.get("/readyz")[0] == 200 and is_exact(piperd.data_root, expected)

        feed("sound")
        piperd.start_ready()
        wait_until(is_well, what=piperd.log_text)
        for name, killed in plan:
            disk.script(FAULTS[name])
            feed(f"{name} {killed}".replace(" ", "-"))
            piperd.wait_not_ready()
            assert piperd.get("/healthz")[0] == 200
            assert piperd.metric("piper_ready") == 0
            if killed:
                piperd.kill()
            disk.script()
            if killed:
                piperd.start()
            wait_until(is_well, 90, what=piperd.log_text)
        piperd.stop()
        assert is_exact(piperd.data_root, expected)
        assert quarantine_records(piperd.data_root) == []


def is_exact(data_root: Path, expected: list[str]) -> bool:
    with catalog(data_root) as con:
        found = con.execute("SELECT event_id FROM silver_events").fetchall()
    return sorted(row[0] for row in found) == sorted(expected)
