"""What a large spool costs at rest: piperd over 100,000 files, in both watch modes, and with 200 of them growing.

    python bench/idle.py [--files 100000] [--seconds 150] [--growing 200] [--growing-seconds 60] [--json]

The spool: `--files` files of two events in 200 directories, ingested once by `piper ingest` before all else.
Then, each in a fresh piperd over that data root:

walk            what a program costs that does nothing else than list all directories and `stat` every file, in Python,
                once a minute
poll, events    nothing grows. Seconds from the start of the process to ready; after a minute to settle, CPU seconds a
                second over `--seconds` (which hold full scans: choose several times their distance, 60 s for 100,000
                files), memory, open files
growing         watch.mode = poll, `--growing` files get one event a second each in turns, and a connected reader polls
                every 50 ms: append → visible in silver (but for the first 620 s, in which ten scans find them), and
                how memory and open files moved over the second half

Promised: at most 0.01 of a core at rest, at most 250 MiB, ready within 5 s; with growing files p99 of at most twice
the poll interval; memory and descriptors flat.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import duckdb

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from bench.freshness import cpu_seconds, spread  # noqa: E402
from bench.lines import Lines, spool_paths  # noqa: E402

from piper.demo.process import DaemonProcess  # noqa: E402

POLL_SECONDS = 0.05
START_SECONDS = 300.0
SETTLE_SECONDS = 60.0
WARM_UP_SECONDS = 620.0
"""A file that was silent for a day is looked at by one scan in ten, and every poll from then on."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=150.0, help="how long to watch it rest")
    parser.add_argument("--settle-seconds", type=float, default=SETTLE_SECONDS)
    parser.add_argument("--growing", type=int, default=200, help="files that get one event a second each; 0: none")
    parser.add_argument("--growing-seconds", type=float, default=60.0)
    parser.add_argument("--modes", nargs="*", default=["poll", "events"], choices=["poll", "events"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="piper-idle-") as temporary:
        root = Path(temporary)
        paths = make_spool(root / "raw", options.files)
        ingest(root)
        result: dict[str, dict[str, object]] = {"walk": {"CPU s per s": round(walk_cpu(root / "raw") / 60, 4)}}
        for mode in options.modes:
            with start(root, mode) as daemon:
                result[mode] = at_rest(daemon, options.settle_seconds, options.seconds)
                result[mode]["exit code"] = daemon.stop()
        if options.growing:
            with start(root, "poll") as daemon:
                result["growing"] = growing(root, daemon, paths[: options.growing], options.growing_seconds)
                result["growing"]["exit code"] = daemon.stop()
    if options.json:
        print(json.dumps({"files": options.files, **result}))
        return
    for name, facts in result.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in facts.items()))


def make_spool(raw: Path, files: int) -> list[Path]:
    lines = Lines().each()
    paths = spool_paths(raw, files)
    long_ago = time.time() - 86_400
    for path in paths:
        path.write_bytes(next(lines) + next(lines))
        os.utime(path, (long_ago, long_ago))
    for directory in {path.parent for path in paths}:
        os.utime(directory, (long_ago, long_ago))
    return paths


def walk_cpu(raw: Path) -> float:
    """CPU seconds of one bare walk; the second of two, so that the file system has everything in memory."""
    for _ in range(2):
        started, directories = time.process_time(), [str(raw)]
        while directories:
            with os.scandir(directories.pop()) as entries:
                found = [(entry.path, entry.stat(follow_symlinks=False).st_mode) for entry in entries]
            directories += [path for path, mode in found if stat.S_ISDIR(mode)]
        taken = time.process_time() - started
    return taken


