"""Draws every dashboard as docs/dashboards/<uid>.png, without Grafana, from the committed JSON and real queries.

    python grafana/render.py [--data-root DIR] [--out DIR] [UID ...]

Without --data-root it makes demo data in a temporary folder: six weeks of a simulated studio, and for the daemon's own
dashboard a piperd that a Prometheus watches for a minute and a half (what needs it is left out where no `prometheus`
is installed).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
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

SQL, PROMETHEUS = "motherduck-duckdb-datasource", "prometheus"


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
        data_root = given.data_root
        if data_root is None and any(_asks(board, SQL) for board in chosen.values()):
            data_root = demo.history(folder / "history")
        watched = any(_asks(board, PROMETHEUS) for board in chosen.values())
        url = stack.enter_context(demo.watched(folder / "live")) if watched else None
        for uid, board in chosen.items():
            _draw(uid, board, given.out, data_root, url)
    return 0


def _draw(uid: str, board: Json, out: Path, data_root: Path | None, url: str | None) -> None:
    now = datetime.now(UTC)
    if not _asks(board, SQL):  # what is watched has only just begun
        board = board | {"time": {"from": "now-2m", "to": "now"}}
    with ExitStack() as stack:
        sources: dict[str, Source] = {}
        if url is not None:
            sources[PROMETHEUS] = Prometheus(url)
        if data_root is not None:
            catalog = data_root / "warehouse" / "telemetry.duckdb"
            con = stack.enter_context(duckdb.connect(str(catalog), read_only=True))
            sources[SQL] = DuckDB(con, board["templating"]["list"], TimeRange.of(board, now))
        if _asks(board, PROMETHEUS) and url is None:
            print(f"{uid}: left out, no `prometheus` is installed")
            return
        draw_page(board, sources, now, out / f"{uid}.png")
    print(f"{uid}.png")


def _asks(board: Json, kind: str) -> bool:
    """Whether a panel of it asks a datasource of this type."""
    return any(panel["datasource"]["type"] == kind for panel in board["panels"])


if __name__ == "__main__":
    raise SystemExit(main())
