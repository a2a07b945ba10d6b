"""What does compaction cost, and what does it bring?

    python bench/compaction.py [--events N] [--seals N] [--json]

Simulated events of two days are ingested in many seals, as a quarter of an hour each would leave them. Then
`piper compact` merges them, in a process of its own, and queries are asked before and after, median of five:

    day     events of one day by hour, from silver_events
    domain  publishes of one day by sequence, from silver_publish_usd
    count   all of silver_events

Also measured: the largest chunk that compaction makes, three million events from 24 parts (`large`: seconds, and the
peak memory of the process), and what a publish costs while 5,000 replaced chunks are hidden (`hidden`).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import structlog

from piper.demo.simulate import SimulateOptions, simulate
from piper.ops.metrics import Metrics
from piper.publish.tail import TailPublisher
from piper.settings import Settings
from piper.settings_sources import load_settings
from piper.silver.hidden import forget_hidden
from piper.silver.rewrite import Partition, partitions
from piper.writer import Writer

MIB = 1024 * 1024
HIDDEN = 5000
LARGE_PARTS, LARGE_ROWS = 24, 3_000_000
DAY = "(SELECT min(event_date) FROM gold_data_quality_daily)"
QUERIES = {
    "day": f"SELECT hour(occurred_at_utc), count(*) FROM silver_events WHERE event_date = {DAY} GROUP BY ALL",
    "domain": f"SELECT sequence, avg(duration_ms) FROM silver_publish_usd WHERE event_date = {DAY} GROUP BY ALL",
    "count": "SELECT count(*) FROM silver_events",
}


def median(action: Callable[[], object]) -> float:
    taken = []
    for _ in range(5):
        started = time.perf_counter()
        action()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def environment(work: Path) -> dict[str, str]:
    return {
        "PIPER_PATHS__RAW_ROOT": str(work / "raw"),
        "PIPER_PATHS__DATA_ROOT": str(work / "data"),
        "PIPER_LOGGING__LEVEL": "error",
    }


def open_writer(settings: Settings) -> closing[Writer]:
    return closing(Writer.open(settings, Metrics(), command="bench"))


def ingest(settings: Settings, events: int, seals: int) -> None:
    with open_writer(settings) as writer:
        for seed in range(seals):
            options = SimulateOptions(
                settings.paths.raw_root, hosts=4, users=1, rate=0, events=events // seals, days=2, seed=seed
            )
            simulate(options)
            writer.scan()
            while writer.ingest():
                pass
            writer.seal()
        writer.export_quarantine()
        writer.refresh_gold(writer.store.con)


COMMAND = """
import sys
from pathlib import Path
from piper.cli import app
from piper.exits import run
code = run(app, "piper", sys.argv[1:])
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
sys.stderr.write(peak.split()[1])
sys.exit(code)
"""
"""`piper`, which then says its own peak memory: what the kernel counts for children includes ours when they began."""


def compact(env: dict[str, str]) -> dict[str, Any]:
    """`piper compact`: what it says, CPU seconds and peak memory of its process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", COMMAND, "compact", "--end", "9999-12-31", "--json"]
    done = subprocess.run(command, env=os.environ | env, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**json.loads(done.stdout), "cpu_seconds": cpu, "peak_mib": int(done.stderr.split()[-1]) / 1024}


def state(settings: Settings) -> dict[str, float]:
    """Chunks, bytes an event, and query times."""
    with open_writer(settings) as writer:
        now = writer.clock.now()
        forget_hidden(writer.store, published_seq=writer.warehouse.published_seq, now=now, after=timedelta(0))
        writer.publish()
        found = partitions(writer.store.con)
    events = sum(partition.rows for partition in found if partition.dataset == "events")
    result: dict[str, float] = {
        "chunks": sum(len(partition.paths) for partition in found),
        "bytes_per_event": sum(partition.size_bytes for partition in found) / events,
    }
    with duckdb.connect(str(settings.paths.data_root / "warehouse" / "telemetry.duckdb"), read_only=True) as con:
        for name, query in QUERIES.items():
            result[f"{name}_ms"] = median(lambda query=query: con.execute(query).fetchall()) * 1000  # type: ignore[misc]
    return result


