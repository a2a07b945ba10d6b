"""Writes `grafana/dashboards/*.json` from `grafana/boards`, or with `--check` says which of them are not up to date.

    python grafana/build.py [--check]

The JSON is what Grafana reads and is committed; the boards are what people change.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
DASHBOARDS = HERE / "dashboards"


def built() -> dict[Path, str]:
    """The files and their texts."""
    sys.path.insert(0, str(HERE))
    from boards import BOARDS

    boards = [make() for make in BOARDS]
    files = {
        DASHBOARDS / f"{board['uid']}.json": json.dumps(board, indent=2, ensure_ascii=False) + "\n" for board in boards
    }
    if len(files) != len(boards):
        raise SystemExit("two dashboards have the same uid")
    return files


def out_of_date(files: dict[Path, str]) -> list[str]:
    """Names of the files that differ from what the boards give, are missing, or belong to no board."""
    differ = [path.name for path, text in files.items() if not path.exists() or path.read_text("utf-8") != text]
    return sorted([*differ, *(path.name for path in DASHBOARDS.glob("*.json") if path not in files)])


def main(arguments: list[str]) -> int:
    """Exit code of the command: 0, 1 where `--check` found something, 2 for wrong arguments."""
    if arguments not in ([], ["--check"]):
        print("usage: python grafana/build.py [--check]", file=sys.stderr)
        return 2
    files = built()
    stale = out_of_date(files)
    if arguments:
        if stale:
            print(f"not what grafana/boards gives, run python grafana/build.py: {', '.join(stale)}", file=sys.stderr)
        return int(bool(stale))
    DASHBOARDS.mkdir(exist_ok=True)
    for path, text in files.items():
        path.write_text(text, "utf-8")
    for name in stale:
        if DASHBOARDS / name not in files:
            (DASHBOARDS / name).unlink()
    print(f"{len(files)} dashboards, {len(stale)} changed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
