"""Snapshots: gold below the catalog's views, swapped in whole by one rename, and how replaced files go away.

A reader that has bound the old file keeps it until its query ends; the next query binds the new one. Nobody waits. The
earlier files stay linked under other names for GENERATION_SECONDS, because a reader on another NFS client would get
ESTALE when the file under it loses its last name. Segments of the tail (publish/tail.py) are kept there as long.

If we die before the rename, readers keep the old snapshot, which is consistent; the next publish makes a new one.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path

import duckdb

from piper.failpoints import failpoint
from piper.files import FILE_MODE, fsync_path, make_directory, swap_in
from piper.layout import Layout

GENERATION_SECONDS = 60.0
"""How long a replaced snapshot keeps a name."""
TEMPORARY = ".tmp"
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS}
"""What a file system without links says; it is none that readers on other clients mount by NFS."""

Identity = tuple[int, int, int, int]


def identity(path: Path) -> Identity | None:
    """What tells a file from any other, and from itself after somebody wrote to it; None: it is not there."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def publish_gold(con: duckdb.DuckDBPyConnection, layout: Layout, *, database: str = "gold") -> None:
    """Swap in a copy of the gold database, which is attached as `database` and has no transaction under way.

    It is copied as a file: its cost is its bytes, not its rows. (Closing the copy's descriptor drops this process's
    fcntl lock on state/gold.duckdb; the manifest's lock is the one that keeps others out.)
    """
    con.execute(f"CHECKPOINT {database}")
    temporary = _temporary(layout.gold)
    try:
        shutil.copyfile(layout.gold_state, temporary)
        failpoint("publish.gold.copied")
        _swap(temporary, layout.gold, layout)
    except BaseException:
        _temporary(layout.gold)
        raise


def _temporary(path: Path) -> Path:
    """The name under which the next `path` is made; what lies there is removed."""
    make_directory(path.parent)
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    for leftover in (temporary, temporary.with_name(temporary.name + ".wal")):
        leftover.unlink(missing_ok=True)
    return temporary


def _swap(temporary: Path, path: Path, layout: Layout) -> None:
    temporary.chmod(FILE_MODE)
    fsync_path(temporary)
    failpoint(f"publish.{path.stem}.written")
    _keep_generation(path, layout)
    failpoint(f"publish.{path.stem}.linked")
    swap_in(temporary, path)
    failpoint(f"publish.{path.stem}.swapped")


def _keep_generation(path: Path, layout: Layout) -> None:
    """Give the file that is about to be replaced another name, and drop the names that are old enough."""
    make_directory(layout.generations)
    if path.exists():
        try:
            os.link(path, layout.generations / f"{path.name}.{time.time_ns()}")
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
    drop_generations(layout)


def park(path: Path, layout: Layout, *, seconds: float) -> None:
    """Have a symbolic link take the place of a segment that readers have not needed for so many seconds.

    Who has listed it opens it by the link. A file system without links has it deleted; a query may fail then.
    """
    make_directory(layout.generations)
    kept = layout.generations / f"{path.name}.{time.time_ns() - int(seconds * 1e9)}"
    link = path.with_name(f".{path.name}{TEMPORARY}")
    try:
        os.link(path, kept, follow_symlinks=False)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(kept, path.parent))
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        kept.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        return
    link.rename(path)


def drop_generations(layout: Layout, *, older_than: float = GENERATION_SECONDS) -> None:
    """Delete the snapshots that were replaced longer than so many seconds ago. Any thread."""
    now = time.time()
    for earlier in layout.generations.iterdir() if layout.generations.is_dir() else ():
        stamp = earlier.suffix[1:]
        age = now - int(stamp) / 1e9 if stamp.isdigit() else 0.0
        if abs(age) > older_than:  # a clock that was set back must not keep them for ever
            segment = layout.tail / earlier.stem
            if segment.is_symlink():
                segment.unlink(missing_ok=True)
            earlier.unlink(missing_ok=True)
