"""Whether a flood holds up the others: one file grows at 50 MB/s beside 9,999 that get a line now and then.

    python bench/flood.py [--files 10000] [--seconds 30] [--rate-mb 50] [--quiet-rate 50] [--spool-in DIR] [--json]

piperd with watch.mode = poll and otherwise default settings. All files get a line in turn before anything is measured,
so that they are looked at every poll; then events come at `--quiet-rate` a second to the quiet ones, each to another
file. A connected reader asks for their events, and for no others, every 200 ms (which the numbers include):

alone     append → visible in silver without the flood
flood     the same while one file grows at `--rate-mb` (from a process of its own; what the disk takes, if that is less)

`--spool-in` puts the spool on another file system than the data root, as a studio has it (/dev/shm for one): on a disk
that both share, each fsync of piperd's waits until what the flood has written before is on it.

Promised: p99 under the flood of at most twice the poll interval. On a machine whose cores the flood's writer, the
reader and piperd share, the ratio of the two says more than either.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from bench.freshness import cpu_seconds, spread  # noqa: E402
from bench.idle import Visible, event_id, resident_mib, start, wait_ready  # noqa: E402
from bench.lines import Lines, spool_paths  # noqa: E402

QUIET_HOST = "quiet.studio.example"
READER_SECONDS = 0.2
PATIENCE_SECONDS = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each of the two measurements")
    parser.add_argument("--rate-mb", type=float, default=50.0)
    parser.add_argument("--quiet-rate", type=float, default=50.0, help="events a second over all quiet files")
    parser.add_argument("--spool-in", type=Path, help="a directory on the file system that is to hold the spool")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="piper-flood-") as temporary,
        tempfile.TemporaryDirectory(prefix="piper-flood-", dir=options.spool_in) as spool,
    ):
        root = Path(temporary)
        (root / "raw").symlink_to(spool)
        flooded, *quiet = spool_paths(root / "raw", options.files)
        lines = Lines(seed=1, host=QUIET_HOST).each()
        for path in quiet:
            path.write_bytes(next(lines))
        flooded.write_bytes(Lines(1, seed=2).block())  # so that it is polled too: a new file waits for a full scan
        with start(root, "poll") as daemon:
            wait_ready(daemon)
            result: dict[str, object] = {}
            with Visible(root / "data", f"host_hostname = '{QUIET_HOST}'", poll_seconds=READER_SECONDS) as visible:
                visible.wait_for_count(len(quiet), PATIENCE_SECONDS)
                result["alone"] = alone = measure(visible, daemon.pid, quiet, lines, options)
                stop = multiprocessing.Event()
                flood = multiprocessing.Process(target=pour, args=(flooded, options.rate_mb, stop), daemon=True)
                flood.start()
                result["flood"] = under = measure(visible, daemon.pid, quiet, lines, options)
                stop.set()
                flood.join()
                under["flood, MB/s"] = round(flooded.stat().st_size / 1e6 / float(str(under["seconds"])), 1)
                result["failed queries"] = len(visible.failed)
            result["p99 ratio"] = round(under["append → silver, s"]["p99"] / alone["append → silver, s"]["p99"], 2)
    if options.json:
        print(json.dumps(result))
        return
    for name, facts in result.items():
        print(f"{name}: {facts}")


def measure(
    visible: Visible, pid: int, quiet: list[Path], lines: Iterator[bytes], options: argparse.Namespace
) -> dict[str, object]:
    appended: dict[str, float] = {}
    cpu, started, count = cpu_seconds(pid), time.monotonic(), 0
    while (due := count / options.quiet_rate) < options.seconds:
        time.sleep(max(0.0, started + due - time.monotonic()))
        line = next(lines)
        with quiet[count * 7919 % len(quiet)].open("ab", buffering=0) as file:
            file.write(line)
        appended[event_id(line)] = time.monotonic()
        count += 1
    cpu, wall = cpu_seconds(pid) - cpu, time.monotonic() - started
    visible.wait_for(appended, PATIENCE_SECONDS)
    return {
        "seconds": round(time.monotonic() - started, 1),
        "append → silver, s": spread([visible.at[key] - at for key, at in appended.items() if key in visible.at]),
        "never visible": len(appended.keys() - visible.at.keys()),
        "piperd CPU s per s": round(cpu / wall, 2),
        "MiB": resident_mib(pid),
    }


def pour(path: Path, rate_mb: float, stop: multiprocessing.synchronize.Event) -> None:
    """Append whole blocks at that rate until `stop`."""
    lines = Lines(1_500, seed=2)
    with path.open("ab", buffering=0) as file:
        started, written = time.monotonic(), 0
        while not stop.wait(max(0.0, started + written / (rate_mb * 1e6) - time.monotonic())):
            written += file.write(lines.block())
        os.fdatasync(file.fileno())


if __name__ == "__main__":
    main()
