"""A spool that is full of people's names, and the search for them in everything that readers mount."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.support.ground import Ground
from tests.support.odd_lines import ONE_OF_EACH, dump, full_event
from tests.support.reader_engine import reader_environment

from piper.silver.datasets import DATASETS

NAMES = ("zorblatt", "quux.kessler", "ana.lópezz", "wex-hale", 'odd"ql\\ame', "1234567")
"""Words that nothing else contains, so that their bytes can be searched for."""
NEWCOMER = "vrmlinska"
_EVENT_TEXTS = ("hostname", "action_id", "dcc", "error_code", "error_message")


class People(Ground):
    """A ground whose spool is written by people; `masks` is the setting of the next writer."""

    def __init__(self, root: Path, names: Iterable[str] = NAMES) -> None:
        super().__init__(root)
        self.masks, self.names = False, tuple(names)
        self._events = 0

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"PIPER_PRIVACY__MASK_USERS": str(self.masks).lower()}

    def write(self, name: str, *, mentions: str = "") -> None:
        """A file of `name`: an event of every dataset and dialect, with a mention of somebody in every text."""
        lines = []
        for kind in ONE_OF_EACH:
            for dialect in ("nested", "flat"):
                event = full_event(kind, dialect, f"e{self._events:05}") | {"status": "info"}
                lines.append(dump(_written_by(event, name, mentions or name)) + "\n")
                self._events += 1
        directory = self.raw / f"ws-{(mentions or name).replace('/', '')}" / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"telemetry_{mentions or name}_{self._events}.jsonl").write_text("".join(lines), "utf-8")

    def write_all(self) -> None:
        """A file of everybody."""
        for name in self.names:
            self.write(name)

    def rows(self) -> dict[str, list[tuple[Any, ...]]]:
        """What readers see in silver, without the moment of ingest."""
        found = {}
        for dataset in DATASETS.values():
            columns = ", ".join(f'"{name}"' for name, _ in dataset.columns if name != "ingested_at_utc")
            found[dataset.name] = self.query(f"SELECT {columns} FROM {dataset.view} ORDER BY event_id")
        return found

    def texts(self) -> str:
        """Every value of every silver view as one text, in lower case."""
        return json.dumps(self.rows(), ensure_ascii=False, default=str).lower()


def _written_by(event: dict[str, Any], name: str, mentioned: str) -> dict[str, Any]:
    note = f"/home/{mentioned}/a_{mentioned.upper()}.ma ({mentioned}@studio)\n{mentioned}"
    for field in ("payload", "scope", "error"):
        event[field] = {key: f"{key} of {note}" if isinstance(value, str) and key != "kind" else value
                        for key, value in event[field].items()}  # fmt: skip
    event["payload"] |= {
        "people": {mentioned: [mentioned, {"number": 1234567, "text": note}]}, "path": f"C:\\Users\\{mentioned}\\n",
        "scope_code": mentioned, "job_title": note, "frame_start": "1234567",
    }  # fmt: skip
    for field in ("occurred_at", "occurred_at_utc"):
        if field in event:
            event[field] = "2024-03-01T10:00:00Z"
    if "host" in event:
        event["host"] |= {"hostname": f"ws-{mentioned}", "user": name, "os": f"os of {mentioned}"}
        event["session"] = {"session_id": f"{mentioned}.1.ws", "action_id": f"do {mentioned}"}
        event["pipeline"] = {"name": f"pipe of {mentioned}", "dcc": f"{mentioned}'s maya"}
        return event
    return event | {"host_user": name} | {field: f"{field} of {note}" for field in _EVENT_TEXTS}


# ---- what readers mount ----------------------------------------------------------------------------------------------


def spellings(name: str) -> set[str]:
    """How a name can stand in a file."""
    escaped = json.dumps(name, ensure_ascii=False)[1:-1]
    return {text for spelled in (name, escaped) for text in (spelled, spelled.upper(), spelled.lower())}


def files_with(ground: Ground, names: Iterable[str]) -> list[str]:
    """The files and paths that readers mount whose plain bytes, or whose path, hold a name."""
    wanted = {(spelled.encode(), name) for name in names if not name.isdigit() for spelled in spellings(name)}
    found = []
    for root in (ground.layout.silver, ground.layout.warehouse):
        for path in root.rglob("*"):
            content = path.read_bytes() if path.is_file() else b""
            place = str(path.relative_to(ground.layout.data_root))
            found += [f"{place}: {name}" for word, name in wanted if word in content or word in place.encode()]
    return found


_SCRIPT = """
import json, sys, duckdb
con = duckdb.connect(sys.argv[1], read_only=True)
views = [row[0] for row in con.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()]
values = {view: con.execute(f"FROM {view}").fetchall() for view in views}
segments = con.execute("FROM read_parquet(?)", [sys.argv[2] + "/**"]).fetchall()
values["segments"] = segments
for name in sys.argv[3:]:
    db = duckdb.connect(name, read_only=True)
    for (table,) in db.execute("SELECT table_name FROM duckdb_tables()").fetchall():
        values[name + table] = db.execute(f"FROM {table}").fetchall()
assert duckdb.__version__ == "1.5.4"
print(json.dumps(values, ensure_ascii=False, default=str))
"""


def values_of_readers(site: Path, ground: Ground) -> dict[str, list[list[Any]]]:
    """Every value of every view, of every segment of the tail and every table of gold, as DuckDB 1.5.4 reads them."""
    layout = ground.layout
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(layout.catalog), str(layout.tail), str(layout.gold)],
        env=reader_environment(site) | {"PYTHONIOENCODING": "utf-8"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))
