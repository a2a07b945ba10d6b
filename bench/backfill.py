"""What does a backfill do to live ingest, and is its result exact when piperd is killed on the way?

    python bench/backfill.py [--events 1000000] [--days 30] [--rate 100] [--kills 3] [--json]

Simulated events of past days are ingested. Then half of the partitions of silver are lost and the rows of the others
changed, as an earlier piper might have stored them. A real piperd runs, 50 writers append live events, and a reader
that stays connected asks every 50 ms which of them are there:

    normal    nothing else goes on
    backfill  `piper backfill` of all those days, by piperd, from its start to its end
    killed    silver is spoilt again; the same, and piperd is killed with SIGKILL and started anew at even intervals

`normal` and `backfill` give append → visible in silver of the live events, and the ratio of their p99. After both
backfills silver must be what it was before it was spoilt, every column but for when and from which line an event came,
and every live event must be there once: the exit code is 1 if not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import duckdb  # noqa: E402
import structlog  # noqa: E402
from bench.freshness import cpu_seconds, open_spool_file, origin, peak_mib, spread, wait_until  # noqa: E402

from piper.demo.events import Studio  # noqa: E402
from piper.demo.lines import encode, record  # noqa: E402
from piper.demo.process import DaemonProcess  # noqa: E402
from piper.demo.simulate import SimulateOptions, simulate  # noqa: E402
from piper.oneshot import open_writer  # noqa: E402
from piper.settings_sources import load_settings  # noqa: E402
from piper.silver.rewrite import Rewrite, partitions  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

WRITERS = 50
POLL_SECONDS = 0.05
GIVE_UP_SECONDS = 120.0
LIVE = "host_user LIKE 'artist0%'"
EVENTS = f"""SELECT event_date, count(*), count(DISTINCT event_id), bit_xor(hash(event))
    FROM (SELECT * EXCLUDE (ingested_at_utc, source_file, source_offset, source_line) FROM silver_events) AS event
    WHERE NOT {LIVE} GROUP BY event_date ORDER BY event_date"""
DOMAIN = "SELECT event_date, count(*), bit_xor(hash(event)) FROM silver_{} AS event WHERE {} GROUP BY ALL ORDER BY ALL"


class Live:
    """50 writers and a reader, from `with` to its end; `latency` has how long each event took to be visible."""

    def __init__(self, raw: Path, catalog: Path, rate: float) -> None:
        self._catalog, self._rate = catalog, rate
        self._rng = Random(0)
        self._studio = Studio(self._rng, error_ratio=0.06)
        self._origins = [origin(index) for index in range(WRITERS)]
        self._files = [open_spool_file(raw, one) for one in self._origins]
        self.appended: dict[str, float] = {}
        self._seen: dict[str, float] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Write while the block runs; it has ended when all that was written is visible."""
        stop = threading.Event()
        writer = threading.Thread(target=self._write, args=(stop,))
        reader = threading.Thread(target=self._read, args=(stop,))
        self._seen_before = len(self._seen)
        writer.start()
        reader.start()
        try:
            yield
        finally:
            stop.set()
            writer.join()
            reader.join()

    def latency(self) -> dict[str, float]:
        """Of the events of the last run."""
        return spread([at - self.appended[key] for key, at in list(self._seen.items())[self._seen_before :]])

    def missing(self) -> int:
        """Events that never became visible."""
        return len(self.appended.keys() - self._seen.keys())

    def _write(self, stop: threading.Event) -> None:
        started, turn, before = time.monotonic(), 0, len(self.appended)
        while not stop.wait(max(0.0, started + turn / WRITERS - time.monotonic())):
            index, now = turn % WRITERS, time.time()
            turn += 1
            count = int(turn / WRITERS * self._rate) - (len(self.appended) - before)
            records = [record(self._studio.next_event(now), now, self._origins[index], self._rng) for _ in range(count)]
            os.write(self._files[index], b"".join(map(encode, records)))
            at = time.monotonic()
            self.appended.update((one["event_id"], at) for one in records)

    def _read(self, stop: threading.Event) -> None:
        today = datetime.now(UTC).date()
        query = f"SELECT event_id FROM silver_events WHERE event_date >= ? AND {LIVE}"
        deadline = None
        with duckdb.connect(str(self._catalog), read_only=True) as con:
            while deadline is None or (self.missing() and time.monotonic() < deadline):
                rows = con.execute(query, [today]).fetchall()
                at = time.monotonic()
                for (event_id,) in rows:
                    self._seen.setdefault(event_id, at)
                if stop.is_set() and deadline is None:
                    deadline = at + GIVE_UP_SECONDS
                time.sleep(POLL_SECONDS)


