"""State: what a backfill has done so far. It is in the manifest, so that the next start, or the same command, goes on.

The counts of a day are noted in the very transaction that changes its rows.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import duckdb

from piper.backfill.compare import KINDS, Changes
from piper.backfill.scope import Scope

_KEY = "backfill"


@dataclass(slots=True)
class State:
    """One backfill, by `id`. `start` and `end` as in `Scope.as_json`; `dates`: counts by kind of every day compared."""

    id: str
    start: str | None
    end: str | None
    files: int = 0
    bytes: int = 0
    unreadable: list[str] = field(default_factory=list)
    """Files that could not be read to their end."""
    dates: dict[str, dict[str, int]] = field(default_factory=dict)
    quarantined: int = 0
    """Lines that were neither in silver nor in quarantine, and are no events."""
    is_finished: bool = False

    @property
    def scope(self) -> Scope:
        """The days that it is for."""
        return Scope.of({"start": self.start, "end": self.end})

    def after(self, changes: Changes) -> State:
        """The state once a day is done. A day that comes twice (a run died just after it) counts what it changed."""
        day, counts = changes.day.isoformat(), changes.counts()
        if before := self.dates.get(day):
            counts = {kind: before[kind] + count for kind, count in counts.items()} | {"unchanged": before["unchanged"]}
        return replace(self, dates=self.dates | {day: counts})

    def summary(self) -> dict[str, Any]:
        """For people and programs; days on which nothing changes are left out of `dates`."""
        totals = {kind: sum(counts[kind] for counts in self.dates.values()) for kind in KINDS}
        dates = {day: counts for day, counts in sorted(self.dates.items()) if any(counts[k] for k in KINDS[:-1])}
        return {
            "start": self.start,
            "end": self.end,
            "files": self.files,
            "bytes": self.bytes,
            "unreadable": self.unreadable,
            **totals,
            "quarantined": self.quarantined,
            "dates": dates,
        }


def read_state(con: duckdb.DuckDBPyConnection) -> State | None:
    """The last backfill, finished or not. `con`: any thread's cursor of the manifest."""
    row = con.execute("SELECT value FROM ingest_manifest.main.manifest_meta WHERE key = ?", [_KEY]).fetchone()
    return State(**json.loads(row[0])) if row else None


def write_state(con: duckdb.DuckDBPyConnection, state: State) -> None:
    """Note it, in the caller's transaction. In the writer's thread."""
    con.execute("DELETE FROM manifest_meta WHERE key = ?", [_KEY])
    con.execute("INSERT INTO manifest_meta VALUES (?, ?)", [_KEY, json.dumps(asdict(state))])
