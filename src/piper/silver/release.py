"""Release: lines leave quarantine because they are events now, each at the very moment at which its event comes.

A record of a quarantine file cannot be part of a transaction, so there are two steps:

1. commit   the transaction that brings the events (silver/rewrite.py) forgets the lines' keys and counts, and notes
            which files hold their records. Died here: durable; the next open, or the next export, goes on with step 2.
2. purge    each of these files is written anew without the records that have no key, and swapped in; its new length
            is noted. Died between the two: it is shorter than noted, and done again; an export meanwhile takes a new
            file, as it does whenever one was cut.

A record beyond the length that the manifest knows is the surplus of an export that died, and goes too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

import duckdb
import orjson
import pyarrow as pa

from piper.failpoints import failpoint
from piper.files import write_atomic
from piper.silver.commit import REJECTION_KEY, note_changed
from piper.silver.store import Store

PURGE = "purge_quarantine_file"
"""Key in manifest_meta of a file that may hold records of released lines; its path, relative to the quarantine."""


@dataclass(frozen=True, slots=True)
class Released:
    """A line that leaves: its key (silver/keys.py), the file of its record, the day and reason of its quarantine."""

    key: int
    file: str
    day: date
    reason: str


def release(store: Store, lines: Sequence[Released], seq: int) -> int:
    """Step 1, inside the caller's transaction of commit `seq`; returns how many were in quarantine until now."""
    if not lines:
        return 0
    con = store.con
    con.execute(
        "CREATE OR REPLACE TEMP TABLE released_keys AS SELECT DISTINCT unnest(?::VARCHAR[])::UHUGEINT AS key",
        [[str(line.key) for line in lines]],
    )
    held = set(store.keys.forget(con, "released_keys"))
    left = {line.key: line for line in lines if line.key in held}
    for (day, reason), count in Counter((line.day, line.reason) for line in left.values()).items():
        con.execute(
            """UPDATE quarantine_counts SET lines = greatest(0, lines - ?) WHERE quarantine_date = ? AND reason = ?""",
            [count, day, reason],
        )
    days = Counter(line.day for line in left.values())
    note_changed(store.prepared, {day: (-count, 0) for day, count in days.items()}, seq)
    con.execute("UPDATE progress SET quarantined = greatest(0, quarantined - ?)", [len(left)])
    _note_files(con, {line.file for line in left.values()})
    return len(left)


def _note_files(con: duckdb.DuckDBPyConnection, files: Iterable[str]) -> None:
    for file in sorted(files):
        con.execute("DELETE FROM manifest_meta WHERE key = ? AND value = ?", [PURGE, file])
        con.execute("INSERT INTO manifest_meta VALUES (?, ?)", [PURGE, file])


def purge_released(store: Store) -> int:
    """Step 2 for every file that is due; returns how many records went. In the writer's thread; raises OSError."""
    files = store.con.execute("SELECT value FROM manifest_meta WHERE key = ? ORDER BY value", [PURGE]).fetchall()
    return sum(_purge(store, file) for (file,) in files)


def _purge(store: Store, file: str) -> int:
    con, path = store.con, store.layout.quarantine / file
    row = con.execute("SELECT size_bytes FROM quarantine_files WHERE path = ?", [file]).fetchone()
    size = gone = 0
    if row is not None and path.exists():
        records = path.read_bytes()[: row[0]].splitlines(keepends=True)
        dropped = _without_key(store, records)
        kept = b"".join(record for number, record in enumerate(records) if number not in dropped)
        size, gone = len(kept), len(dropped)
        if gone:
            write_atomic(path, kept)
            failpoint("release.purged")
    con.execute("BEGIN")
    try:
        if row is not None:
            con.execute("UPDATE quarantine_files SET size_bytes = ? WHERE path = ?", [size, file])
        con.execute("DELETE FROM manifest_meta WHERE key = ? AND value = ?", [PURGE, file])
        con.execute("COMMIT")
    except BaseException:
        con.execute("ROLLBACK")
        raise
    failpoint("release.noted")
    return gone


def _without_key(store: Store, records: Sequence[bytes]) -> set[int]:
    """The numbers of the records whose line has left quarantine. What is no record of ours stays."""
    found = []
    for number, line in enumerate(records):
        try:
            record = orjson.loads(line)
            found.append((number, record["source_file"], record["source_offset"], record["raw_md5"]))
        except (orjson.JSONDecodeError, KeyError, TypeError):
            continue
    if not found:
        return set()
    numbers, files, offsets, sums = zip(*found, strict=True)
    table = pa.table({"number": numbers, "source_file": files, "source_offset": offsets, "raw_md5": sums})
    con = store.con
    con.register("records", table)
    try:
        con.execute(f"CREATE OR REPLACE TEMP TABLE record_keys AS SELECT number, {REJECTION_KEY} AS key FROM records")
    finally:
        con.unregister("records")
    store.keys.drop_known(store.prepared, "record_keys")
    return {number for (number,) in con.execute("SELECT number FROM record_keys").fetchall()}
