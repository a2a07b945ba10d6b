"""Intake: what is unread becomes a batch: bytes are read slice by slice, and each is parsed while the next is read."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime

from piper.events.parse import Lines, Parser, split
from piper.events.quarantine import Rejection, rejection_of
from piper.memory import return_large_blocks
from piper.settings import Settings
from piper.silver.store import Store
from piper.spool.tail import Batch, Tailer
from piper.spool.turn import SAMPLE_BYTES

SLICE_BYTES = 8 * 1024 * 1024
"""Bytes that are parsed at a time; a batch is one or more slices."""
LONG_LINE_BYTES = 16 * 1024
LONG_LINES_BYTES_MAX = 32 * 1024 * 1024
"""Bytes of a batch in lines over LONG_LINE_BYTES: DuckDB holds each of their values several times over."""


@dataclass(slots=True)
class Gathered:
    """A batch whose lines are in the parser's tables, and what of them is no event."""

    batch: Batch
    rejections: list[Rejection]
    read_seconds: float = 0.0
    """Of the wall, in reading and splitting; parsing went on meanwhile."""
    seconds: float = 0.0


class Intake:
    """Reads `tailer` into the parser of a store. In the writer's thread."""

    def __init__(self, settings: Settings, store: Store, tailer: Tailer) -> None:
        self.settings = settings
        self._tailer = tailer
        self._parser = Parser(
            store.con,
            [store.cursor() for _ in range(settings.duckdb.threads or os.cpu_count() or 1)],
            line_bytes_max=settings.ingest.line_bytes_max,
            sample_bytes=SAMPLE_BYTES,
        )
        self._long_bytes = 0
        return_large_blocks()

    def close(self) -> None:
        """Give up the parser's threads and connections."""
        self._parser.close()

    def gather(
        self,
        now: Callable[[], datetime],
        *,
        seconds: float = math.inf,
        look: Callable[[], None] = lambda: None,
        quiet_only: bool = False,
    ) -> Gathered:
        """Read until nothing is ready, the batch is full, or `seconds` are over. `look` is called before each slice.

        `now`: the clock by which a slice is judged, naive UTC. `quiet_only` as in `Tailer.read`.
        """
        batch, rejections = Batch(), list[Rejection]()
        self._long_bytes = 0
        self._parser.begin()
        started = time.perf_counter()
        read_seconds = 0.0
        pending: deque[Future[list[Rejection]]] = deque()
        while True:
            look()
            began = time.perf_counter()
            lines = self._next_slice(batch, quiet_only)
            read_seconds += time.perf_counter() - began
            if lines is not None:
                pending.append(self._parser.add(lines, now()))
            is_full = self._is_full(batch, quiet_only) or time.perf_counter() - started >= seconds
            while pending and (is_full or len(pending) > self._parser.slices_at_once):
                rejections += pending.popleft().result()
            if is_full:
                break
        rejections += [rejection_of(skip) for skip in batch.skips]
        if batch.lines:
            self._parser.finish()
        return Gathered(batch, rejections, read_seconds, time.perf_counter() - started)

    def _is_full(self, batch: Batch, quiet_only: bool) -> bool:
        limits = self.settings.ingest
        return (
            not (self._tailer.quiet_ready if quiet_only else self._tailer.ready)
            or batch.bytes >= limits.batch_bytes_max
            or batch.lines >= limits.batch_events_max
            or self._long_bytes >= LONG_LINES_BYTES_MAX
        )

    def _next_slice(self, batch: Batch, quiet_only: bool) -> Lines | None:
        """The next slice, split into lines; None when nothing is left to read."""
        while True:
            room = max(1, self.settings.ingest.batch_bytes_max - batch.bytes)
            spans = self._tailer.read(batch, min(SLICE_BYTES, room), quiet_only=quiet_only)
            batch.spans.clear()  # parsed slice by slice: a batch must not keep all its bytes in memory
            if spans:
                lines = split(spans)
                sizes = lines.ends - lines.starts
                self._long_bytes += int(sizes[sizes > LONG_LINE_BYTES].sum())
                return lines
            if self._is_full(batch, quiet_only):
                return None
