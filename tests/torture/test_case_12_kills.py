"""Case 12: piperd is killed at random instants while numbered lines arrive, and each number is there exactly once.

The million lines and 200 kills are `python bench/soak.py --lines 1000000 --kills 200` (docs/reliability.md); this is
the same in small: the same writers, readers and account.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.reader_engine import require_reader_site

import piper

SOAK = Path(__file__).parents[2] / "bench" / "soak.py"
LINES, KILLS = 8_000, 6


def test_case_12_every_numbered_line_is_there_once_after_kills_at_random_instants(tmp_path: Path) -> None:
    require_reader_site()
    arguments = (
        "--lines",
        LINES,
        "--kills",
        KILLS,
        "--rate",
        1000,
        "--writers",
        2,
        "--readers",
        1,
        "--spill-keys",
        1000,
    )
    done = subprocess.run(
        [sys.executable, str(SOAK), *map(str, arguments), "--faults", "rotate,rename,next_file,touch,cut", "--json",
         "--root", str(tmp_path / "soak")],
        env=os.environ | {"PYTHONPATH": str(Path(piper.__file__).parents[1])}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    told = json.loads(done.stdout)
    account = told["account"]
    assert (told["SIGKILLs"], account["numbers"]) == (KILLS, LINES)
    assert account["events in silver"] == account["rows of silver_events"] == account["events that must be there"]
    assert account["malformed lines in quarantine"] == account["malformed lines that must be there"]
    assert account["events in silver"] + account["malformed lines in quarantine"] == LINES
