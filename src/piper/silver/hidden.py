"""Hidden chunks: how files that a rewrite has replaced go away, without any reader ever missing one.

A query lists the files of a dataset and opens them one by one, hidden ones included, as long as it runs. So a file that
is listed must not be deleted, however long it has been hidden; and one that is not listed any more must stay for the
queries that listed it. Between the two lies a link:

1. hide    a published tail says that the chunk counts no more (silver/rewrite.py).
2. park    PARK_AFTER later, when every query that still counts it has long listed it, the chunk gets a second name in
           silver/.parked, and a symbolic link to that takes its place. The views' pattern ends in `**`, which does not
           list symbolic links; who has listed the file opens it by the link. New queries do not read it any more.
           Died here: the next call goes on with what it finds.
3. delete  `after` later, both names are removed, and the manifest forgets it. Died here: what is gone stays hidden
           until the next call.

A file system without links of either kind has its hidden files deleted in one step; a query may fail then.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb

from piper.failpoints import failpoint
from piper.files import fsync_path, make_directory
from piper.layout import Layout
from piper.silver.staging import staged_name
from piper.silver.store import Store

PARK_AFTER = timedelta(minutes=2)
FORGET_AFTER = timedelta(minutes=10)
"""How long the queries that have listed a chunk may take."""
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


@dataclass(slots=True)
class PutAway:
    """What a call did: `deleted` paths below silver/, chunks `parked`, and how many are `waiting` to be deleted."""

    deleted: list[str] = field(default_factory=list)
    parked: int = 0
    waiting: int = 0

    def __bool__(self) -> bool:
        return bool(self.deleted or self.parked)


def forget_hidden(store: Store, *, published_seq: int, now: datetime, after: timedelta = FORGET_AFTER) -> int:
    """`put_away` and `forget_deleted` in one; returns how many are deleted. In the writer's thread."""
    done = put_away(store, store.con, published_seq=published_seq, now=now, after=after)
    forget_deleted(store, done.deleted)
    return len(done.deleted)


def put_away(
    store: Store,
    con: duckdb.DuckDBPyConnection,
    *,
    published_seq: int,
    now: datetime,
    after: timedelta = FORGET_AFTER,
    at_most: int = 1 << 62,
) -> PutAway:
    """Park or delete the chunks that a published tail (of commit `published_seq`) has hidden, where that is due.

    Any thread; `forget_deleted` is to follow. The caller sees to it that no gold refresh is under way, which may have
    begun before they were hidden. `after` zero does it all at once: queries that run then may fail.
    """
    rows = con.execute(
        """SELECT path, hidden_at_utc FROM ingest_manifest.main.hidden_chunks
        WHERE hidden_seq <= ? ORDER BY hidden_at_utc, path""",
        [published_seq],
    ).fetchall()
    done = PutAway()
    make_directory(store.layout.parked)
    for path, hidden_at in rows:
        if now - hidden_at >= min(PARK_AFTER, after) and len(done.deleted) + done.parked < at_most:
            _advance(store.layout, path, now, hidden_at, after, done)
    done.waiting = len(rows) - len(done.deleted)
    for parent in {(store.layout.silver / path).parent for path in done.deleted}:
        with suppress(FileNotFoundError):
            fsync_path(parent)
    return done


def _advance(layout: Layout, path: str, now: datetime, hidden_at: datetime, after: timedelta, done: PutAway) -> None:
    """Take one chunk as far as it may go now."""
    file, parked = layout.silver / path, layout.parked / staged_name(path)
    try:
        status = file.lstat()
        if not stat.S_ISLNK(status.st_mode) and _park(file, parked):
            done.parked += 1
            failpoint("rewrite.parked")
            status = file.lstat()
    except FileNotFoundError:
        is_due = True  # deleted by a call that died
    else:
        since = hidden_at
        if stat.S_ISLNK(status.st_mode):
            since = datetime.fromtimestamp(status.st_mtime, UTC).replace(tzinfo=None)
        is_due = abs(now - since) >= after  # a file server's clock may be ahead: that must not last for ever
    if is_due:
        file.unlink(missing_ok=True)
        failpoint("rewrite.deleted")
        parked.unlink(missing_ok=True)
        done.deleted.append(path)


def _park(file: Path, parked: Path) -> bool:
    """Have a link take the file's place; False where there are no links."""
    link = file.with_name(f".{file.name}.tmp")
    try:
        with suppress(FileExistsError):  # by a call that died; a chunk's name is never used again
            os.link(file, parked, follow_symlinks=False)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(parked, file.parent))
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        parked.unlink(missing_ok=True)
        return False
    link.rename(file)
    return True


def forget_deleted(store: Store, paths: Sequence[str]) -> None:
    """Drop deleted chunks from the manifest. In the writer's thread: no chunk is being revealed meanwhile."""
    if not paths:
        return
    for parent in {(store.layout.silver / path).parent for path in paths}:
        with suppress(OSError):  # the partition has other chunks
            parent.rmdir()
    con = store.con
    con.execute("BEGIN")
    try:
        con.execute("DELETE FROM hidden_chunks WHERE path IN (SELECT unnest(?::VARCHAR[]))", [list(paths)])
        con.execute("UPDATE progress SET commit_seq = commit_seq + 1")  # news: the next tail hides less
        con.execute("COMMIT")
        failpoint("rewrite.forgotten")
    except BaseException:
        with suppress(duckdb.Error):  # a failed COMMIT has ended it already
            con.execute("ROLLBACK")
        raise
