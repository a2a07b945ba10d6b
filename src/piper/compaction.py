"""Compaction at work: in the background, a bounded piece at a time, and as a command over given days.

A piece is one `Rewrite` of a few partitions, staged for STEP_SECONDS. What is merged and when is `silver.compact`'s.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import duckdb

from piper.errors import PiperError
from piper.hours import Hours
from piper.ops.storage import chunk_counts, hidden_chunks
from piper.silver.compact import Merge, all_merges, crowded, due_merges
from piper.silver.rewrite import Rewrite
from piper.upkeep import Hands

STEP_SECONDS = 2.0
"""A piece ends with the partition that reaches it."""
HIDDEN_MAX = 5000
"""Background compaction pauses while so many replaced chunks wait for their deletion: every published tail names them
(bench/compaction.py, hidden)."""
ROOM = 4
"""Merging needs this many times the bytes that it reads free on the disk: the old chunks stay for a while."""
PUT_OFF = timedelta(hours=6)
"""A partition whose merge failed (a damaged chunk) is left alone for so long; the others go on."""


class MergeError(PiperError):
    """One partition could not be merged; nothing has changed. `directory` says which."""

    def __init__(self, merge: Merge, detail: str) -> None:
        super().__init__(
            f"silver/{merge.partition.directory} could not be compacted: {detail}",
            hint="Its chunks are as they were. If one is damaged, `piper repair --deep` makes its rows again from raw.",
        )
        self.directory = merge.partition.directory


@dataclass(slots=True)
class Compacted:
    """What was merged, or would be. Bytes are of the chunks before and after."""

    merges: int = 0
    """Partitions; one of more than CHUNK_BYTES_MAX counts several times."""
    chunks_before: int = 0
    chunks_after: int = 0
    rows: int = 0
    bytes_before: int = 0
    bytes_after: int = 0

    def add(self, merge: Merge, bytes_after: int) -> None:
        """Count one merge."""
        self.merges += 1
        self.chunks_before += len(merge.paths)
        self.chunks_after += 1
        self.rows += merge.rows
        self.bytes_before += merge.size_bytes
        self.bytes_after += bytes_after

    def __iadd__(self, other: Compacted) -> Compacted:
        for name in ("merges", "chunks_before", "chunks_after", "rows", "bytes_before", "bytes_after"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


class Compaction:
    """Background compaction. It remembers which partitions could not be merged."""

    def __init__(self) -> None:
        self._put_off: dict[str, datetime] = {}

    def merge_due(self, hands: Hands, hours: Hours | None) -> Compacted:
        """Merge some of what is due now; `hours` are those of compaction, None: never."""
        writer = hands.writer
        if hours is None or writer.store.rewrite_lock.locked() or hidden_chunks(hands.con) >= HIDDEN_MAX:
            return Compacted()
        now = writer.clock.now()
        local = now.replace(tzinfo=UTC).astimezone()
        due = due_merges(hands.con, writer.store.layout.silver, now=now, is_off_peak=hours.include(local))
        self._put_off = {where: until for where, until in self._put_off.items() if until > now}
        try:
            return merge_some(hands, [merge for merge in due if merge.partition.directory not in self._put_off])
        except MergeError as error:
            self._put_off[error.directory] = now + PUT_OFF
            raise


@dataclass(slots=True)
class CompactionRun:
    """Compaction as a command: every partition from `start` to `end`, whether it pays or not.

    `plan` once, then `step` until it returns False. Other duties may come between: what they have merged is skipped,
    and what is sealed meanwhile is left for another run.
    """

    start: date | None
    end: date
    planned: Compacted = field(default_factory=Compacted)
    done: Compacted = field(default_factory=Compacted)
    failed: list[str] = field(default_factory=list)
    """Directories below silver/ that could not be merged; the log says why."""
    _left: list[Merge] = field(default_factory=list)

    def summary(self, *, dry_run: bool) -> dict[str, Any]:
        """For people and programs; `bytes_after` is None where nothing was written."""
        found = self.planned if dry_run else self.done
        return {**asdict(found), "bytes_after": None if dry_run else found.bytes_after, "failed": self.failed}

    def plan(self, hands: Hands) -> None:
        """Find out what there is to do."""
        self._left = all_merges(hands.con, start=self.start, end=self.end)
        for merge in self._left:
            self.planned.add(merge, 0)

    def step(self, hands: Hands) -> bool:
        """Do a piece of it; returns whether there was any left."""
        sealed = {
            path for partition, _, _ in crowded(hands.con, start=self.start, end=self.end) for path in partition.paths
        }
        merges = [merge for merge in self._left if sealed.issuperset(merge.paths)]
        try:
            done = merge_some(hands, merges)
        except MergeError as error:
            hands.writer.metrics.upkeep_failed("compact", error=error.message)
            self.failed.append(error.directory)
            self._left = [merge for merge in merges if merge.partition.directory != error.directory]
        else:
            self.done += done
            self._left = merges[done.merges :]
        return bool(merges)


def merge_some(hands: Hands, merges: Sequence[Merge]) -> Compacted:
    """Merge the first of `merges`, for STEP_SECONDS, by one rewrite. Raises MergeError when one cannot be."""
    done = Compacted()
    if not merges:
        return done
    started = time.monotonic()
    rewrite = Rewrite.begin(hands.writer.store, hands.con)
    try:
        for merge in merges:
            _stage(hands, rewrite, merge, done)
            if time.monotonic() - started >= STEP_SECONDS or hands.should_yield:
                break
    except BaseException:
        rewrite.abandon()
        raise
    hands.commit(rewrite)
    metrics = hands.writer.metrics
    metrics.compacted(done.chunks_before, done.chunks_after, done.rows, time.monotonic() - started)
    metrics.chunks_counted(chunk_counts(hands.con))
    return done


def _stage(hands: Hands, rewrite: Rewrite, merge: Merge, done: Compacted) -> None:
    free = shutil.disk_usage(hands.writer.store.layout.silver).free
    if free < ROOM * (merge.size_bytes + done.bytes_before):
        raise MergeError(merge, f"it has {merge.size_bytes:,} bytes, and only {free:,} are free on that disk")
    try:
        chunk = rewrite.replace(hands.engine, merge.partition, merge.paths)
    except duckdb.InterruptException:
        raise
    except (duckdb.Error, OSError) as error:
        raise MergeError(merge, str(error)) from error
    rows = chunk.rows if chunk else 0
    if chunk is None or rows != merge.rows:
        raise MergeError(merge, f"its chunks hold {rows:,} rows, {merge.rows:,} were sealed")
    done.add(merge, chunk.size_bytes)
