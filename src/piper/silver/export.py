"""Quarantine files: rejected lines appended to <quarantine>/YYYY-MM-DD/invalid-NNNN.jsonl, each exactly once.

The manifest knows how far every file is durable. A step appends at that length, fsyncs, and then notes the new length
and drops the rejections in one transaction. If we die in between, the file is longer than the manifest says, and the
next step cuts the surplus off before it writes the same lines again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import date
from itertools import takewhile
from pathlib import Path
from typing import Any

from piper.events.quarantine import record_line
from piper.failpoints import failpoint
from piper.files import FILE_MODE, fsync_path, make_directory
from piper.silver.store import Store

FILE_BYTES_MAX = 64 * 1024 * 1024
ROWS_PER_STEP = 1000
FILE_NUMBER = r"coalesce(TRY_CAST(regexp_extract(path, 'invalid-(\d+)\.jsonl$', 1) AS BIGINT), 0)"
"""SQL for the number in a file's path. A new file gets the next one: whatever lies under that name is the surplus of a
step that died, and nothing else."""


@dataclass(frozen=True, slots=True)
class _QuarantineFile:
    path: str
    size_bytes: int
    is_new: bool


def export_rejections(store: Store) -> int:
    """Move all pending rejections into their files; returns how many."""
    exported = 0
    while count := _step(store):
        exported += count
    return exported


def _step(store: Store) -> int:
    rows = store.con.execute(
        """SELECT rowid, quarantined_at_utc, source_file, source_offset, source_line, reason, field, raw, raw_bytes,
            raw_md5
        FROM rejections ORDER BY rowid LIMIT ?""",
        [ROWS_PER_STEP],
    ).fetchall()
    if not rows:
        return 0
    day = rows[0][1].date()
    rows = list(takewhile(lambda row: row[1].date() == day, rows))
    data = b"".join(record_line(*row[1:]) for row in rows)
    file = _current_file(store, day)
    _append(store.layout.quarantine / file.path, file.size_bytes, data)
    failpoint("export.appended")
    _note(store, file, day, rows, file.size_bytes + len(data))
    failpoint("export.noted")
    return len(rows)


def _current_file(store: Store, day: date) -> _QuarantineFile:
    """The day's last file, unless it is full or somebody moved or cut it: then a new one."""
    files = store.con.execute(
        f"""SELECT path, size_bytes, {FILE_NUMBER} AS number FROM quarantine_files
        WHERE quarantine_date = ? ORDER BY number""",
        [day],
    ).fetchall()
    number = 0
    if files:
        path, size_bytes, number = files[-1]
        try:
            is_whole = (store.layout.quarantine / path).stat().st_size >= size_bytes
        except OSError:
            is_whole = False
        if is_whole and size_bytes < FILE_BYTES_MAX:
            return _QuarantineFile(path, size_bytes, is_new=False)
    return _QuarantineFile(f"{day.isoformat()}/invalid-{number + 1:04d}.jsonl", 0, is_new=True)


def _append(path: Path, size_bytes: int, data: bytes) -> None:
    make_directory(path.parent)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        os.ftruncate(fd, size_bytes)
        written = 0
        while written < len(data):
            written += os.pwrite(fd, data[written:], size_bytes + written)
        os.fsync(fd)
    finally:
        os.close(fd)
    fsync_path(path.parent)


def _note(store: Store, file: _QuarantineFile, day: date, rows: list[tuple[Any, ...]], size_bytes: int) -> None:
    con = store.con
    con.execute("BEGIN")
    try:
        con.execute("DELETE FROM rejections WHERE rowid <= ?", [rows[-1][0]])
        if file.is_new:
            con.execute("INSERT INTO quarantine_files VALUES (?, ?, ?)", [file.path, day, size_bytes])
        else:
            con.execute("UPDATE quarantine_files SET size_bytes = ? WHERE path = ?", [size_bytes, file.path])
        con.execute("COMMIT")
    except BaseException:
        con.execute("ROLLBACK")
        raise
