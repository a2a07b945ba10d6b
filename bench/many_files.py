"""What a file costs: as many events in many small files and in few large ones, each ingested in one shot.

    python bench/many_files.py [--files 20000] [--events-per-file 50] [--large 20] [--repeats 3] [--json]

Two spools of the same events: `--files` files of `--events-per-file` events, and the same number of events in `--large`
files. `piper ingest --json` reads each in turn, in a fresh process into a fresh data root with everything on. Events
per second, CPU seconds and peak memory are the child's own (wait4), Python's start included; numbers are medians.

    ratio    events/s of many files / of few: 1 when a file costs nothing. Promised: at least 0.5
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from dataclasses import asdict
from itertools import islice
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from bench.lines import Lines, spool_paths  # noqa: E402
from bench.throughput import Run, run_piper, warm_page_cache  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--events-per-file", type=int, default=50)
    parser.add_argument("--large", type=int, default=20, help="how many files hold the same events in the other spool")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    events = options.files * options.events_per_file
    with tempfile.TemporaryDirectory(prefix="piper-many-files-") as temporary:
        work = Path(temporary)
        spools = {
            "many": make_spool(work / "many", options.files, options.events_per_file),
            "few": make_spool(work / "few", options.large, events // options.large),
        }
        for spool in spools.values():
            warm_page_cache(spool)
        runs: dict[str, list[Run]] = {name: [] for name in spools}
        for turn in range(options.repeats):
            for name, spool in spools.items():
                runs[name].append(run_piper(spool, work / f"data-{turn}", options.threads))
                shutil.rmtree(work / f"data-{turn}")
    report(options.files, events, runs, as_json=options.json)


def make_spool(raw: Path, files: int, events_per_file: int) -> Path:
    """`files` files of that many events each."""
    lines = Lines().each()
    for path in spool_paths(raw, files):
        path.write_bytes(b"".join(islice(lines, events_per_file)))
    return raw


def report(files: int, events: int, runs: dict[str, list[Run]], *, as_json: bool) -> None:
    rates = {name: events / statistics.median(run.wall_seconds for run in of) for name, of in runs.items()}
    cpu = {name: statistics.median(run.cpu_seconds for run in of) for name, of in runs.items()}
    peak = {name: statistics.median(run.peak_mib for run in of) for name, of in runs.items()}
    ratio = {"events_per_second": rates["many"] / rates["few"], "cpu": cpu["many"] / cpu["few"]}
    if as_json:
        every = {name: [asdict(run) for run in of] for name, of in runs.items()}
        print(json.dumps({"files": files, "events": events, "events_per_second": rates, "ratio": ratio, "runs": every}))
        return
    print(f"{events:,} events in {files:,} files and in few; median of {len(runs['many'])}\n")
    print("| | events/s | CPU | peak memory |\n| --- | ---: | ---: | ---: |")
    for name in runs:
        print(f"| {name} | {rates[name]:,.0f} | {cpu[name]:.2f} s | {peak[name]:,.0f} MiB |")
    print(f"| ratio | **{ratio['events_per_second']:.2f}** | {ratio['cpu']:.2f} | {peak['many'] / peak['few']:.2f} |")


if __name__ == "__main__":
    main()
