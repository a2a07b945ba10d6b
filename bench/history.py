"""What years of history cost: the same work beside 1,000,000 and beside 50,000,000 events, and the ratio of the two.

    python bench/history.py [--small 10] [--large 500] [--per-day 100000] [--batches 40] [--keep DIR] [--json]

A data root is given `--small` days of `--per-day` events, and another one `--large` days. The first day is ingested
from lines; the others are that day again, under other ids and dates, and only their parsing is left out: dedupe, keys
and their runs, seals into one chunk a partition and day, publish and gold are piper's own code. Then, beside each of
the two and in a fresh process:

fresh        a batch of 1,000 new events of today: read, parse, exact dedupe against all history, commit
duplicates   a batch of 1,000 events of the first day, written again: all of them must be recognized, or it exits with 1
publish      the tail that brings a fresh batch to readers
gold         a refresh of all models after a fresh batch
start        from the start of piperd to ready, in seconds of the wall
memory       MiB resident after all that (and the peak), of the process that did it

Costs are CPU milliseconds of the process, medians of `--batches`; `duplicates/fresh` compares the first two.
Promised: each ratio of large to small is at most 1.3, and duplicates cost at most 5 times a fresh batch.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import structlog  # noqa: E402
from bench.batch import Spool  # noqa: E402

from piper.demo.events import Studio  # noqa: E402
from piper.demo.lines import Origin, encode, record  # noqa: E402
from piper.demo.process import DaemonProcess  # noqa: E402
from piper.ops.metrics import Metrics  # noqa: E402
from piper.settings import Settings  # noqa: E402
from piper.settings_sources import load_settings  # noqa: E402
from piper.silver.commit import commit  # noqa: E402
from piper.spool.tail import Batch  # noqa: E402
from piper.writer import Writer  # noqa: E402

BATCH = 1_000
WARM_UP = 5
HISTORY = "ws900.studio.example/artist900/telemetry-900.jsonl"
AGAIN = "ws901.studio.example/artist901/telemetry-901.jsonl"
MATTERS = ("fresh_ms", "duplicates_ms", "publish_ms", "gold_ms", "start_s", "memory_mib")
"""What is to be the same in every year."""


def settings_of(root: Path, **more: str) -> Settings:
    environment = {"PIPER_PATHS__RAW_ROOT": str(root / "raw"), "PIPER_PATHS__DATA_ROOT": str(root / "data"), **more}
    return load_settings(env=environment, cwd=root).settings


# ---- making a history ------------------------------------------------------------------------------------------------


def first_day(days: int, count: int) -> list[bytes]:
    """Lines of the oldest day."""
    rng = Random(7)
    studio = Studio(rng, error_ratio=0.06)
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=days)
    origin = Origin("ws900.studio.example", "artist900", "Linux", "5.14", 900, "s", flat=False, skew_seconds=0)
    times = (midnight.timestamp() + 86_399 * index / count for index in range(count))
    return [encode(record(studio.next_event(at), at, origin, rng)) for at in times]


def make(root: Path, days: int, per_day: int, say: Callable[[str], None]) -> None:
    """A data root with so many closed days, compacted, with gold, and nothing in its tail."""
    lines = first_day(days, per_day)
    file = root / "raw" / HISTORY
    file.parent.mkdir(parents=True)
    file.write_bytes(b"".join(lines))
    settings = settings_of(
        root, PIPER_INGEST__BATCH_EVENTS_MAX="1000000", PIPER_INGEST__BATCH_BYTES_MAX=str(1 << 30),
        PIPER_INGEST__SEAL_EVENTS_MAX=str(per_day),
    )  # fmt: skip
    with closing(Writer.open(settings, Metrics(), command="bench")) as writer:
        writer.scan()
        done = writer.ingest()
        assert done is not None
        assert done.accepted == per_day
        con, store = writer.store.con, writer.store
        con.execute("CREATE TABLE work.first_day AS FROM work.parsed")
        for day in range(1, days):
            con.execute("TRUNCATE work.parsed")
            con.execute(
                f"""INSERT INTO work.parsed SELECT * REPLACE (
                    md5(event_id || '{day}') AS event_id, md5_number(md5(event_id || '{day}')) AS key,
                    event_date + {day} AS event_date,
                    occurred_at_utc + INTERVAL {day} DAY AS occurred_at_utc) FROM work.first_day"""
            )
            now = datetime.now(UTC).replace(tzinfo=None)
            assert commit(store, Batch(), [], now=now, seal=True).accepted == per_day
            if day % 50 == 0:
                say(f"{day} of {days} days")
        con.execute("DROP TABLE work.first_day")
        while store.keys.merge(con):
            pass
        writer.publish()
        say("gold")
        writer.refresh_gold(store.cursor())


# ---- measuring beside it ---------------------------------------------------------------------------------------------


def cpu_ms(action: Callable[[], Any]) -> float:
    started = time.process_time()
    action()
    return 1000 * (time.process_time() - started)


def measure(root: Path, days: int, per_day: int, batches: int) -> dict[str, float]:
    """All numbers of one history. In a process of its own, for the sake of the memory."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    old = first_day(days, per_day)[: BATCH * (WARM_UP + batches)]
    old = [line for start in range(0, len(old), BATCH) for line in old[start : start + BATCH]]
    cost: dict[str, list[float]] = {"fresh": [], "duplicates": [], "publish": [], "gold": []}
    spool = Spool(root / "raw")
    again = root / "raw" / AGAIN
    again.parent.mkdir(parents=True)
    again.touch()
    settings = settings_of(root, PIPER_INGEST__SEAL_EVENTS_MAX="1000000")
    with closing(Writer.open(settings, Metrics(), command="bench")) as writer:
        writer.scan()
        gold = writer.store.cursor()
        for _ in range(WARM_UP + batches):
            for path in spool.append(BATCH):
                writer.tailer.look(path)
            cost["fresh"].append(cpu_ms(lambda: expect(writer, accepted=BATCH)))
            cost["publish"].append(cpu_ms(writer.publish))
            cost["gold"].append(cpu_ms(lambda: writer.refresh_gold(gold)))
            with again.open("ab") as stream:
                stream.write(b"".join(old[:BATCH]))
            del old[:BATCH]
            writer.tailer.look(AGAIN.encode())
            cost["duplicates"].append(cpu_ms(lambda: expect(writer, accepted=0)))
            writer.publish()
            writer.refresh_gold(gold)
        keys_bytes = writer.store.keys.size_bytes(writer.store.con)
        gc.collect()
        memory = memory_mib()
        gold.close()
    found = {f"{name}_ms": round(statistics.median(values[WARM_UP:]), 2) for name, values in cost.items()}
    silver = [path.stat().st_size for path in (root / "data" / "silver").rglob("[0-9]*.parquet")]
    first = [
        *(root / "data" / "silver").glob(f"*/event_date={datetime.now(UTC).date() - timedelta(days=days)}/**/*.parquet")
    ]
    found |= {
        "memory_mib": memory["VmRSS"],
        "peak_mib": memory["VmHWM"],
        "duplicates/fresh": round(found["duplicates_ms"] / found["fresh_ms"], 2),
        "silver_bytes_per_event": round(sum(silver) / (days * per_day), 1),
        "key_bytes_per_event": round(keys_bytes / (days * per_day), 1),
        "chunks_of_first_day": len(first),
        "partitions_of_first_day": len({path.parent for path in first}),
    }
    return found


