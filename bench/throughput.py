"""One-shot ingest against DuckDB's bare copy of the same files: wall time, CPU time and peak memory of each.

    python bench/throughput.py [--events 400000] [--repeats 3] [--threads N] [--spool DIR] [--json]

The spool: one file per writer (50 hosts × 4 users) of simulated nested events of one UTC day; 2 lines in 1,000 are
repeated and none is malformed, for the bare copy stops at such a line. `--spool` keeps it there, or reuses it. The
contestants take turns, each in a fresh process on a fresh directory with the same number of DuckDB threads:

bare        COPY (SELECT *, CAST(occurred_at_utc AS DATE) AS event_date FROM read_json(…)) TO … (FORMAT parquet,
            PARTITION_BY (event_date, event_type)): one dataset, no validation, no dedupe, no fsync. The columns are
            detected, with union_by_name: without it DuckDB looks at too few of these files and then fails
bare_named  the same, told the columns, nested ones staying JSON text: the fastest that DuckDB can be
piper       `piper ingest --json`: everything on

CPU and memory are the child's own (wait4), the start of Python and the imports included. Numbers are medians.
`interpreter` is the memory of a process that has only imported what `piper ingest` does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import duckdb

from piper.demo.simulate import DAY_SECONDS, SimulateOptions, simulate

BARE = """
import sys, duckdb
spool, out, threads, columns = sys.argv[1:]
duckdb.execute(f"SET threads = {threads}")
duckdb.execute(f'''
    COPY (
        SELECT *, CAST(occurred_at_utc AS DATE) AS event_date
        FROM read_json('{spool}/*/*/*.jsonl', format = 'newline_delimited', {columns})
    ) TO '{out}' (FORMAT parquet, PARTITION_BY (event_date, event_type))''')
"""
TEXTS = ("schema_version", "event_id", "event_type", "status")
OBJECTS = ("pipeline", "host", "session", "payload", "metrics", "scope", "error")
COLUMNS = dict.fromkeys(TEXTS, "VARCHAR") | {"occurred_at_utc": "TIMESTAMP"} | dict.fromkeys(OBJECTS, "JSON")


@dataclass(frozen=True)
class Run:
    """What one child cost, and how many rows it left."""

    wall_seconds: float
    cpu_seconds: float
    peak_mib: float
    rows: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=400_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--spool", type=Path, help="where to keep the spool; reused when it holds that many events")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="piper-throughput-") as temporary:
        work = Path(temporary)
        spool = (options.spool or work / "spool").absolute()
        facts = make_spool(spool, options.events)
        warm_page_cache(spool)
        contestants: dict[str, Callable[[Path, Path, int], Run]] = {
            "bare": partial(run_bare, "union_by_name = true"),
            "bare_named": partial(run_bare, f"columns = {COLUMNS}"),
            "piper": run_piper,
        }
        runs: dict[str, list[Run]] = {name: [] for name in contestants}
        for turn in range(options.repeats):
            for name, contestant in contestants.items():
                runs[name].append(contestant(spool, work / f"{name}-{turn}", options.threads))
                shutil.rmtree(work / f"{name}-{turn}")
    report(facts, options.threads, runs, as_json=options.json)


def make_spool(spool: Path, events: int) -> dict[str, int]:
    """Simulate the spool, or find it made; returns the simulator's counts."""
    facts = spool.with_name(f"{spool.name}.facts.json")
    if facts.exists() and spool.is_dir():
        known: dict[str, int] = json.loads(facts.read_text())
        if known["valid"] == events:
            return known
    if spool.exists():
        sys.exit(f"{spool} is there and is not a spool of {events:,} events that this benchmark made")
    # A clock that stands at midnight: the one past day is one UTC day, so that every writer has one file.
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
    assert midnight % DAY_SECONDS == 0
    options = SimulateOptions(
        spool, hosts=50, users=4, rate=0, events=events, days=1, dialect="nested", malformed_ratio=0.0
    )
    summary = asdict(simulate(options, clock=lambda: midnight))
    facts.write_text(json.dumps(summary))
    return summary


