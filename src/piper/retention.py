"""Retention: what is deleted once it is old enough, by the `[retention]` settings.

silver      all partitions of days before a date give way to nothing, by one `Rewrite`: a reader sees all of them or
            none. Gold is brought up to date first and keeps its rows of those days for ever (`GoldStore.keep_before`).
            Keys of pruned events stay: a line that is delivered once more is a duplicate, and does not come back.
            The files are deleted by `duties.forget`, once no query can need them any more.
quarantine  day folders, and what the manifest says of their files. Counts by day and reason stay.
run logs    day folders.
sources     what the manifest knows of spool files that vanished.

In day folders only the files that piper writes are deleted, and no symbolic link is followed: whatever else people put
there stays, and keeps the folder. Each part can be repeated after a death at any point.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from piper.errors import PiperError
from piper.failpoints import failpoint
from piper.ops.storage import chunk_counts
from piper.settings import Retention
from piper.silver.rewrite import Rewrite, partitions
from piper.silver.source_states import forget_sources, forgettable_sources
from piper.upkeep import Hands
from piper.writer import Writer

_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_OURS = re.compile(r"[\w.-]+\.jsonl", re.ASCII)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was deleted of one kind, or would be: everything of days before `before` (None: nothing ever is).

    `rows` are events, quarantined lines as they were counted, or states of spool files.
    """

    before: date | None = None
    files: int = 0
    rows: int = 0
    bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.files or self.rows)


def prune(hands: Hands, retention: Retention, *, dry_run: bool = False) -> dict[str, Pruned]:
    """Delete what is due, by kind of `ops.metric_list.PRUNED`. No gold refresh may be under way.

    Raises PiperError when gold cannot be brought up to date: silver then keeps what it has.
    """
    today = hands.writer.clock.now().date()
    done = {
        "silver": _prune_silver(hands, _before(today, retention.silver_days), dry_run),
        "quarantine": _prune_quarantine(hands, _before(today, retention.quarantine_days), dry_run),
        "run_logs": _prune_run_logs(hands, _before(today, retention.run_log_days), dry_run),
        "sources": _prune_sources(hands, retention.source_days, dry_run),
    }
    if not dry_run:
        for kind, pruned in done.items():
            hands.writer.metrics.pruned(kind, pruned.files, pruned.rows, pruned.bytes)
    return done


def _before(today: date, days: int) -> date | None:
    """The first day that is kept; None: all are."""
    return today - timedelta(days=days) if days else None


# ---- silver ----------------------------------------------------------------------------------------------------------


def _prune_silver(hands: Hands, before: date | None, dry_run: bool) -> Pruned:
    if before is None:
        return Pruned()
    old = partitions(hands.con, end=before - timedelta(days=1))
    pruned = Pruned(
        before,
        sum(len(partition.paths) for partition in old),
        sum(partition.rows for partition in old if partition.dataset == "events"),
        sum(partition.size_bytes for partition in old),
    )
    if not old or dry_run:
        return pruned
    # If we die after it, gold has only given up to follow changes of days that the next prune drops.
    _let_gold_keep(hands, before)
    failpoint("prune.kept")
    rewrite = Rewrite.begin(hands.writer.store, hands.con)
    try:
        for partition in old:
            rewrite.drop(partition)
    except BaseException:
        rewrite.abandon()
        raise
    hands.commit(rewrite)
    hands.writer.metrics.chunks_counted(chunk_counts(hands.con))
    return pruned


def _let_gold_keep(hands: Hands, before: date) -> None:
    writer = hands.writer
    writer.refresh_gold(hands.con, in_writer=lambda step: hands.in_writer(lambda _writer: step()))

    def keep(writer: Writer) -> None:
        if not writer.gold.is_complete(writer.store.con, writer.relations, before):
            raise PiperError(
                f"gold is not up to date, so silver keeps what is before {before}",
                hint="The log says which model failed (gold_refresh_failed); it is tried again.",
            )
        writer.gold.keep_before(writer.store.con, before)

    hands.in_writer(keep)  # between two commits, so that nothing comes between looking and keeping


# ---- day folders -----------------------------------------------------------------------------------------------------


def _prune_quarantine(hands: Hands, before: date | None, dry_run: bool) -> Pruned:
    if before is None:
        return Pruned()
    days, files, size = _prune_days(hands.writer.store.layout.quarantine, before, dry_run)
    row = hands.con.execute(
        """SELECT coalesce(sum(lines), 0)::BIGINT FROM quarantine_counts
        WHERE quarantine_date IN (SELECT unnest(?::DATE[]))""",
        [days],
    ).fetchone()
    known = hands.con.execute("SELECT 1 FROM quarantine_files WHERE quarantine_date < ? LIMIT 1", [before]).fetchone()
    if known and not dry_run:
        failpoint("prune.deleted")
        hands.in_writer(lambda writer: writer.store.forget_quarantine_files(before))
    return Pruned(before, files, int(row[0]) if row else 0, size)


def _prune_run_logs(hands: Hands, before: date | None, dry_run: bool) -> Pruned:
    if before is None:
        return Pruned()
    _, files, size = _prune_days(hands.writer.store.layout.run_logs, before, dry_run)
    return Pruned(before, files, 0, size)


def _prune_days(root: Path, before: date, dry_run: bool) -> tuple[list[date], int, int]:
    """Delete piper's files in the folders of days before `before`; the days that had any, their files and bytes."""
    days: list[date] = []
    files = size = 0
    with _directory(root) as root_fd:
        for name in _old_days(root_fd, before):
            with _directory(name, within=root_fd) as fd:
                found = _our_files(fd)
                if found:
                    days.append(date.fromisoformat(name))
                for file, file_bytes in found:
                    if not dry_run:
                        os.unlink(file, dir_fd=fd)
                    files, size = files + 1, size + file_bytes
            if not dry_run:
                with suppress(OSError):  # somebody keeps something there
                    os.rmdir(name, dir_fd=root_fd)
    return days, files, size


@contextmanager
def _directory(path: Path | str, *, within: int | None = None) -> Iterator[int]:
    """A descriptor of a directory. Below another one it is not a symbolic link, whoever put it there in between."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if within is None else os.O_NOFOLLOW)
    fd = os.open(path, flags, dir_fd=within)
    try:
        yield fd
    finally:
        os.close(fd)


def _old_days(root_fd: int, before: date) -> list[str]:
    with os.scandir(root_fd) as entries:
        names = [
            entry.name
            for entry in entries
            if _DAY.fullmatch(entry.name) and entry.name < before.isoformat() and entry.is_dir(follow_symlinks=False)
        ]
    return sorted(names)


def _our_files(fd: int) -> list[tuple[str, int]]:
    with os.scandir(fd) as entries:
        return sorted(
            (entry.name, entry.stat(follow_symlinks=False).st_size)
            for entry in entries
            if _OURS.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
        )


# ---- the manifest ----------------------------------------------------------------------------------------------------


def _prune_sources(hands: Hands, days: int, dry_run: bool) -> Pruned:
    found = forgettable_sources(hands.con, days)
    if found and not dry_run:
        hands.in_writer(lambda writer: forget_sources(writer.store.con, days))
    return Pruned(hands.writer.clock.now().date() - timedelta(days=days), 0, found, 0)
