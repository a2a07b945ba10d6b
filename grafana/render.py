"""Draws every dashboard as docs/dashboards/<uid>.png, without Grafana, from the committed JSON and real queries.

    python grafana/render.py [--data-root DIR] [--out DIR] [UID ...]

Without --data-root it makes demo data in a temporary folder: six weeks of a simulated studio, and for the daemon's own
dashboard a piperd that a Prometheus watches for a minute and a half (that one picture is left out where no `prometheus`
is installed).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import duckdb

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from boards.macros import TimeRange  # noqa: E402
from pictures import demo  # noqa: E402
from pictures.frames import DuckDB, Json, Prometheus, Source  # noqa: E402
from pictures.page import draw_page  # noqa: E402

SQL = "motherduck-duckdb-datasource"


def main() -> int:
    """Exit code: 0, or 2 for a dashboard that does not exist."""
    parser = argparse.ArgumentParser(description="Draw the dashboards from their JSON and real queries.")
    parser.add_argument("--data-root", type=Path, help="an existing data root; default: demo data")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "dashboards")
    parser.add_argument("uids", nargs="*", help="default: all")
    given = parser.parse_args()
    boards = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted((HERE / "dashboards").glob("*.json"))}
    if unknown := set(given.uids) - set(boards):
        parser.error(f"no dashboard is called {', '.join(sorted(unknown))}; there are {', '.join(boards)}")
    given.out.mkdir(parents=True, exist_ok=True)
    chosen = {uid: board for uid, board in boards.items() if not given.uids or uid in given.uids}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="piper-pictures-")))
        history = {uid: board for uid, board in chosen.items() if not _is_live(board)}
        if history:
            data_root = given.data_root or demo.history(folder / "history")
            with duckdb.connect(str(data_root / "warehouse" / "telemetry.duckdb"), read_only=True) as con:
                for uid, board in history.items():
                    _draw(uid, board, given.out, {SQL: lambda board, at: DuckDB(con, board["templating"]["list"], at)})
        for uid, board in chosen.items():
            if uid not in history:
                with demo.watched(folder / "live") as url:
                    if url is None:
                        print(f"{uid}: left out, no `prometheus` is installed")
                        continue
                    recent = board | {"time": {"from": "now-2m", "to": "now"}}
                    _draw(uid, recent, given.out, {"prometheus": lambda _board, at: Prometheus(url, at)})
    return 0


def _draw(uid: str, board: Json, out: Path, sources: dict[str, Callable[[Json, TimeRange], Source]]) -> None:
    time_range = TimeRange.of(board, datetime.now(UTC))
    opened = {kind: make(board, time_range) for kind, make in sources.items()}
    draw_page(board, opened, time_range, out / f"{uid}.png")
    print(f"{uid}.png")


def _is_live(board: Json) -> bool:
    """Whether it asks Prometheus."""
    return any(panel["datasource"]["type"] == "prometheus" for panel in board["panels"])


if __name__ == "__main__":
    raise SystemExit(main())
