"""Case 12. Exactly once, whatever happens: piperd is killed again and again while lines arrive."""

from __future__ import annotations

import os
import threading
from collections import Counter
from pathlib import Path
from random import Random, SystemRandom

import pytest
from tests.support.numbered import NumberedWriters, WriterThread
from tests.support.piperd import Piperd
from tests.support.polling import wait_until
from tests.support.warehouse import (
    assert_gold_is,
    assert_silver_is,
    catalog,
    days_of,
    event_count,
    quarantine_records,
    raw_of,
)

SEED_VARIABLE = "PIPER_TEST_SEED"
LATEST_KILL_SECONDS = 3.0
SETTINGS = {
    "WATCH__POLL_SECONDS": 0.1,
    "INGEST__SEAL_EVENTS_MAX": 250,
    "PUBLISH__SECONDS": 0.1,
    "GOLD__REFRESH_SECONDS": 0.2,
}


@pytest.mark.timeout(2000)
@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.minutes)])
def test_case_12_every_line_arrives_exactly_once_though_piperd_is_killed_again_and_again(
    tmp_path: Path, kills: int
) -> None:
    seed = int(os.environ.get(SEED_VARIABLE) or SystemRandom().randrange(1_000_000))
    print(f"{SEED_VARIABLE}={seed}")
    rng = Random(seed)
    data_root = tmp_path / "data"
    writers = NumberedWriters(tmp_path / "raw", Random(seed))
    thread = WriterThread(writers)
    with Piperd(tmp_path / "raw", data_root, tmp_path / "logs", SETTINGS) as piperd:
        thread.start()
        killed_with_events = Counter[bool]()
        for _ in range(kills):
            piperd.start()
            _pass_a_moment(rng.uniform(0.2, LATEST_KILL_SECONDS))
            assert piperd.is_running, piperd.log_text()
            piperd.kill()
            killed_with_events[event_count(data_root) > 0] += 1
        thread.finish()
        piperd.start_ready()
        wait_until(lambda: event_count(data_root) >= len(writers.events), what=piperd.log_text)
        piperd.stop()

    assert killed_with_events[True] >= kills // 2, "most kills must come when there is something to lose"
    records = quarantine_records(data_root)
    assert Counter(raw_of(record) for record in records) == writers.malformed
    with catalog(data_root) as con:
        assert_silver_is(con, writers.events)
        assert_gold_is(con, writers.events, quarantined=days_of(records), duplicates=writers.duplicates)


def _pass_a_moment(seconds: float) -> None:
    """The random moment of a kill: nothing is waited for, so it is a length of time."""
    threading.Event().wait(seconds)
