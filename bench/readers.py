"""What 20 open dashboards do to ingest, and what their queries take, beside a long history.

    python bench/history.py --keep DIR
    python bench/readers.py DIR/large [--readers 20] [--refresh-seconds 10] [--rate 200] [--seconds 60] [--json]

disk       bytes of silver (all datasets), and of the lines that it came from, an event; files a partition
queries    every query of every dashboard in grafana/dashboards for the range that it opens with, one after the other,
           by DuckDB 1.5.4
freshness  append → visible in silver (to a reader that looks every 500 ms, which the numbers include) of live events
           from 50 writers, without any other reader, then with `--readers` connections in one process (as in
           Grafana), each of which runs all queries of one dashboard every `--refresh-seconds`; the dashboards' own
           interval is a minute and more. The readers share piperd's cores.

Promised: at most 0.15 of the raw bytes on disk, one file a partition and closed day, each query within 1 s, and a p99
with the readers of at most twice the one without. The data root gets the live events as well.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "grafana")]

import duckdb  # noqa: E402
from bench.freshness import cpu_seconds, spread, write_events  # noqa: E402
from bench.gold import queries_of_dashboards, seconds_of  # noqa: E402
from bench.history import HISTORY  # noqa: E402
from bench.idle import Visible, start, wait_ready  # noqa: E402
from tests.support.reader_engine import reader_environment, reader_site  # noqa: E402

SETTLE_SECONDS = 20.0
POLL_SECONDS = 0.5
"""Each look of the reader that measures lists the directories of all days: more looks would be a load of their own."""
PATIENCE_SECONDS = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="directory with raw/ and data/, as bench/history.py leaves them")
    parser.add_argument("--readers", type=int, default=20)
    parser.add_argument("--refresh-seconds", type=float, default=10.0)
    parser.add_argument("--writers", type=int, default=50)
    parser.add_argument("--rate", type=float, default=200.0, help="live events a second over all writers")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each of the two runs lasts")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    catalog = options.root / "data" / "warehouse" / "telemetry.duckdb"
    if not catalog.exists():
        parser.error(f"{options.root} holds no data root: python bench/history.py --keep DIR makes {options.root}")
    site = reader_site()
    result: dict[str, Any] = {"disk": disk(options.root)}
    queries = queries_of_dashboards(catalog, datetime.now(UTC))
    result["queries"] = {uid: seconds_of(site, catalog, by_panel) for uid, by_panel in queries.items()}
    with tempfile.TemporaryDirectory(prefix="piper-readers-") as temporary:
        file = Path(temporary) / "load.json"
        load = [list(by_panel.values()) for by_panel in queries.values()]
        file.write_text(json.dumps({"catalog": str(catalog), "dashboards": load}))
        with start(options.root, "poll") as daemon:
            wait_ready(daemon)
            result["alone"] = freshness(options, daemon.pid)
            with readers(options, site, file) as told:
                result["with readers"] = freshness(options, daemon.pid)
            result["with readers"] |= told
            result["exit code"] = daemon.stop()
    p99 = [result[name]["append → silver, s"]["p99"] for name in ("alone", "with readers")]
    result["p99 ratio"] = round(p99[1] / p99[0], 2)
    print(json.dumps(result)) if options.json else report(result)


def disk(root: Path) -> dict[str, float]:
    data = root / "data"
    files = [path for path in (data / "silver").rglob("*.parquet") if ".staging" not in path.parts]
    size, partitions = sum(path.stat().st_size for path in files), {path.parent for path in files}
    with duckdb.connect(str(data / "warehouse" / "telemetry.duckdb"), read_only=True) as con:
        row = con.execute("SELECT count(*) FROM silver_events").fetchone()
    events = int(row[0]) if row else 0
    lines = (root / "raw" / HISTORY).read_bytes()
    raw = len(lines) / lines.count(b"\n")
    return {
        "events": events,
        "bytes an event": round(size / events, 1),
        "raw bytes an event": round(raw, 1),
        "ratio": round(size / events / raw, 3),
        "files a partition": round(len(files) / len(partitions), 2),
    }


def freshness(options: argparse.Namespace, pid: int) -> dict[str, Any]:
    """Live events for `--seconds`, after a warm-up of SETTLE_SECONDS that brings the new files into view."""
    seed = time.time_ns()  # what is in this data root already would be duplicates
    raw = options.root / "raw" / f"live-{seed}"
    with Visible(options.root / "data", "TRUE", poll_seconds=POLL_SECONDS) as visible:
        cpu, started = cpu_seconds(pid), time.monotonic()
        appended = write_events(raw, options.writers, options.rate, SETTLE_SECONDS + options.seconds, seed=seed)
        wall = time.monotonic() - started
        cpu = cpu_seconds(pid) - cpu
        counted = {key: at for key, at in appended.items() if at - started >= SETTLE_SECONDS}
        visible.wait_for(counted, PATIENCE_SECONDS)
    return {
        "append → silver, s": spread([visible.at[key] - at for key, at in counted.items() if key in visible.at]),
        "never visible": len(counted.keys() - visible.at.keys()),
        "its queries, s": spread(visible.query_seconds),
        "failed queries": len(visible.failed),
        "piperd CPU s per s": round(cpu / wall, 3),
    }


@contextmanager
def readers(options: argparse.Namespace, site: Path, load: Path) -> Iterator[dict[str, Any]]:
    """The dashboards in a process of their own; what they did is in the dictionary afterwards."""
    command = [sys.executable, str(Path(__file__).with_name("reader_load.py")), str(load)]
    command += [str(options.readers), str(options.refresh_seconds)]
    process = subprocess.Popen(
        command, env=reader_environment(site), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    told: dict[str, Any] = {}
    try:
        yield told
        out, _ = process.communicate("", timeout=PATIENCE_SECONDS)
        told |= json.loads(out)
    finally:
        process.kill()
        process.wait()


def report(result: dict[str, Any]) -> None:
    for name, facts in result.items():
        if name == "queries":
            for uid, seconds in facts.items():
                slowest = max(seconds, key=lambda panel: seconds[panel])
                print(f"{uid}: {len(seconds)} queries in {sum(seconds.values()):.2f} s;"
                      f" the slowest {seconds[slowest]:.2f} s ({slowest})")  # fmt: skip
        elif isinstance(facts, dict):
            print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in facts.items()))
        else:
            print(f"{name}: {facts}")


if __name__ == "__main__":
    main()
