"""Tail: which sources exist, which have news, and the next slice of lines.

What can be lost here, and when:
- a rename keeps its source and offset; a new file under the old name starts at 0. Nothing is lost.
- a truncated or refilled file starts at 0 again once several looks agree; what was appended and cut away between two
  looks was never readable and is counted in `lost_bytes` as far as its size was seen.
- a deleted file: what was read stays; bytes that were seen but not read are counted in `lost_bytes`, a cut last line is
  handed on as `truncated_line`.
- a scan that met an error, or an empty root while sources are known, proves nothing: every state is kept.

All of it is synchronous and belongs to one thread. Reading moves nothing: only `applied(batch)` after a durable commit does;
`abandon(batch)` makes the same lines come again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from piper.spool.discover import SUFFIX, Scan, scan_spool
from piper.spool.identity import Doubt, Source, Suspicion, guard_holds, head_holds
from piper.spool.turn import Checkpoint, Limits, Outcome, Skip, Span, Turn, take_turn

DOUBT_SECONDS = {Doubt.SHRUNK: 90.0, Doubt.CHANGED: 3.0, Doubt.GONE: 120.0}
"""How long a doubt must last before it is believed; NFS attribute caches are stale for up to a minute."""
DOUBT_LOOKS = 3
HOT_SECONDS = 600.0
"""A file that grew within this time is looked at every poll; others by the full scan only."""
FRAGMENTS_BYTES_MAX = 32 * 1024 * 1024
FRAGMENT_KEEP_SECONDS = 5.0
"""A cut line older than this is written to the manifest, so that it survives a restart and the file's deletion."""


@dataclass(slots=True)
class Batch:
    """What one or more slices read and one commit makes durable."""

    spans: list[Span] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    checkpoints: dict[Source, Checkpoint] = field(default_factory=dict)
    touched: set[Source] = field(default_factory=set)
    """Sources whose identity or suspicion changed and must be written although no line of theirs was read."""
    bytes: int = 0
    lines: int = 0

    def __bool__(self) -> bool:
        return bool(self.checkpoints or self.skips or self.touched)


@dataclass(slots=True)
class Observed:
    """Counts since the last `drain_observed()`: what the metrics want to know."""

    discovered: int = 0
    bytes_read: int = 0
    hole_bytes: int = 0
    lost_bytes: int = 0
    file_events: dict[str, int] = field(default_factory=dict)
    notes: list[tuple[str, str, str]] = field(default_factory=list)
    """(kind, path, detail), bounded; for the log."""

    def event(self, kind: str, path: bytes = b"", detail: str = "") -> None:
        self.file_events[kind] = self.file_events.get(kind, 0) + 1
        if len(self.notes) < 100:
            self.notes.append((kind, path.decode("utf-8", "backslashreplace"), detail))


