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


def release(store: Store, lines: pa.Table, seq: int) -> int:
    """Step 1, inside the caller's transaction of commit `seq`; returns how many were in quarantine until now.

    `lines`: the key of each (silver/keys.py; as text), the `file` of its record, the `day` and `reason` of its
    quarantine.
    """
    if not lines.num_rows:
        return 0
    con = store.con
    con.register("leaving", lines)
    try:
        con.execute(
            """CREATE OR REPLACE TEMP TABLE released_keys AS
            SELECT key::UHUGEINT AS key, any_value(file) AS file, any_value(day) AS day, any_value(reason) AS reason
            FROM leaving GROUP BY ALL"""
        )
    finally:
        con.unregister("leaving")
    store.keys.forget(con, "released_keys")
    con.execute("DELETE FROM released_keys WHERE key NOT IN (SELECT key FROM gone_keys)")
    counted = con.execute("SELECT day, reason, count(*) FROM released_keys GROUP BY ALL ORDER BY ALL").fetchall()
    days = Counter[date]()
    for day, reason, count in counted:
        con.execute(
            """UPDATE quarantine_counts SET lines = greatest(0, lines - ?) WHERE quarantine_date = ? AND reason = ?""",
            [count, day, reason],
        )
        days[day] += count
    note_changed(store.prepared, {day: (-count, 0) for day, count in days.items()}, seq)
    con.execute("UPDATE progress SET quarantined = greatest(0, quarantined - ?)", [days.total()])
    _note_files(con, [file for (file,) in con.execute("SELECT DISTINCT file FROM released_keys").fetchall()])
    return days.total()


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