def expect(writer: Writer, *, accepted: int) -> None:
    done = writer.ingest()
    if done is None or done.accepted != accepted or done.duplicates != BATCH - accepted:
        raise SystemExit(f"not exact: {done}")


def memory_mib() -> dict[str, float]:
    pairs = (line.split() for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines())
    return {pair[0][:-1]: round(int(pair[1]) / 1024) for pair in pairs if pair and pair[0] in {"VmRSS:", "VmHWM:"}}


def seconds_to_ready(root: Path) -> float:
    """Of a piperd on this data root; the median of three starts."""
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        with DaemonProcess.start(root / "raw", root / "data", root / "piperd.log") as daemon:
            while not daemon.ready:
                if daemon.exit_code is not None:
                    raise SystemExit((root / "piperd.log").read_text("utf-8"))
                time.sleep(0.02)
            taken.append(time.perf_counter() - started)
            daemon.stop()
    return round(statistics.median(taken), 2)


def beside(days: int, options: argparse.Namespace, root: Path) -> dict[str, float]:
    started = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - started:5.0f} s  {days} days: {text}", file=sys.stderr, flush=True)

    if not (root / "data").exists():
        make(root, days, options.per_day, say)
    say("measuring")
    found = {"start_s": seconds_to_ready(root)}
    done = subprocess.run(
        [sys.executable, __file__, "--measure", root, "--small", str(days), "--per-day", str(options.per_day),
         "--batches", str(options.batches)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    return found | json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=10, help="days of the one history")
    parser.add_argument("--large", type=int, default=500, help="days of the other one")
    parser.add_argument("--per-day", type=int, default=100_000, help="events of a day; at least 1,000 a batch")
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--keep", type=Path, help="make the data roots there and leave them (they must not be there)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.per_day < BATCH * (WARM_UP + options.batches):
        parser.error(f"--per-day must be at least {BATCH * (WARM_UP + options.batches)} for so many batches")
    if options.measure:
        print(json.dumps(measure(options.measure, options.small, options.per_day, options.batches)))
        return
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    with tempfile.TemporaryDirectory(prefix="piper-history-") as temporary:
        base = options.keep or Path(temporary)
        found = {}
        for name, days in (("small", options.small), ("large", options.large)):
            root = base / name
            root.mkdir(parents=True)
            found[name] = beside(days, options, root)
    ratios = {name: round(found["large"][name] / found["small"][name], 2) for name in MATTERS}
    if options.json:
        print(json.dumps(found | {"ratios": ratios, "events": {n: d * options.per_day for n, d in
              (("small", options.small), ("large", options.large))}}))  # fmt: skip
        return
    events = [f"{days * options.per_day:,} events" for days in (options.small, options.large)]
    print(f"| | {events[0]} | {events[1]} | ratio |\n| --- | ---: | ---: | ---: |")
    for name, value in found["small"].items():
        print(f"| {name} | {value} | {found['large'][name]} | {ratios.get(name, '')} |")


if __name__ == "__main__":
    main()
