"""What one micro-batch costs: CPU of reading, parsing and committing a few events that 50 writers just appended.

    python bench/batch.py [--batches 30] [--sizes 1,50,1000,5000] [--steps] [--json]

Each batch's events are spread over as many of the 50 files as there are events, in both dialects, on a warehouse with
default settings that has 20,000 events in its tail. No batch is sealed, and nothing is published: these have their own
rhythm. CPU is this process's, all threads; numbers are medians over the batches, the first five left out.

`--steps` also tells the time of every prepared statement in batches of 50.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import structlog

from piper.demo.events import Studio
from piper.demo.lines import Origin, encode, record
from piper.ops.metrics import Metrics
from piper.prepared import Prepared
from piper.settings_sources import load_settings
from piper.writer import Writer

WRITERS = 50
TAIL_EVENTS = 20_000
WARM_UP = 5


class Spool:
    """Files of 50 writers that events can be appended to."""

    def __init__(self, root: Path) -> None:
        self._rng = Random(0)
        self._studio = Studio(self._rng, error_ratio=0.06)
        self._origins = [_origin(index) for index in range(WRITERS)]
        self.paths = [f"{o.hostname}/{o.user}/telemetry-{o.pid}.jsonl".encode() for o in self._origins]
        self._files = [root / path.decode() for path in self.paths]
        for file in self._files:
            file.parent.mkdir(parents=True)
            file.touch()

    def append(self, count: int) -> list[bytes]:
        """Append so many events, one writer after the other; returns the paths of the files that grew."""
        now, lines = time.time(), [b""] * WRITERS
        for number in range(count):
            at = number % WRITERS
            lines[at] += encode(record(self._studio.next_event(now), now, self._origins[at], self._rng))
        for file, text in zip(self._files, lines, strict=True):
            if text:
                with file.open("ab") as appended:
                    appended.write(text)
        return [path for path, text in zip(self.paths, lines, strict=True) if text]


def _origin(index: int) -> Origin:
    return Origin(
        hostname=f"ws{index:03d}.studio.example",
        user=f"artist{index:03d}",
        os="Linux",
        os_release="5.14",
        pid=1_000 + index,
        session_id=str(uuid.UUID(int=index)),
        flat=index % 2 == 1,
        skew_seconds=0,
    )


def ingest(writer: Writer, spool: Spool, count: int) -> tuple[float, float]:
    """(CPU, wall) milliseconds of one batch."""
    for path in spool.append(count):
        writer.tailer.look(path)
    cpu, wall = time.process_time(), time.perf_counter()
    done = writer.ingest()
    assert done is not None
    assert done.accepted == count
    return 1000 * (time.process_time() - cpu), 1000 * (time.perf_counter() - wall)


def measure(writer: Writer, spool: Spool, count: int, batches: int) -> dict[str, float]:
    """Medians for batches of one size."""
    costs = [ingest(writer, spool, count) for _ in range(WARM_UP + batches)][WARM_UP:]
    cpu, wall = (statistics.median(values) for values in zip(*costs, strict=True))
    return {"cpu_ms": round(cpu, 2), "wall_ms": round(wall, 2)}


@contextmanager
def statements() -> Iterator[dict[str, list[float]]]:
    """The milliseconds of every prepared statement, by its beginning, while this lasts."""
    taken: dict[str, list[float]] = defaultdict(list)
    execute = Prepared.execute

    def timed(self: Prepared, sql: str, **values: Any) -> Any:
        started = time.process_time()
        try:
            return execute(self, sql, **values)
        finally:
            taken[" ".join(sql.split())[:90]].append(1000 * (time.process_time() - started))

    with patch.object(Prepared, "execute", timed):
        yield taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--sizes", default="1,50,1000,5000")
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    with tempfile.TemporaryDirectory(prefix="piper-batch-") as temporary:
        root = Path(temporary)
        environment = {
            "PIPER_PATHS__RAW_ROOT": str(root / "raw"),
            "PIPER_PATHS__DATA_ROOT": str(root / "data"),
            "PIPER_INGEST__SEAL_EVENTS_MAX": "1000000",
        }
        spool = Spool(root / "raw")
        settings = load_settings(env=environment, cwd=root).settings
        with closing(Writer.open(settings, Metrics(), command="bench")) as writer:
            writer.scan()
            ingest(writer, spool, TAIL_EVENTS)
            sizes = [int(size) for size in options.sizes.split(",")]
            found = {size: measure(writer, spool, size, options.batches) for size in sizes}
            if options.json:
                print(json.dumps(found))
                return
            print("| events | CPU ms | wall ms |\n| ---: | ---: | ---: |")
            for size, cost in found.items():
                print(f"| {size:,} | {cost['cpu_ms']} | {cost['wall_ms']} |")
            if options.steps:
                with statements() as taken:
                    for _ in range(options.batches):
                        ingest(writer, spool, 50)
                report(taken, options.batches)


def report(taken: dict[str, list[float]], batches: int) -> None:
    print("\n| ms a batch | times | statement |\n| ---: | ---: | --- |")
    for sql, times in sorted(taken.items(), key=lambda item: -sum(item[1])):
        print(f"| {sum(times) / batches:.2f} | {len(times) / batches:.1f} | {sql} |")


if __name__ == "__main__":
    main()