class Tailer:
    """The sources of one spool and their state. `monotonic` and `utc` are injected clocks, in seconds."""

    def __init__(
        self,
        root: os.PathLike[str] | str,
        limits: Limits,
        *,
        monotonic: Callable[[], float],
        utc: Callable[[], float],
        sources: Iterable[Source] = (),
    ) -> None:
        self._root = os.fspath(root)
        self._root_bytes = os.fsencode(self._root)
        self._limits = limits
        self._monotonic, self._utc = monotonic, utc
        self._by_path: dict[bytes, Source] = {}
        self._by_inode: dict[int, Source] = {}
        self._ready: dict[Source, None] = {}
        self._hot: dict[Source, None] = {}
        self._touched: set[Source] = set()
        self._suspects: set[Source] = set()
        self._displaced: set[Source] = set()
        """Sources whose name another file has taken: renamed, or gone."""
        self._fragments: dict[Source, float] = {}
        self._lost_fragments: list[Skip] = []
        self._reported: set[bytes] = set()
        self._fragment_bytes = 0
        self.observed = Observed()
        self.scanned = False
        self.spool_error = "not scanned yet"
        for source in sources:
            self._remember(source)

    # ---- looking -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._by_path)

    @property
    def sources(self) -> Iterable[Source]:
        return self._by_path.values()

    def scan(self) -> Scan:
        """Walk the whole spool, take in new, renamed, changed and missing files. Cheap enough once a minute."""
        scan = scan_spool(self._root)
        if not scan.root_error and not scan.directories and self._by_path:
            scan.root_error = f"{self._root} is empty although {len(self._by_path)} files are known: not mounted?"
        self.spool_error = scan.root_error
        for directory, code in scan.failed:
            self.observed.event("io_error", directory, errno.errorcode.get(code, str(code)))
        if scan.complete:
            self._report_special(scan)
            self._take_in(scan)
            self.scanned = True
        return scan

    def poll(self) -> None:
        """Look at the files that grew lately and at doubtful ones; the rest is the scan's business."""
        now = self._monotonic()
        for source in list(self._hot):
            if now - source.changed_at > HOT_SECONDS:
                del self._hot[source]
            else:
                self.look(source.path)
        for source in list(self._suspects):
            if source.suspicion is None or source.suspicion.doubt is Doubt.GONE:
                self._suspects.discard(source)
            else:
                self._ready[source] = None
        self.keep_fragments(FRAGMENT_KEEP_SECONDS)

    def look(self, path: bytes) -> None:
        """Look at one file because somebody said that it changed: a hint, so errors and absence mean nothing."""
        source = self._by_path.get(path)
        try:
            status = os.lstat(self._root_bytes + b"/" + path)
        except OSError:
            return
        if source is not None and status.st_ino == source.inode:
            self._observe(source, status)
        elif path.endswith(SUFFIX) and path.count(b"/") >= 2 and stat.S_ISREG(status.st_mode):
            if source is not None or self._is_inside(path):
                self._take_in_file(path, status)

    def keep_fragments(self, older_than_seconds: float) -> None:
        """Have cut last lines that did not change for so long written with the next commit."""
        now = self._monotonic()
        for source, since in list(self._fragments.items()):
            if source.fragment is None:
                del self._fragments[source]
            elif now - since >= older_than_seconds:
                del self._fragments[source]
                self._touched.add(source)

    # ---- reading -------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether a slice would find something to read."""
        return bool(self._ready)

    def read(self, batch: Batch, slice_bytes: int) -> list[Span]:
        """Add up to about `slice_bytes` of complete lines to `batch`, each ready source in turn; returns the new spans.

        No source gets more than one turn of `turn_bytes` before every other ready one had its own.
        """
        spans: list[Span] = []
        size = 0
        for source in self._take_ready():
            before = source.fragment
            turn = take_turn(self._root_bytes, source, batch.checkpoints.get(source), self._limits, self._monotonic())
            self._settle(source, turn, batch)
            self._note_fragment(source, before)
            if turn.span is not None:
                spans.append(turn.span)
                size += len(turn.span.data)
            size += 0 if turn.span else turn.bytes_read
            if size >= slice_bytes:
                break
        batch.spans.extend(spans)
        batch.skips.extend(self._lost_fragments)
        self._lost_fragments.clear()
        batch.bytes += size
        batch.lines += sum(span.lines for span in spans)
        batch.touched |= self._touched
        self._touched.clear()
        return spans

    def applied(self, batch: Batch) -> None:
        """`batch` is durable: its offsets are now the sources' own."""
        for source, checkpoint in batch.checkpoints.items():
            source.offset, source.lines = checkpoint.offset, checkpoint.lines
            source.head, source.head_bytes = checkpoint.head, checkpoint.head_bytes
            source.guard, source.guard_bytes = checkpoint.guard, checkpoint.guard_bytes
            source.unread_since = self._monotonic() if source in self._ready else None

    def abandon(self, batch: Batch) -> None:
        """`batch` was not committed: read the same lines again later."""
        for source in batch.checkpoints:
            source.long_line = None
            self._ready[source] = None
        self._touched |= batch.touched
        self._lost_fragments.extend(skip for skip in batch.skips if skip.reason == "truncated_line")

    def backlog(self) -> tuple[int, int, float]:
        """(bytes, files, age in seconds of the oldest) of what could be read and is not committed."""
        waiting = [source for source in self._ready if source.unread_bytes]
        since = [source.unread_since for source in waiting if source.unread_since is not None]
        age = self._monotonic() - min(since) if since else 0.0
        return sum(source.unread_bytes for source in waiting), len(waiting), max(0.0, age)

    def drain_observed(self) -> Observed:
        """Take the counts gathered since the last call."""
        observed, self.observed = self.observed, Observed()
        return observed

    # ---- inside --------------------------------------------------------------------------------------------------

    def _remember(self, source: Source) -> None:
        older = self._by_path.get(source.path)
        if older is not None and not older.vanished:
            self._displaced.add(older)
        self._by_path[source.path] = source
        if not source.vanished or source.inode not in self._by_inode:
            self._by_inode[source.inode] = source
        if source.size != source.offset:
            source.mtime_ns = -1  # it had more than was committed: whatever it looks like now is news
        if source.suspicion is not None:
            self._suspects.add(source)

    def _take_ready(self) -> Iterator[Source]:
        for source in list(self._ready):
            del self._ready[source]
            yield source

    def _report_special(self, scan: Scan) -> None:
        for path, kind in scan.special.items():
            if path not in self._reported:
                self._reported.add(path)
                self.observed.event("special", path, kind)

    def _take_in(self, scan: Scan) -> None:
        unknown: list[tuple[bytes, os.stat_result]] = []
        for path, status in scan.files.items():
            source = self._by_path.get(path)
            if source is not None and source.inode == status.st_ino:
                self._observe(source, status)
            elif not self._renamed_to(path, status):
                unknown.append((path, status))
        for path, status in unknown:  # after the renames, so that a file that moved away is no longer in the way
            self._take_in_file(path, status)
        for source in [*self._by_path.values()]:
            if source.path not in scan.files and scan.saw(source.path):
                self._doubt(source, Doubt.GONE)
        for source in [*self._displaced]:
            if not scan.failed:
                self._doubt(source, Doubt.GONE)

    def _take_in_file(self, path: bytes, status: os.stat_result) -> None:
        """A name that is new, or that now stands for another inode."""
        if self._renamed_to(path, status):
            return
        known = self._by_inode.get(status.st_ino)
        if known is not None and known.path != path and self._is_file_of(known, status):
            return  # a second hard link: the same content, read once under its first name
        self._displace(path)
        source = Source(path, status.st_dev, status.st_ino)
        self._by_path[path] = source
        self._by_inode[status.st_ino] = source
        self.observed.discovered += 1
        self._observe(source, status)

    def _renamed_to(self, path: bytes, status: os.stat_result) -> bool:
        source = self._by_inode.get(status.st_ino)
        if source is None or source.path == path and source not in self._displaced:
            return False
        if self._is_file_of(source, status) or not source.offset or not self._same_content(path, source):
            return False
        self.observed.event("renamed", path, source.path.decode("utf-8", "backslashreplace"))
        if self._by_path.get(source.path) is source:
            del self._by_path[source.path]
        self._displace(path)
        self._displaced.discard(source)
        source.path, source.vanished, source.suspicion = path, False, None
        self._by_path[path] = source
        self._touched.add(source)
        self._observe(source, status)
        return True

    def _displace(self, path: bytes) -> None:
        """Another file took this name; the old one may turn up under a new one, so it is not forgotten yet."""
        source = self._by_path.pop(path, None)
        if source is None or source.vanished:
            return
        self.observed.event("replaced", path)
        self._hot.pop(source, None)
        self._ready.pop(source, None)
        self._displaced.add(source)
        self._doubt(source, Doubt.GONE)

    def _is_inside(self, path: bytes) -> bool:
        """Whether no directory on the way to a newly reported file is a symbolic link."""
        parent = os.path.dirname(self._root_bytes + b"/" + path)  # noqa: PTH120 - bytes
        base = os.path.realpath(self._root_bytes)
        return os.path.realpath(parent) == os.path.normpath(base + b"/" + os.path.dirname(path))  # noqa: PTH120

    def _is_file_of(self, source: Source, status: os.stat_result) -> bool:
        """Whether the file of `status` still stands at the path of `source`."""
        if source in self._displaced:
            return False
        try:
            there = os.lstat(self._root_bytes + b"/" + source.path)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (status.st_dev, status.st_ino)

    def _same_content(self, path: bytes, source: Source) -> bool:
        try:
            fd = os.open(self._root_bytes + b"/" + path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return os.fstat(fd).st_size >= source.offset and head_holds(fd, source) and guard_holds(fd, source)
        except OSError:
            return False
        finally:
            os.close(fd)

    def _observe(self, source: Source, status: os.stat_result) -> None:
        """A look that found the same inode under the same name."""
        if source.suspicion is not None and source.suspicion.doubt is Doubt.GONE:
            source.suspicion = None
            self._touched.add(source)
        if source.vanished:
            source.vanished = False
            self._touched.add(source)
        if (status.st_size, status.st_mtime_ns) == (source.size, source.mtime_ns) and source.nul_since is None:
            return
        now = self._monotonic()
        if source.mtime_ns > 0 or self._utc() - status.st_mtime < HOT_SECONDS:
            source.changed_at = now
            self._hot[source] = None
        source.size, source.mtime_ns = status.st_size, status.st_mtime_ns
        if source.unread_since is None and source.unread_bytes:
            source.unread_since = now
        if source.size or source.offset:
            self._ready[source] = None

    def _settle(self, source: Source, turn: Turn, batch: Batch) -> None:
        """Take the result of a turn into the batch and the source's state."""
        self.observed.bytes_read += turn.bytes_read
        match turn.outcome:
            case Outcome.READ | Outcome.IDLE | Outcome.NUL:
                if source.suspicion is not None:
                    source.suspicion = None
                    self._touched.add(source)
                self._settle_read(source, turn, batch)
            case Outcome.SHRUNK:
                self._doubt(source, Doubt.SHRUNK)
            case Outcome.CHANGED:
                self._doubt(source, Doubt.CHANGED)
            case Outcome.REPLACED:
                self.look(source.path)
            case Outcome.GONE:
                pass  # a scan decides
            case Outcome.SPECIAL:
                if source.path not in self._reported:
                    self._reported.add(source.path)
                    self.observed.event("special", source.path)
            case Outcome.ERROR:
                self.observed.event("io_error", source.path, errno.errorcode.get(turn.error, str(turn.error)))
                source.mtime_ns = -1  # look again at the next poll or scan

    def _settle_read(self, source: Source, turn: Turn, batch: Batch) -> None:
        if turn.checkpoint is not None:
            batch.checkpoints[source] = turn.checkpoint
            if source.source_id == 0:
                batch.touched.add(source)
        if turn.skip is not None:
            if turn.skip.reason:
                batch.skips.append(turn.skip)
            else:
                self.observed.hole_bytes += turn.skip.length
                self.observed.event("nul_deferred", source.path, f"hole of {turn.skip.length} bytes skipped")
        if turn.outcome is Outcome.NUL:
            source.mtime_ns = -1
            self.observed.event("nul_deferred", source.path)
        if turn.more:
            self._ready[source] = None
        elif not source.unread_bytes:
            source.unread_since = None

    def _note_fragment(self, source: Source, before: bytes | None) -> None:
        if source.fragment is before:
            return
        self._fragment_bytes += len(source.fragment or b"") - len(before or b"")
        if self._fragment_bytes > FRAGMENTS_BYTES_MAX:  # memory first: this one would be lost bytes, not a fragment
            self._fragment_bytes -= len(source.fragment or b"")
            source.fragment = None
        if source.fragment is not None:
            self._fragments[source] = self._monotonic()

    def _doubt(self, source: Source, doubt: Doubt) -> None:
        """Note a doubt; act on it once enough looks over enough time agree."""
        if source.vanished:
            return
        now = self._utc()
        seen = source.suspicion
        if seen is None or seen.doubt is not doubt or now < seen.since_utc:
            source.suspicion = Suspicion(doubt, now)
            self._suspects.add(source)
            self._touched.add(source)
            return
        seen.looks += 1
        if seen.looks < DOUBT_LOOKS or now - seen.since_utc < DOUBT_SECONDS[doubt]:
            return
        if doubt is Doubt.GONE:
            self._believe_gone(source)
        else:
            self._believe_rewritten(source, "truncated" if doubt is Doubt.SHRUNK else "replaced")

    def _believe_gone(self, source: Source) -> None:
        """The state stays (a mount may bring the file back); its unread bytes are accounted for."""
        self.observed.event("vanished", source.path)
        self._forget_content(source)
        source.vanished, source.suspicion = True, None
        self._displaced.discard(source)
        self._hot.pop(source, None)
        self._ready.pop(source, None)
        self._touched.add(source)

    def _believe_rewritten(self, source: Source, kind: str) -> None:
        try:
            status = os.lstat(self._root_bytes + b"/" + source.path)
        except OSError:
            return
        self.observed.event(kind, source.path)
        self._forget_content(source)
        source.restart(status)
        source.size, source.unread_since = status.st_size, self._monotonic()
        self._ready[source] = None
        self._touched.add(source)

    def _forget_content(self, source: Source) -> None:
        """Account for what was seen of a file and can no longer be read."""
        unread = max(0, source.size - source.offset)
        if source.fragment and unread:
            fragment = source.fragment
            skip = Skip(source, source.offset, source.lines + 1, len(fragment), "truncated_line", fragment)
            self._lost_fragments.append(skip)
            unread = max(0, unread - len(fragment))
        self._fragment_bytes -= len(source.fragment or b"")
        source.fragment = None
        self.observed.lost_bytes += unread
