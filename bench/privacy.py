"""What masking user names costs: in ingest, and for a history that was written without it.

    python bench/privacy.py [--events N] [--json]

ingest         CPU of ingesting N simulated events (200 users, no name in any text) with masks / without
ingest_texts   the same where the payload of every event names the home directory of its user / without masks
history        seconds of a rewrite of that second spool's silver, at full speed; piperd takes a quarter of a core
history_rate   events of that a second
search         seconds of looking through that history for one name that nobody mentions
disk           bytes of silver while old and new chunks are there / before

In one run, one after the other; CPU and wall time of this process.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import structlog

from piper.demo.simulate import SimulateOptions, simulate
from piper.ops.metrics import Metrics
from piper.privacy import clean_up, rewrite_history
from piper.settings_sources import load_settings
from piper.silver.masking import SEARCH_PAUSE
from piper.upkeep import Hands
from piper.writer import Clock, Writer

HOSTS, USERS = 100, 2


def opened(spool: Path, data: Path, *, masks: bool, clock: Clock | None = None) -> Writer:
    environment = {
        "PIPER_PATHS__RAW_ROOT": str(spool),
        "PIPER_PATHS__DATA_ROOT": str(data),
        "PIPER_PRIVACY__MASK_USERS": str(masks).lower(),
    }
    return Writer.open(load_settings(env=environment).settings, Metrics(), command="bench", clock=clock)


def ingest(spool: Path, data: Path, *, masks: bool) -> float:
    """CPU seconds of everything up to sealed chunks."""
    shutil.rmtree(data, ignore_errors=True)
    with closing(opened(spool, data, masks=masks)) as writer:
        started = time.process_time()
        writer.scan()
        while writer.ingest():
            pass
        writer.seal()
        writer.publish()
        return time.process_time() - started


def ratio(spool: Path, data: Path) -> float:
    """Best of three each, in turns."""
    runs = [(ingest(spool, data, masks=True), ingest(spool, data, masks=False)) for _ in range(3)]
    return min(run[0] for run in runs) / min(run[1] for run in runs)


def add_mentions(spool: Path) -> None:
    for file in spool.glob("*/*/*.jsonl"):
        home = f'"scene":"/home/{file.parent.name}/scenes/shot_v012.ma",'.encode()
        content = file.read_bytes()
        file.write_bytes(content.replace(b'"payload":{', b'"payload":{' + home).replace(
            b'"payload": {', b'"payload": {' + home))  # fmt: skip


def silver_bytes(data: Path) -> int:
    return sum(path.stat().st_size for path in (data / "silver").rglob("*.parquet"))


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    assert action()
    return time.perf_counter() - started


def history(spool: Path, data: Path) -> dict[str, float]:
    before = silver_bytes(data)
    with closing(opened(spool, data, masks=True)) as writer, closing(Hands(writer)) as hands:
        counted = writer.store.con.execute("SELECT sum(row_count) FROM chunks WHERE dataset = 'events'").fetchone()
        events = float(counted[0]) if counted else 0.0
        seconds = timed(lambda: rewrite_history(hands, core_share=1.0))
        both = silver_bytes(data)
        hands.put_down()
        writer.publish()
        clean_up(hands)
        clean_up(hands, grace=timedelta(0))
        writer.masking.names.add(["somebody.else"], is_searched=False)
    later = Clock(utc=lambda: time.time() + SEARCH_PAUSE.total_seconds())
    with closing(opened(spool, data, masks=True, clock=later)) as writer, closing(Hands(writer)) as hands:
        search = timed(lambda: rewrite_history(hands, core_share=1.0))
    return {"history": seconds, "history_rate": events / seconds, "search": search, "disk": both / before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with tempfile.TemporaryDirectory() as name:
        spool, data = Path(name) / "spool", Path(name) / "data"
        simulate(SimulateOptions(spool, hosts=HOSTS, users=USERS, rate=0, events=arguments.events, days=5,
                                 malformed_ratio=0))  # fmt: skip
        found = {"ingest": ratio(spool, data)}
        add_mentions(spool)
        found["ingest_texts"] = ratio(spool, data)
        found |= history(spool, data)
    if arguments.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:13} {value:8.2f}")


if __name__ == "__main__":
    main()