def ingest(root: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PIPER_")}
    roots = {"PIPER_PATHS__RAW_ROOT": str(root / "raw"), "PIPER_PATHS__DATA_ROOT": str(root / "data")}
    command = [sys.executable, "-m", "piper", "ingest", "--json"]
    subprocess.run(command, env=clean | roots, check=True, stdout=subprocess.DEVNULL)


def start(root: Path, mode: str) -> DaemonProcess:
    return DaemonProcess.start(root / "raw", root / "data", root / "piperd.log", {"PIPER_WATCH__MODE": mode})


def at_rest(daemon: DaemonProcess, settle_seconds: float, seconds: float) -> dict[str, object]:
    ready = wait_ready(daemon)
    start_cpu = cpu_seconds(daemon.pid)
    time.sleep(settle_seconds)
    cpu, started = cpu_seconds(daemon.pid), time.monotonic()
    time.sleep(seconds)
    cpu, wall = cpu_seconds(daemon.pid) - cpu, time.monotonic() - started
    return {
        "start to ready, s": round(ready, 2),
        "CPU s until ready": round(start_cpu, 2),
        "CPU s per s": round(cpu / wall, 4),
        "MiB": resident_mib(daemon.pid),
        "open files": open_files(daemon.pid),
    }


def growing(root: Path, daemon: DaemonProcess, paths: list[Path], seconds: float) -> dict[str, object]:
    wait_ready(daemon)
    visible = Visible(root / "data", "TRUE")
    lines = Lines(seed=1).each()
    files = [os.open(path, os.O_WRONLY | os.O_APPEND) for path in paths]
    appended: dict[str, float] = {}
    with visible:
        cpu, started, count = cpu_seconds(daemon.pid), time.monotonic(), 0
        before = (0, 0)
        while (due := count / len(files)) < WARM_UP_SECONDS + seconds:
            time.sleep(max(0.0, started + due - time.monotonic()))
            line = next(lines)
            os.write(files[count % len(files)], line)
            if due >= WARM_UP_SECONDS:
                appended[event_id(line)] = time.monotonic()
            if due >= WARM_UP_SECONDS + seconds / 2 and before == (0, 0):
                before = resident_mib(daemon.pid), open_files(daemon.pid)
            count += 1
        after = resident_mib(daemon.pid), open_files(daemon.pid)
        cpu, wall = cpu_seconds(daemon.pid) - cpu, time.monotonic() - started
        visible.wait_for(appended, 30.0)
    for file in files:
        os.close(file)
    latency = spread([visible.at[key] - at for key, at in appended.items() if key in visible.at])
    return {
        "files": len(paths),
        "append → silver, s": latency,
        "never visible": len(appended.keys() - visible.at.keys()),
        "p99 / poll interval": round(latency.get("p99", float("nan")) / 1.0, 2),
        "CPU s per s": round(cpu / wall, 3),
        "MiB halfway and at the end": (before[0], after[0]),
        "open files halfway and at the end": (before[1], after[1]),
    }


class Visible:
    """A reader that stays connected, and when it first saw each event (monotonic clock) that `where` holds for."""

    def __init__(self, data: Path, where: str, *, poll_seconds: float = POLL_SECONDS) -> None:
        self.at: dict[str, float] = {}
        self.query_seconds: list[float] = []
        self.failed: list[str] = []
        self._catalog, self._where, self._poll_seconds = data / "warehouse" / "telemetry.duckdb", where, poll_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Visible:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for(self, events: dict[str, float], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while events.keys() - self.at.keys() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def wait_for_count(self, events: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while len(self.at) < events and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _run(self) -> None:
        con = duckdb.connect(str(self._catalog), read_only=True)
        row = con.execute(
            "SELECT coalesce(max(ingested_at_utc), '2000-01-01'::TIMESTAMP) FROM silver_events"
            " WHERE event_date >= current_date - 1"
        ).fetchone()
        since = row[0] if row else None
        while not self._stop.wait(self._poll_seconds):
            asked = time.monotonic()
            try:
                rows = con.execute(
                    "SELECT event_id, ingested_at_utc FROM silver_events WHERE event_date >= current_date - 1"
                    f" AND ingested_at_utc >= ? AND {self._where}",
                    [since],
                ).fetchall()
            except duckdb.Error as error:
                self.failed.append(str(error))
                continue
            now = time.monotonic()
            self.query_seconds.append(now - asked)
            for key, ingested in rows:
                self.at.setdefault(key, now)
                since = max(since, ingested)


def event_id(line: bytes) -> str:
    return str(json.loads(line)["event_id"])


def wait_ready(daemon: DaemonProcess) -> float:
    """Seconds from the start of the process until it says that it is ready."""
    started = time.monotonic()
    wait_until(lambda: daemon.ready, lambda: f"piperd is not ready:\n{daemon.log_tail()}")
    return time.monotonic() - started


def wait_until(holds: Callable[[], bool], message: Callable[[], str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            sys.exit(message())
        time.sleep(POLL_SECONDS)


def resident_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


if __name__ == "__main__":
    main()
