"""How long an appended event takes to be visible, for a DuckDB 1.5.4 reader that stays connected.

    python bench/freshness.py [--seconds 60] [--writers 50] [--rate 200] [--writes] [--reader-site DIR] [--json]

A real piperd with default settings tails a spool on a local disk. Each writer appends whole lines and flushes once a
second, at its own moment; an event's clock starts when its `write` has returned. The reader polls every 50 ms, so every
number includes up to that much of its own. An event is

visible in silver   when a query of silver_events has returned its event_id
visible in gold     when gold_data_quality_daily counts as many events as were visible in silver along with it

Counted besides: failed queries; inconsistent answers (an event that is there twice or goes away again, a total that
goes back); CPU seconds of piperd per second while the writers write, its memory, and its write amplification: bytes
that it wrote to the disk (write_bytes of /proc/<pid>/io) for each byte of the spool. The default length does not reach
a seal (20,000 rows); `--seconds 150` does. `--writes` tells by strace which files the bytes went to; piperd is slower
under it, so the other numbers of such a run count for nothing. A file with DuckDB 1.5.4 is made by pip on first use.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests.support.reader_engine import reader_environment, reader_site  # noqa: E402

from piper.demo.events import Studio  # noqa: E402
from piper.demo.lines import Origin, encode, record  # noqa: E402
from piper.demo.process import DaemonProcess  # noqa: E402
from piper.settings_sources import load_settings  # noqa: E402

POLL_SECONDS = 0.05
FLUSH_SECONDS = 1.0
START_SECONDS = 30.0
KINDS = {
    "/warehouse/.tail": "tail",
    "/warehouse/.gold": "copies of gold",
    "/state/gold": "gold",
    "manifest.duckdb.wal": "manifest's log",
    "manifest": "manifest",
    "/silver/": "chunks",
    "/run_logs/": "run logs",
}
"""What a path has in it: what is told."""
Observation = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--writers", type=int, default=50)
    parser.add_argument("--rate", type=float, default=200.0, help="events a second over all writers")
    parser.add_argument("--writes", action="store_true", help="which files piperd writes, by strace")
    parser.add_argument("--reader-site", type=Path, help="where to keep DuckDB 1.5.4; default .cache/duckdb-1.5.4")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    site = reader_site(options.reader_site)
    with tempfile.TemporaryDirectory(prefix="piper-freshness-") as temporary:
        root = Path(temporary)
        (root / "raw").mkdir()
        with DaemonProcess.start(root / "raw", root / "data", root / "piperd.log") as daemon:
            wait_until(lambda: daemon.ready, lambda: f"piperd is not ready:\n{daemon.log_tail()}")
            result = measure(root, daemon, site, options)
            result["piperd exit code"] = daemon.stop()
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        shown = ", ".join(f"{key} {number}" for key, number in value.items()) if isinstance(value, dict) else value
        print(f"{name:28} {shown}")


def measure(root: Path, daemon: DaemonProcess, site: Path, options: argparse.Namespace) -> dict[str, object]:
    seen_file = root / "seen.jsonl"
    command = [sys.executable, str(Path(__file__).with_name("reader.py"))]
    command += [str(root / "data" / "warehouse" / "telemetry.duckdb"), str(POLL_SECONDS)]
    with seen_file.open("wb") as seen:
        reader = subprocess.Popen(command, env=reader_environment(site), stdin=subprocess.PIPE, stdout=seen, text=True)
    try:
        wait_until(lambda: seen_file.stat().st_size > 0, lambda: "the reader does not start")
        trace = trace_writes(daemon.pid, root / "trace") if options.writes else None
        cpu, written, started = cpu_seconds(daemon.pid), written_bytes(daemon.pid), time.monotonic()
        appended = write_events(root / "raw", options.writers, options.rate, options.seconds)
        wall = time.monotonic() - started
        cpu = cpu_seconds(daemon.pid) - cpu
        memory = resident_mib(daemon.pid)
        reader.communicate(f"{len(appended)}\n")
        written = written_bytes(daemon.pid) - written
        if trace is not None:
            trace.terminate()
            trace.wait()
    finally:
        reader.kill()
        reader.wait()
    raw = sum(path.stat().st_size for path in (root / "raw").rglob("*.jsonl"))
    with seen_file.open() as lines:
        observations = [json.loads(line) for line in lines]
    return {
        "events": f"{len(appended):,} of {options.writers} writers in {wall:.0f} s",
        **evaluate(appended, observations),
        "gold.refresh_seconds": load_settings(env={}, cwd=root).settings.gold.refresh_seconds,
        "piperd CPU s per s": round(cpu / wall, 3),
        "piperd MiB": {"at the end": memory, "peak": peak_mib(daemon.pid)},
        "written / raw bytes": round(written / raw, 2),
        **({"written / raw, by file": writes_by_file(root / "trace", raw)} if options.writes else {}),
        "python": platform.python_version(),
    }


def write_events(raw: Path, writers: int, rate: float, seconds: float, *, seed: int = 0) -> dict[str, float]:
    """Append for that long; when each event_id was on the spool, by the monotonic clock. A seed gives the same ids."""
    rng = Random(seed)
    studio = Studio(rng, error_ratio=0.06)
    origins = [origin(index) for index in range(writers)]
    files = [open_spool_file(raw, one) for one in origins]
    appended: dict[str, float] = {}
    started, turn = time.monotonic(), 0
    while (due := turn * FLUSH_SECONDS / writers) < seconds:
        time.sleep(max(0.0, started + due - time.monotonic()))
        index, now = turn % writers, time.time()
        turn += 1
        count = int(turn * FLUSH_SECONDS / writers * rate) - len(appended)
        records = [record(studio.next_event(now), now, origins[index], rng) for _ in range(count)]
        os.write(files[index], b"".join(map(encode, records)))
        at = time.monotonic()
        appended.update((one["event_id"], at) for one in records)
    for file in files:
        os.close(file)
    return appended


def origin(index: int) -> Origin:
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


def open_spool_file(raw: Path, writer: Origin) -> int:
    directory = raw / writer.hostname / writer.user
    directory.mkdir(parents=True)
    name = time.strftime(f"telemetry-%Y%m%dT%H%M%SZ-{writer.pid}-0001.jsonl", time.gmtime())
    return os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def evaluate(appended: dict[str, float], observations: list[Observation]) -> dict[str, object]:
    """What the reader's observations, in the order of their times, say about every event."""
    in_silver: dict[str, float] = {}
    in_gold: dict[str, float] = {}
    not_in_gold: list[tuple[int, list[str]]] = []
    gold = 0
    for one in observations:
        at: float = one["at"]
        if "new" in one:
            in_silver.update((key, at) for key in one["new"])
            not_in_gold.append((len(in_silver), one["new"]))
        gold = one.get("gold", gold)
        while not_in_gold and not_in_gold[0][0] <= gold:
            in_gold.update((key, at) for key in not_in_gold.pop(0)[1])
    queries = [1000 * one["query_seconds"] for one in observations if "query_seconds" in one]
    failed = [one["failed"] for one in observations if "failed" in one]
    inconsistent = [one["inconsistent"] for one in observations if "inconsistent" in one]
    return {
        "append → silver, s": spread([at - appended[key] for key, at in in_silver.items()]),
        "append → gold, s": spread([at - appended[key] for key, at in in_gold.items()]),
        "never visible": {"silver": len(appended) - len(in_silver), "gold": len(appended) - len(in_gold)},
        "rows at the end": observations[-1].get("rows", "the reader did not finish"),
        "queries": len(queries) + len(failed),
        "failed queries": len(failed),
        "inconsistent answers": len(inconsistent),
        "examples of either": [*failed[:3], *inconsistent[:3]],
        "query, ms": spread(queries),
        "reader's DuckDB": observations[0].get("version"),
    }


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    if not ordered:
        return {}
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(ordered[min(len(ordered) - 1, int(part * len(ordered)))], 3) for name, part in at.items()}


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def resident_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


def written_bytes(pid: int) -> int:
    """Bytes that the process caused to be sent to the disk, in pages; what is deleted before that counts too."""
    return int(Path(f"/proc/{pid}/io").read_text().partition("\nwrite_bytes:")[2].split()[0])


def trace_writes(pid: int, file: Path) -> subprocess.Popen[bytes]:
    calls = "trace=write,pwrite64,writev,pwritev,sendfile,copy_file_range"
    return subprocess.Popen(["strace", "-f", "-y", "-qq", "-s", "0", "-e", calls, "-o", str(file), "-p", str(pid)])


def writes_by_file(trace: Path, raw: int) -> dict[str, float]:
    """Bytes written for each raw byte, by kind of file."""
    written: dict[str, int] = dict.fromkeys([*KINDS.values(), "other"], 0)
    for line in trace.read_text(errors="replace").splitlines():
        if found := re.search(r"\(\d+<([^>]*)>.*= (\d+)$", line):
            kind = next((name for part, name in KINDS.items() if part in found[1]), "other")
            written[kind] += int(found[2])
    return {name: round(size / raw, 2) for name, size in written.items()}


def wait_until(holds: Callable[[], bool], message: Callable[[], str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            sys.exit(message())
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main()