def warm_page_cache(spool: Path) -> None:
    for path in spool.glob("*/*/*.jsonl"):
        path.read_bytes()


def run_bare(columns: str, spool: Path, out: Path, threads: int) -> Run:
    command = [sys.executable, "-c", BARE, str(spool), str(out), str(threads), columns]
    wall, cpu, peak = measured(command, dict(os.environ))
    rows = duckdb.execute(f"SELECT count(*) FROM read_parquet('{out}/**/*.parquet')").fetchone()
    return Run(wall, cpu, peak, rows[0] if rows else 0)


def run_piper(spool: Path, out: Path, threads: int) -> Run:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PIPER_")}
    settings = {
        "PIPER_PATHS__RAW_ROOT": str(spool),
        "PIPER_PATHS__DATA_ROOT": str(out),
        "PIPER_DUCKDB__THREADS": str(threads),
    }
    wall, cpu, peak = measured([sys.executable, "-m", "piper", "ingest", "--json"], clean | settings)
    with duckdb.connect(str(out / "warehouse" / "telemetry.duckdb"), read_only=True) as con:
        rows = con.execute("SELECT count(*) FROM silver_events").fetchone()
    return Run(wall, cpu, peak, rows[0] if rows else 0)


def interpreter_mib() -> float:
    """Peak memory of a Python that has piper's modules loaded and nothing done."""
    program = "import piper.cli, piper.oneshot; print(open('/proc/self/status').read())"
    status = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, float, float]:
    """Run to the end: wall seconds, CPU seconds, peak resident MiB."""
    started = time.perf_counter()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.stderr is not None
    errors = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(command[:4])} … ended with {child.returncode}:\n{errors.decode()[-4000:]}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def report(facts: dict[str, int], threads: int, runs: dict[str, list[Run]], *, as_json: bool) -> None:
    medians = {
        name: {
            field: statistics.median(getattr(run, field) for run in of)
            for field in ("wall_seconds", "cpu_seconds", "peak_mib", "rows")
        }
        for name, of in runs.items()
    }
    for of in medians.values():
        of["events_per_second"] = facts["lines"] / of["wall_seconds"]
    piper = medians["piper"]
    interpreter = interpreter_mib()
    ratios = {
        f"piper/{name}": {
            "events_per_second": piper["events_per_second"] / bare["events_per_second"],
            "wall": piper["wall_seconds"] / bare["wall_seconds"],
            "cpu": piper["cpu_seconds"] / bare["cpu_seconds"],
            "memory": piper["peak_mib"] / bare["peak_mib"],
        }
        for name, bare in medians.items()
        if name != "piper"
    }
    if as_json:
        every = {name: [asdict(run) for run in of] for name, of in runs.items()}
        found = {"spool": facts, "threads": threads, "median": medians, "ratio": ratios, "runs": every}
        print(json.dumps(found | {"interpreter_mib": interpreter}))
        return
    size = f"{facts['lines']:,} lines, {facts['bytes'] / 1e6:,.0f} MB, {facts['files']} files"
    print(f"{size}; {threads} threads; DuckDB {duckdb.__version__}; median of {len(runs['piper'])}\n")
    print("| | events/s | wall | CPU | peak memory | rows |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, of in medians.items():
        print(
            f"| {name} | {of['events_per_second']:,.0f} | {of['wall_seconds']:.2f} s | {of['cpu_seconds']:.2f} s"
            f" | {of['peak_mib']:,.0f} MiB | {of['rows']:,.0f} |"
        )
    for name, ratio in ratios.items():
        print(
            f"| {name} | **{ratio['events_per_second']:.2f}** | {ratio['wall']:.2f} | {ratio['cpu']:.2f}"
            f" | {ratio['memory']:.2f} | |"
        )
    above = piper["peak_mib"] - interpreter
    print(f"\ninterpreter: {interpreter:.0f} MiB; piper's peak is {above:.0f} MiB above")


if __name__ == "__main__":
    main()