def spoil(raw: Path, data: Path) -> None:
    """Every second partition of the history is lost, and the rows of the others are changed."""
    settings = load_settings(env=environment(raw, data), cwd=data).settings
    with open_writer(settings, "bench/backfill.py") as writer:
        con, today = writer.store.con, writer.clock.now().date()
        writer.seal()
        rewrite = Rewrite.begin(writer.store, con)
        found = [partition for partition in partitions(con) if partition.event_date < today]
        for number, partition in enumerate(found):
            if number % 2:
                rewrite.drop(partition)
            else:
                rewrite.replace(
                    con, partition, select=lambda rows: f"SELECT * REPLACE ('?' AS error_code) FROM ({rows})"
                )
        rewrite.commit(now=writer.clock.now(), changed={partition.event_date for partition in found})
        writer.publish()
        writer.refresh_gold(con)


def _as_stored_earlier(rows: str) -> str:
    return f"SELECT * REPLACE ('?' AS error_code) FROM ({rows})"


def content(data: Path, today: str) -> list[list[tuple[Any, ...]]]:
    """What readers see of the history, in a form that can be compared."""
    with duckdb.connect(str(data / "warehouse" / "telemetry.duckdb"), read_only=True) as con:
        views = [name for (name,) in con.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()]
        domains = [view for view in views if view.startswith("silver_") and view != "silver_events"]
        past = f"event_date < DATE '{today}'"
        queries = [EVENTS, *(DOMAIN.format(view.removeprefix("silver_"), past) for view in sorted(domains))]
        return [con.execute(query).fetchall() for query in queries]


def environment(raw: Path, data: Path) -> dict[str, str]:
    return {"PIPER_PATHS__RAW_ROOT": str(raw), "PIPER_PATHS__DATA_ROOT": str(data)}


def piper(raw: Path, data: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "piper", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | environment(raw, data),
    )  # fmt: skip


def start(root: Path) -> DaemonProcess:
    daemon = DaemonProcess.start(root / "raw", root / "data", root / "piperd.log")
    wait_until(lambda: daemon.ready, lambda: f"piperd is not ready:\n{daemon.log_tail()}")
    return daemon


def measure(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    raw, data = root / "raw", root / "data"
    simulate(SimulateOptions(root=raw, hosts=20, users=2, days=options.days, events=options.events, rate=0))
    for file in list(raw.glob("*/*/*.jsonl")):  # the last of these days is today: leave it to the live writers
        os.utime(file)
    ingested = piper(raw, data, "ingest")
    ingested.communicate()
    today = datetime.now(UTC).date().isoformat()
    before = content(data, today)
    result: dict[str, Any] = {"events": sum(row[1] for row in before[0]), "days": len(before[0])}
    spoil(raw, data)
    assert content(data, today) != before
    live = Live(raw, data / "warehouse" / "telemetry.duckdb", options.rate)
    daemon = start(root)
    try:
        with live.running():
            time.sleep(options.seconds)
        result["normal, s"] = live.latency()
        cpu, began = cpu_seconds(daemon.pid), time.monotonic()
        with live.running():
            command = piper(raw, data, "backfill", "--all", "--json")
            out, _ = command.communicate()
            took = time.monotonic() - began
        done = json.loads(out)
        result["backfill, s"] = live.latency()
        result["p99: backfill / normal"] = round(result["backfill, s"]["p99"] / result["normal, s"]["p99"], 2)
        result["backfill"] = {key: done[key] for key in ("added", "replaced", "unchanged", "rejected", "bytes")}
        result["backfill took, s"] = round(took, 1)
        result["piperd CPU s per s"] = round((cpu_seconds(daemon.pid) - cpu) / took, 2)
        result["piperd peak MiB"] = peak_mib(daemon.pid)
        result["exact"] = content(data, today) == before
        daemon.stop()
        spoil(raw, data)
        daemon = start(root)
        began = time.monotonic()
        with live.running():
            for _ in range(options.kills):
                command = piper(raw, data, "backfill", "--all", "--json")
                time.sleep(took / (options.kills + 1))
                os.kill(daemon.pid, 9)
                command.communicate()
                daemon.stop()
                daemon = start(root)
            command = piper(raw, data, "backfill", "--all", "--json")
            out, error = command.communicate()
        result["killed"] = {"times": options.kills, "took, s": round(time.monotonic() - began, 1)}
        result["killed, s"] = live.latency()
        if command.returncode:
            sys.exit(error.decode())
        result["exact after kills"] = content(data, today) == before
        with duckdb.connect(str(data / "warehouse" / "telemetry.duckdb"), read_only=True) as con:
            query = f"SELECT count(*), count(DISTINCT event_id) FROM silver_events WHERE {LIVE}"
            counted = con.execute(query).fetchone()
        result["live events"] = {"written": len(live.appended), "missing": live.missing(), "rows": counted[0]}
        result["live exact"] = counted == (len(live.appended), len(live.appended))
    finally:
        daemon.stop()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--rate", type=float, default=100.0, help="live events a second over 50 writers")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long `normal` is measured")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with tempfile.TemporaryDirectory(prefix="piper-backfill-") as temporary:
        result = measure(Path(temporary), options)
    if options.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            shown = ", ".join(f"{key} {part}" for key, part in value.items()) if isinstance(value, dict) else value
            print(f"{name:28} {shown}")
    sys.exit(0 if result["exact"] and result["exact after kills"] and result["live exact"] else 1)


if __name__ == "__main__":
    main()