def hidden(settings: Settings) -> dict[str, float]:
    """Milliseconds of a publish without and with many hidden chunks."""
    with open_writer(settings) as writer:
        store = writer.store
        tail = TailPublisher(store.layout)
        without = median(lambda: tail.publish(store.con, store.progress()))
        store.con.execute(
            f"""INSERT INTO hidden_chunks SELECT 'events',
            'events/event_date=2026-11-21/event_type=render.stats.summary/' || printf('%012d-0.parquet', range),
            0, TIMESTAMP '2100-01-01' FROM range({HIDDEN})"""
        )
        with_hidden = median(lambda: tail.publish(store.con, store.progress()))
        store.con.execute("DELETE FROM hidden_chunks")
    return {"publish_ms": without * 1000, "publish_with_hidden_ms": with_hidden * 1000}


def enlarge(settings: Settings) -> Partition:
    """Add copies of a chunk to its partition until it is as large as compaction makes one."""
    with open_writer(settings) as writer:
        con, silver = writer.store.con, writer.store.layout.silver
        largest = max((p for p in partitions(con) if p.dataset == "events"), key=lambda p: p.size_bytes)
        source = silver / largest.paths[0]
        times = max(1, LARGE_ROWS // (LARGE_PARTS * largest.rows))
        part = silver / largest.directory / "900000000000-0.parquet"
        with duckdb.connect(config={"threads": 1}) as engine:
            engine.execute(
                f"""COPY (SELECT * REPLACE (event_id || '-' || copy AS event_id) FROM read_parquet('{source}',
                hive_partitioning = false), range({times}) r (copy)) TO '{part}' (FORMAT parquet, COMPRESSION zstd)"""
            )
            (rows,) = engine.execute(f"SELECT count(*) FROM '{part}'").fetchall()[0]
        for number in range(LARGE_PARTS):
            name = f"{largest.directory}/9000000000{number:02d}-0.parquet"
            if number:
                shutil.copyfile(part, silver / name)
            con.execute(
                "INSERT INTO chunks VALUES ('events', ?, ?, ?, ?, 0)",
                [largest.event_date, name, rows, part.stat().st_size],
            )
    return largest


def measure(work: Path, events: int, seals: int) -> dict[str, Any]:
    env = environment(work)
    settings = load_settings(env=env).settings
    ingest(settings, events, seals)
    before = state(settings)
    done = compact(env)
    after = state(settings)
    per_million = 1e6 / done["rows"]
    result: dict[str, Any] = {
        "before": before,
        "after": after,
        "ratio": {name: after[name] / before[name] for name in before},
        "rows": done["rows"],
        "cpu_seconds_per_million_rows": done["cpu_seconds"] * per_million,
        "wall_seconds_per_million_rows": done["seconds"] * per_million,
        "peak_mib": done["peak_mib"],
        "hidden": hidden(settings),
    }
    enlarge(settings)
    large = compact(env)
    result["large"] = {
        "mib": large["bytes_before"] / MIB,
        "rows": large["rows"],
        "wall_seconds": large["seconds"],
        "cpu_seconds": large["cpu_seconds"],
        "peak_mib": large["peak_mib"],
    }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--seals", type=int, default=96)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        result = measure(Path(name), arguments.events, arguments.seals)
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{'':18}{'before':>10}{'after':>10}{'ratio':>8}")
    for what in result["before"]:
        values = (result["before"][what], result["after"][what], result["ratio"][what])
        print(f"{what:18}{values[0]:10.1f}{values[1]:10.1f}{values[2]:8.2f}")
    for group in (result, result["hidden"], {f"large_{name}": value for name, value in result["large"].items()}):
        for what, value in group.items():
            if isinstance(value, int | float):
                print(f"{what:32}{value:10.2f}")


if __name__ == "__main__":
    main()
