"""Tail: the next slice of lines of all sources that have news, and what a commit makes of it.

All of it is synchronous, one call at a time. Reading moves nothing: only `applied(batch)` after a durable commit does;
`abandon(batch)` makes the same lines come again. What can be lost, and when, is said in `track.py` and `turn.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from piper.spool.discover import Scan
from piper.spool.identity import VANISHED_DAYS, Checkpoint, Doubt, Source
from piper.spool.ledger import Observed
from piper.spool.rest import REST_SECONDS
from piper.spool.track import Tracker
from piper.spool.turn import Limits, Outcome, Skip, Span, Turn, take_turn

SLICE_LINES_MAX = 50_000
"""No slice has (many) more lines, however short they are: what parsing one costs is bounded by both."""


@dataclass(slots=True)
class Batch:
    """What one or more slices read and one commit makes durable."""

    spans: list[Span] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    checkpoints: dict[Source, Checkpoint] = field(default_factory=dict)
    touched: set[Source] = field(default_factory=set)
    """Sources whose identity, doubt or fragment changed and must be written although no line of theirs was read."""
    bytes: int = 0
    lines: int = 0
    hole_bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.checkpoints or self.skips or self.touched)


class Tailer:
    """Reads one spool. `monotonic` and `utc` are injected clocks, in seconds; `sources` what the manifest knows.

    Files that were silent for `rest_seconds` are looked at by some of the scans only (`rest.py`). `progress` is called
    at every directory and file that is looked at: how a supervisor tells slow from hung.
    """

    def __init__(
        self,
        root: os.PathLike[str] | str,
        limits: Limits,
        *,
        monotonic: Callable[[], float],
        utc: Callable[[], float],
        sources: Iterable[Source] = (),
        vanished_days: int = VANISHED_DAYS,
        rest_seconds: float = REST_SECONDS,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        self._root = os.fsencode(root)
        self._limits, self._monotonic, self._progress = limits, monotonic, progress
        self._tracker = Tracker(
            os.fspath(root),
            monotonic=monotonic,
            utc=utc,
            sources=sources,
            vanished_days=vanished_days,
            rest_seconds=rest_seconds,
            progress=progress,
        )

    # ---- looking -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._tracker.sources)

    @property
    def sources(self) -> Iterable[Source]:
        """Every source by its present name; vanished ones are among them until another file takes the name."""
        return self._tracker.sources

    @property
    def scanned(self) -> bool:
        """Whether a scan has seen the spool."""
        return self._tracker.scanned

    @property
    def spool_error(self) -> str:
        """Why the last scan did not see the spool; empty when it did."""
        return self._tracker.error

    @property
    def observed(self) -> Observed:
        """What happened since the last `drain_observed()`."""
        return self._tracker.ledger.observed

    @property
    def unreadable(self) -> list[bytes]:
        """Paths of files and directories that cannot be read now, sorted."""
        return self._tracker.unreadable_paths

    @property
    def special(self) -> int:
        """How many links, pipes and the like stand where input would."""
        return self._tracker.special_paths

    @property
    def polls(self) -> bool:
        """Whether a poll would look at anything: not where no file grew lately and none is in doubt."""
        return self._tracker.polls

    @property
    def doubtful(self) -> int:
        """Files that look cut, replaced, gone or full of NUL bytes and are not believed to be yet."""
        return self._tracker.doubtful

    def scan(self) -> Scan:
        """Walk the whole spool: the truth about which files exist. Cheap enough once a minute."""
        return self._tracker.scan()

    def poll(self) -> None:
        """Look at the files that grew lately and at doubtful ones; cheap enough once a second."""
        self._tracker.poll()

    def look(self, path: bytes) -> None:
        """Look at one file (path relative to the root) because somebody said that it changed."""
        self._tracker.look(path)

    # ---- reading -------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether a slice would find something to read."""
        return bool(self._tracker.ready)

    @property
    def quiet_ready(self) -> bool:
        """Whether a slice would find something in a source of which one turn takes all that is unread."""
        return any(map(self._is_quiet, self._tracker.ready))

    @property
    def is_flooded(self) -> bool:
        """Whether a source needs more than one turn: the others would wait for it."""
        return not all(map(self._is_quiet, self._tracker.ready))

    def read(self, batch: Batch, slice_bytes: int, *, quiet_only: bool = False) -> list[Span]:
        """Add up to about `slice_bytes` of complete lines to `batch`, each ready source in turn; returns the new spans.

        No source gets more than one turn of `turn_bytes` before every other ready one had its own; with `quiet_only`,
        those that need more get none.
        """
        tracker, ledger = self._tracker, self._tracker.ledger
        first, size, lines = len(batch.spans), 0, batch.lines
        for source in list(tracker.ready):
            if quiet_only and not self._is_quiet(source):
                continue
            del tracker.ready[source]
            self._progress()
            turn = take_turn(self._root, source, batch.checkpoints.get(source), self._limits)
            self._settle(source, turn, batch)
            size += turn.bytes_read
            if size >= slice_bytes or batch.lines - lines >= SLICE_LINES_MAX:
                break
        batch.skips.extend(ledger.lost)
        ledger.lost.clear()
        batch.touched |= ledger.touched
        ledger.touched.clear()
        return batch.spans[first:]

    def applied(self, batch: Batch) -> None:
        """`batch` is durable: its offsets are now the sources' own."""
        now = self._monotonic()
        for source, checkpoint in batch.checkpoints.items():
            source.advance(checkpoint)
            if not source.unread_bytes:
                source.unread_since = None
            elif source.unread_since is None or source.offset >= source.unread_to:
                source.unread_since, source.unread_to = source.changed_at or now, source.size
        self.observed.lost_bytes += batch.hole_bytes

    def abandon(self, batch: Batch) -> None:
        """`batch` was not committed: the same lines come again with the next slices."""
        tracker, ledger = self._tracker, self._tracker.ledger
        for source in batch.checkpoints:
            source.long_line, source.held_bytes = None, 0
            ledger.keep_fragment(source, None)  # it was seen from an offset that does not count
            tracker.ready[source] = None
        ledger.touched |= batch.touched
        ledger.lost.extend(skip for skip in batch.skips if skip.reason == "truncated_line")

    def waiting(self) -> list[tuple[Source, float]]:
        """Every source with bytes that could be read and are not committed, and for how many seconds they have been."""
        now = self._monotonic()
        sources = [source for source in self._tracker.ready if source.unread_bytes]
        return [(s, 0.0 if s.unread_since is None else max(0.0, now - s.unread_since)) for s in sources]

    def backlog(self) -> tuple[int, int, float]:
        """(bytes, files, age in seconds of the oldest) of what could be read and is not committed."""
        waiting = self.waiting()
        oldest = max((seconds for _, seconds in waiting), default=0.0)
        return sum(source.unread_bytes for source, _ in waiting), len(waiting), oldest

    def drain_observed(self) -> Observed:
        """Take the counts gathered since the last call."""
        ledger = self._tracker.ledger
        observed, ledger.observed = ledger.observed, Observed()
        return observed

    # ---- inside --------------------------------------------------------------------------------------------------

    def _is_quiet(self, source: Source) -> bool:
        return source.unread_bytes <= self._limits.turn_bytes

    def _settle(self, source: Source, turn: Turn, batch: Batch) -> None:
        """Take the result of a turn into the batch and the source's state."""
        tracker = self._tracker
        tracker.ledger.observed.bytes_read += turn.bytes_read
        match turn.outcome:
            case Outcome.READ | Outcome.IDLE | Outcome.NUL:
                self._settle_read(source, turn, batch)
            case Outcome.SHRUNK:
                tracker.mismatched(source, Doubt.SHRUNK)
            case Outcome.CHANGED:
                tracker.mismatched(source, Doubt.CHANGED)
            case Outcome.REPLACED:
                assert turn.status is not None
                source.mtime_ns = -1
                tracker.see(source.path, turn.status)
            case Outcome.GONE:
                source.mtime_ns = -1  # a scan decides; if it comes back, what it looks like is news
            case Outcome.SPECIAL:
                source.mtime_ns = -1
                tracker.report_special(source.path, "not a regular file")
            case Outcome.ERROR:
                tracker.unreadable(source, turn.error)

    def _settle_read(self, source: Source, turn: Turn, batch: Batch) -> None:
        tracker = self._tracker
        tracker.trust(source)
        tracker.nul_found(source, turn.nul_at, moved=turn.checkpoint is not None)
        tracker.ledger.keep_fragment(source, turn.fragment)
        if turn.checkpoint is not None:
            batch.checkpoints[source] = turn.checkpoint
        elif turn.outcome is Outcome.READ:  # on the way through a long line: progress, though nothing to commit yet
            batch.touched.add(source)
        if turn.span is not None:
            batch.spans.append(turn.span)
            batch.lines += turn.span.lines
        if turn.skip is not None:
            batch.skips.append(turn.skip)
        if turn.hole_bytes:
            batch.hole_bytes += turn.hole_bytes
            tracker.ledger.observed.event("nul_deferred", source.path, f"hole of {turn.hole_bytes} bytes skipped")
        if turn.outcome is Outcome.READ or turn.span is not None:
            batch.bytes += turn.bytes_read
        if turn.more:
            tracker.ready[source] = None
