"""Source states: where each spool file stands, in the manifest; written in the transaction of the rows read from it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa

from piper.prepared import Prepared
from piper.silver.store import utc_now
from piper.spool.identity import VANISHED_DAYS, Checkpoint, Doubt, Source, Suspicion, display_path
from piper.spool.tail import Batch

COLUMNS = (
    "source_id", "path", "source_file", "device", "inode", "read_offset", "lines", "head", "head_bytes", "guard",
    "guard_bytes", "size", "mtime_ns", "vanished", "fragment", "doubt", "doubt_since", "doubt_looks",
)  # fmt: skip
_INT64_MAX = 2**63 - 1
"""Nanoseconds of the year 2262: everyone can `touch` a file into a later one."""
SOURCES_AT_ONCE = 4096
"""Rows of the manifest that are fetched together."""


def read_sources(con: duckdb.DuckDBPyConnection, vanished_days: int = VANISHED_DAYS) -> list[Source]:
    """Every spool file that has a state, oldest first; forgets those that vanished so long ago."""
    forget_sources(con, vanished_days)
    found = con.execute(
        "SELECT source_id, path, device, inode, read_offset, lines, head, head_bytes, guard, guard_bytes, size,"
        " mtime_ns, vanished, fragment, doubt, doubt_since, doubt_looks FROM sources ORDER BY source_id"
    )
    sources: list[Source] = []
    numbers: dict[int, int] = {}
    while rows := found.fetchmany(SOURCES_AT_ONCE):  # 100,000 rows of tuples would be as much memory again
        sources.extend(_source(row, numbers) for row in rows)
    return sources


def forgettable_sources(con: duckdb.DuckDBPyConnection, vanished_days: int) -> int:
    """How many spool files vanished so long ago."""
    before = utc_now() - timedelta(days=vanished_days)
    row = con.execute("SELECT count(*) FROM sources WHERE vanished AND updated_at_utc < ?", [before]).fetchone()
    return int(row[0]) if row else 0


def forget_sources(con: duckdb.DuckDBPyConnection, vanished_days: int) -> None:
    """Drop the state of spool files that vanished so long ago."""
    before = utc_now() - timedelta(days=vanished_days)
    con.execute("DELETE FROM sources WHERE vanished AND updated_at_utc < ?", [before])


def write_sources(prepared: Prepared, batch: Batch, now: datetime) -> None:
    """Write the state of every source that `batch` moved or that changed its name, doubt or fragment.

    Part of the transaction under way. A source that is new gets its number. `now`: naive UTC.
    """
    sources = list({*batch.checkpoints, *batch.touched})
    if not sources:
        return
    new = [source for source in sources if source.source_id == 0]
    _number(prepared, new)
    columns = ", ".join(COLUMNS)
    assignments = ", ".join(f"{name} = s.{name}" for name in COLUMNS if name != "source_id")
    with prepared.given("source_states", _states(sources, batch.checkpoints)):
        prepared.execute(
            f"""UPDATE sources SET {assignments}, updated_at_utc = $now FROM source_states AS s
            WHERE sources.source_id = s.source_id""",
            now=now,
        )
        if new:
            prepared.execute(
                f"""INSERT INTO sources ({columns}, updated_at_utc)
                SELECT {columns}, $now FROM source_states ANTI JOIN sources USING (source_id)""",
                now=now,
            )


def _source(row: tuple[Any, ...], numbers: dict[int, int]) -> Source:
    """`numbers`: those that many sources share, so that each is one object and not one a source."""
    (source_id, path, device, inode, offset, lines, head, head_bytes, guard, guard_bytes, size, mtime_ns, vanished,
     fragment, doubt, since, looks) = row  # fmt: skip
    device, head_bytes, guard_bytes = (numbers.setdefault(n, n) for n in (device, head_bytes, guard_bytes))
    offset = numbers.get(offset, offset)  # of a small file it is its guard's length
    return Source(
        path=path, device=device, inode=inode, source_id=source_id, offset=offset, lines=lines, head=head,
        head_bytes=head_bytes, guard=guard, guard_bytes=guard_bytes, vanished=vanished, fragment=fragment,
        size=offset if size == offset else size, mtime_ns=mtime_ns,
        suspicion=Suspicion(Doubt(doubt), since, looks) if doubt else None,
    )  # fmt: skip


def _number(prepared: Prepared, sources: Sequence[Source]) -> None:
    if not sources:
        return
    row = prepared.execute("SELECT coalesce(max(source_id), 0) FROM sources").fetchone()
    next_id = int(row[0]) + 1 if row else 1
    for source_id, source in enumerate(sources, next_id):
        source.source_id = source_id


def _states(sources: Sequence[Source], checkpoints: dict[Source, Checkpoint]) -> pa.Table:
    at = [
        checkpoints.get(s) or Checkpoint(s.offset, s.lines, s.head, s.head_bytes, s.guard, s.guard_bytes)
        for s in sources
    ]
    doubts = [s.suspicion for s in sources]
    return pa.table(
        {
            "source_id": pa.array([s.source_id for s in sources], pa.int64()),
            "path": pa.array([s.path for s in sources], pa.binary()),
            "source_file": pa.array([display_path(s.path) for s in sources], pa.string()),
            "device": pa.array([s.device for s in sources], pa.uint64()),
            "inode": pa.array([s.inode for s in sources], pa.uint64()),
            "read_offset": pa.array([c.offset for c in at], pa.int64()),
            "lines": pa.array([c.lines for c in at], pa.int64()),
            "head": pa.array([c.head for c in at], pa.binary()),
            "head_bytes": pa.array([c.head_bytes for c in at], pa.int32()),
            "guard": pa.array([c.guard for c in at], pa.binary()),
            "guard_bytes": pa.array([c.guard_bytes for c in at], pa.int32()),
            "size": pa.array([s.size for s in sources], pa.int64()),
            "mtime_ns": pa.array([min(max(s.mtime_ns, -_INT64_MAX), _INT64_MAX) for s in sources], pa.int64()),
            "vanished": pa.array([s.vanished for s in sources], pa.bool_()),
            "fragment": pa.array([s.fragment for s in sources], pa.binary()),
            "doubt": pa.array([d.doubt.value if d else None for d in doubts], pa.string()),
            "doubt_since": pa.array([d.since_utc if d else None for d in doubts], pa.float64()),
            "doubt_looks": pa.array([d.looks if d else None for d in doubts], pa.int32()),
        }
    )
