"""Where the time of a one-shot ingest goes: seconds of the wall and of CPU in each of its stages.

    python bench/stages.py [--events 400000] [--spool DIR] [--json]

`piper ingest` of the spool of bench/throughput.py (`--spool` keeps it there, or reuses it) in this process, with a
clock around each stage. Stages that are part of another are set in below it. CPU is that of the whole process
meanwhile, so `cores` says how well a stage uses the machine; what runs beside a stage in another thread counts in it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from functools import wraps
from io import StringIO
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from bench.throughput import make_spool  # noqa: E402

from piper import cli, intake, writer  # noqa: E402
from piper.silver import commit  # noqa: E402

STAGES: dict[str, tuple[Any, str]] = {
    "open": (writer.Writer, "open"),
    "parse": (intake.Intake, "gather"),
    "  read": (intake.Intake, "_next_slice"),
    "commit": (writer.Writer, "_commit"),
    "  dedupe": (commit, "keep_first"),
    "  chunks": (commit, "stage_chunks"),
    "  transaction": (commit, "_transaction"),
    "  reveal": (commit, "reveal"),
    "gold": (writer.Writer, "refresh_gold"),
    "publish": (writer.Writer, "publish"),
}


class Clock:
    """Sums up what is spent in functions."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)

    def around(self, owner: Any, name: str, stage: str) -> None:
        """Put itself around a function."""
        inner: Callable[..., Any] = getattr(owner, name)

        @wraps(inner)
        def timed(*arguments: Any, **options: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                return inner(*arguments, **options)
            finally:
                self.wall[stage] += time.perf_counter() - wall
                self.cpu[stage] += time.process_time() - cpu

        setattr(owner, name, timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=400_000)
    parser.add_argument("--spool", type=Path, help="where the spool is kept between runs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    clock = Clock()
    for stage, (owner, name) in STAGES.items():
        clock.around(owner, name, stage)
    with tempfile.TemporaryDirectory(prefix="piper-stages-") as temporary:
        spool = options.spool or Path(temporary, "spool")
        make_spool(spool, options.events)
        os.environ |= {"PIPER_PATHS__RAW_ROOT": str(spool), "PIPER_PATHS__DATA_ROOT": str(Path(temporary, "data"))}
        sys.argv = ["piper", "ingest", "--json"]
        clock.around(cli, "main", "all")
        with redirect_stdout(StringIO()), suppress(SystemExit):
            cli.main()
    stages = ["all", *STAGES]
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if options.json:
        found = {stage.strip(): {"wall_s": clock.wall[stage], "cpu_s": clock.cpu[stage]} for stage in stages}
        print(json.dumps(found | {"peak_mib": peak_mib}))
        return
    print(f"{'':14} {'wall, s':>8} {'CPU, s':>8} {'of CPU':>7} {'cores':>6}")
    for stage in stages:
        wall, cpu = clock.wall[stage], clock.cpu[stage]
        share, cores = cpu / clock.cpu["all"], cpu / wall if wall else 0.0
        print(f"{stage:14} {wall:8.2f} {cpu:8.2f} {share:7.0%} {cores:6.2f}")
    print(f"peak memory {peak_mib:.0f} MiB")


if __name__ == "__main__":
    main()
