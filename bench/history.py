"""What a long history costs: batch, gold, publish, start-up and memory with many events in silver against few.

    python bench/history.py [--small 1000000] [--large 50000000] [--batches 20] [--keep] [--json]

Two data roots with so many events of closed days, 50,000 a day, are made below a temporary directory. 40,000 events of
yesterday are ingested as usual; the others are made: their keys are random, written with the code that
writes key runs, 4 million a run as merges leave them; each day's chunks are one file a partition, entered in the
manifest, and links to the files of one day that was ingested. What is measured here looks at names and manifest only,
never at the rows of those files; so this says nothing about readers, nor about bytes per event in silver.

Then a process of its own opens each root (start: opening and scanning). Medians, in milliseconds:

fresh        a batch of 1,000 new events, from its lines to its commit
duplicates   a batch of 1,000 lines that were ingested before the runs were written; it is checked that each is known
gold         bringing gold up to date after a batch
publish      showing a batch to readers
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
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import structlog

from batch import Spool, ingest
from piper.demo.simulate import SimulateOptions, simulate
from piper.ops.metrics import Metrics
from piper.settings import Settings, load_settings
from piper.silver.key_run import Keys128, write_run
from piper.writer import Writer

OLD_EVENTS = 40_000
BATCH = 1_000
DAY_EVENTS = 50_000
RUN_KEYS = 4_000_000
WARM_UP = 3
Result = dict[str, float]


def settings_of(root: Path) -> Settings:
    environment = {
        "PIPER_PATHS__RAW_ROOT": str(root / "raw"),
        "PIPER_PATHS__DATA_ROOT": str(root / "data"),
        "PIPER_INGEST__SEAL_EVENTS_MAX": "1000000",
    }
    return load_settings(env=environment, cwd=root).settings


def make(root: Path, events: int) -> None:
    """A data root with so many events."""
    old = root / "old"
    for directory in (root / "raw", old):
        directory.mkdir(parents=True)
    simulate(
        SimulateOptions(
            root=old, hosts=1, users=1, rate=0, events=OLD_EVENTS, days=1, seed=1, malformed_ratio=0, duplicate_ratio=0
        )
    )
    shutil.copytree(old, root / "raw", dirs_exist_ok=True)
    with closing(Writer.open(settings_of(root), Metrics(), command="bench")) as writer:
        writer.scan()
        while writer.ingest():
            pass
        writer.seal()
        writer.refresh_gold(writer.store.con)
        add_keys(writer, events)
        add_days(writer, events // DAY_EVENTS)
        writer.publish()


def add_keys(writer: Writer, count: int) -> None:
    """Runs with so many random keys; the first has those of the ingested events too."""
    con, rng = writer.store.con, np.random.default_rng(0)
    known = con.execute(
        "SELECT (key >> 64)::UBIGINT AS high, (key & 18446744073709551615::UHUGEINT)::UBIGINT AS low FROM event_keys"
    ).to_arrow_table()
    part = Keys128(known["high"].to_numpy(), known["low"].to_numpy())
    con.execute("DELETE FROM event_keys")
    for number, start in enumerate(range(0, count, RUN_KEYS), start=1):
        high, low = rng.integers(0, 2**64, (2, min(RUN_KEYS, count - start)), np.uint64)
        keys = Keys128.concatenated([part, Keys128(high, low)]).sorted().distinct()
        run = write_run(writer.store.layout.keys, number, [keys])
        assert run is not None
        con.execute("INSERT INTO key_runs VALUES (?, ?, ?)", [number, run.name, run.keys])
        part = Keys128(high[:0], low[:0])


def add_days(writer: Writer, days: int) -> None:
    """So many closed days, each with a file of every partition."""
    con, silver = writer.store.con, writer.store.layout.silver
    row = con.execute("SELECT event_date FROM chunks GROUP BY 1 ORDER BY sum(row_count) DESC LIMIT 1").fetchone()
    assert row is not None
    model: date = row[0]
    chunks = con.execute("SELECT dataset, path FROM chunks WHERE event_date = ?", [model]).fetchall()
    for number in range(1, days + 1):
        day = model - timedelta(days=1 + number)
        for _dataset, path in chunks:
            copy = silver / path.replace(f"event_date={model}", f"event_date={day}")
            copy.parent.mkdir(parents=True, exist_ok=True)
            os.link(silver / path, copy)
    con.execute(
        """INSERT INTO chunks SELECT * EXCLUDE (n) REPLACE (event_date - (1 + n)::INTEGER AS event_date,
            replace(path, 'event_date=' || event_date, 'event_date=' || (event_date - (1 + n)::INTEGER)) AS path)
        FROM chunks, range(1, ?) days(n) WHERE event_date = ?""",
        [days + 1, model],
    )
    con.execute(
        "INSERT INTO dates SELECT ?::DATE - (1 + n)::INTEGER, 0, 0, 0 FROM range(1, ?) days(n)", [model, days + 1]
    )


def measure(root: Path, batches: int) -> Result:
    """Medians over the batches."""
    lines = [line for file in sorted((root / "old").rglob("*.jsonl")) for line in file.read_bytes().splitlines(True)]
    spool = Spool(root / "raw" / "new")
    started = time.perf_counter()
    with closing(Writer.open(settings_of(root), Metrics(), command="bench")) as writer:
        writer.scan()
        start = 1000 * (time.perf_counter() - started)
        spool.paths[:] = [b"new/" + path for path in spool.paths]
        taken: dict[str, list[float]] = {"fresh": [], "duplicates": [], "gold": [], "publish": []}
        for number in range(WARM_UP + batches):
            taken["fresh"].append(ingest(writer, spool, BATCH)[1])
            taken["publish"].append(timed(writer.publish))
            taken["gold"].append(timed(lambda: writer.refresh_gold(writer.store.con)))
            taken["duplicates"].append(
                ingest_again(writer, root, number, lines[(1 + number) * BATCH : (2 + number) * BATCH])
            )
        row = writer.store.con.execute("SELECT sum(keys) FROM key_runs").fetchone()
        assert row is not None
        key_bytes = sum(file.stat().st_size for file in writer.store.layout.keys.iterdir())
    return {
        **{f"{name}_ms": statistics.median(values[WARM_UP:]) for name, values in taken.items()},
        "start_ms": start,
        "rss_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "key_bytes_per_event": key_bytes / row[0],
    }


def ingest_again(writer: Writer, root: Path, number: int, lines: list[bytes]) -> float:
    path = f"again/somebody/telemetry-{number}.jsonl"
    file = root / "raw" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join(lines))
    writer.scan()
    started = time.perf_counter()
    done = writer.ingest()
    taken = 1000 * (time.perf_counter() - started)
    assert done is not None
    assert (done.accepted, done.duplicates) == (0, len(lines)), done
    return taken


def timed(action: object) -> float:
    assert callable(action)
    started = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - started)


def child(*arguments: str) -> str:
    return subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def one(events: int, options: argparse.Namespace) -> Result:
    root = Path(tempfile.mkdtemp(prefix="piper-history-"))
    try:
        child("--make", str(events), "--root", str(root))
        found: Result = json.loads(child("--measure", "--root", str(root), "--batches", str(options.batches)))
        return found
    finally:
        if not options.keep:
            shutil.rmtree(root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=1_000_000)
    parser.add_argument("--large", type=int, default=50_000_000)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--keep", action="store_true", help="leave the data roots where they are made")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    if options.make:
        make(options.root, options.make)
    elif options.measure:
        print(json.dumps(measure(options.root, options.batches)))
    else:
        small, large = one(options.small, options), one(options.large, options)
        if options.json:
            print(json.dumps({"small": small, "large": large}))
            return
        print(f"| | {options.small:,} events | {options.large:,} events | ratio |\n| --- | ---: | ---: | ---: |")
        for name, value in small.items():
            print(f"| {name} | {value:.1f} | {large[name]:.1f} | {large[name] / value:.2f} |")


if __name__ == "__main__":
    main()
