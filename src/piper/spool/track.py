"""Tracking: which sources exist, which of them have news, and what is believed of those that look wrong.

What can be lost here, and when:
- a rename keeps its source and offset; a new file under the old name starts at 0. Nothing is lost.
- a truncated or refilled file starts at 0 again once several looks agree; what was appended and cut away between two
  looks was never readable and is counted in `lost_bytes` as far as its size was seen.
- a deleted file: what was read stays; bytes that were seen but not read are counted in `lost_bytes`, a cut last line is
  handed on as `truncated_line`.
- a scan that met an error, or an empty root while sources are known, proves nothing: every state is kept.

Nothing here reads lines; whoever does says what a turn found.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from piper.spool.discover import Scan, is_spool_path, scan_spool
from piper.spool.identity import VANISHED_DAYS, Doubt, Source, Suspicion, display_path
from piper.spool.index import SourceIndex
from piper.spool.ledger import Ledger
from piper.spool.open import look_at, open_to_read
from piper.spool.rest import REST_SECONDS, Rest

DOUBT_SECONDS = {Doubt.SHRUNK: 90.0, Doubt.CHANGED: 3.0, Doubt.GONE: 120.0, Doubt.NUL: 30.0}
"""How long a doubt must last before it is believed; NFS attribute caches are stale for up to a minute."""
DOUBT_LOOKS = 3
UNSEEN_SECONDS = 3600.0
"""The same for a displaced source that may have moved to where the scans see nothing."""
HOT_SECONDS = 600.0
"""A file that grew within this time is looked at every poll; others by the full scan only."""


class Tracker:
    """The sources of one spool and their state. `monotonic` and `utc` are injected clocks, in seconds.

    `progress` is called at every step of a look that may take long in all.
    """

    def __init__(
        self,
        root: str,
        *,
        monotonic: Callable[[], float],
        utc: Callable[[], float],
        sources: Iterable[Source],
        vanished_days: int = VANISHED_DAYS,
        rest_seconds: float = REST_SECONDS,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        self._root, self._root_bytes = root, os.fsencode(root)
        self._vanished_days = vanished_days
        self._monotonic, self._utc, self._progress = monotonic, utc, progress
        known = list(sources)
        self.sources = SourceIndex(self._root_bytes, known)
        self.ready: dict[Source, None] = {}
        """Those with news, in the order in which they had it."""
        self.ledger = Ledger()
        self.error = "not scanned yet"
        self.scanned = False
        self._rest = Rest(self.sources, utc, rest_seconds)
        self._hot: dict[Source, None] = {}
        self._suspects: set[Source] = set()
        self._vanished: dict[Source, float] = {}
        self._unreadable: set[Source] = set()
        self._reported: set[bytes] = set()
        self._failed: dict[bytes, int] = {}
        for source in known:
            self._recall(source)

    # ---- looking -------------------------------------------------------------------------------------------------

    def scan(self) -> Scan:
        """Walk the whole spool, take in new, renamed, changed and missing files. Cheap enough once a minute."""
        self._rest.begin()
        scan = scan_spool(self._root, self._progress, self._rest)
        if not scan.root_error and not all(source.vanished for source in self.sources):
            scan.root_error = self._why_unmounted(scan)
        self.error = scan.root_error
        for code in scan.failed.values() if not scan.root_error else [scan.root_errno]:
            self.ledger.observed.error(code)
        if not scan.root_error:
            self._report(scan)
            self._take_in(scan)
            self._forget_long_vanished()
            self.scanned = True
        self._rest.finish(whole=not scan.root_error and not scan.failed)
        return scan

    def poll(self) -> None:
        """Look at the files that grew lately and at doubtful ones; the rest is the scan's business."""
        now = self._monotonic()
        for source in list(self._hot):
            self._progress()
            if now - source.changed_at > HOT_SECONDS:
                del self._hot[source]
            else:
                self._look_closely(source)
        for source in list(self._suspects):
            if source.suspicion is None or source.suspicion.doubt is Doubt.GONE:
                self._suspects.discard(source)
            else:
                self.ready[source] = None

    def look(self, path: bytes) -> None:
        """Look at one file because somebody said that it changed: a hint, so errors and absence mean nothing."""
        if is_spool_path(path):
            try:
                status = look_at(self._root_bytes, path)
            except OSError:
                return
            self.see(path, status)

    def see(self, path: bytes, status: os.stat_result) -> None:
        """The file of `status` stands at this path now."""
        source = self.sources.at(path)
        if source is not None and status.st_ino == source.inode:
            self._observe(source, status)
        elif stat.S_ISREG(status.st_mode):
            self._take_in_file(path, status)

    @property
    def unreadable_paths(self) -> list[bytes]:
        """Files and directories that could not be read at the last look at each."""
        return sorted([*self._failed, *(source.path for source in self._unreadable)])

    @property
    def special_paths(self) -> int:
        """How many things that are not read stand where input would."""
        return len(self._reported)

    @property
    def polls(self) -> bool:
        """Whether a poll would look at anything."""
        return bool(self._hot or self._suspects)

    @property
    def doubtful(self) -> int:
        """Files whose identity, size or presence is in doubt."""
        return len(self._suspects)

    # ---- what a turn found ---------------------------------------------------------------------------------------

    def trust(self, source: Source) -> None:
        """An open file was `source` beyond doubt."""
        source.known_bytes, source.error = source.size, 0
        self._unreadable.discard(source)
        if source.suspicion is not None and source.suspicion.doubt is not Doubt.NUL:
            self._clear_doubt(source)

    def nul_found(self, source: Source, at: int | None, *, moved: bool) -> None:
        """A turn stopped at NUL bytes (None: it did not). `moved`: it took lines, so they are not those of before."""
        suspected = source.suspicion is not None and source.suspicion.doubt is Doubt.NUL
        if suspected and (at is None or moved or source.nul_at not in {None, at}):
            self._clear_doubt(source)
        source.nul_at = at
        if at is not None:
            if source.suspicion is None:
                source.nul_seen = source.size
                self.ledger.observed.event("nul_deferred", source.path)
            self.doubt(source, Doubt.NUL)

    def unreadable(self, source: Source, code: int) -> None:
        """It could not be opened or read. Reported once until it can; every look tries again."""
        self.ledger.observed.error(code)
        self._unreadable.add(source)
        if source.error != code:
            source.error = code
            self.ledger.observed.event("io_error", source.path, errno.errorcode.get(code, str(code)))
        source.mtime_ns = -1

    def report_special(self, path: bytes, kind: str) -> None:
        """Something that is not read stands under this name; reported once."""
        if path not in self._reported:
            self._reported.add(path)
            self.ledger.observed.event("special", path, kind)

    def mismatched(self, source: Source, doubt: Doubt) -> None:
        """The file under its name and inode number does not hold its content: another one that we know, or a doubt."""
        source.mtime_ns = -1
        if self.sources.at(source.path) is not source:
            return  # it lost that name, and what stands there is not its own; the scans decide what became of it
        try:
            status = look_at(self._root_bytes, source.path)
        except OSError:
            return
        other = self.sources.moved_here(source.path, status) if status.st_ino == source.inode else None
        if other is not None and (other.offset or other.fragment):
            self._move(other, source.path, status)
        else:
            self.doubt(source, doubt)

    def doubt(self, source: Source, doubt: Doubt, *, seconds: float | None = None) -> None:
        """Note a doubt; act on it once enough looks over enough time agree."""
        if source.vanished:
            return
        now, seen = self._utc(), source.suspicion
        if seen is None or seen.doubt is not doubt or now < seen.since_utc:
            source.suspicion = Suspicion(doubt, now)
            self._suspects.add(source)
            self.ledger.touched.add(source)
            return
        if seen.looks < DOUBT_LOOKS:
            seen.looks += 1
            self.ledger.touched.add(source)  # a run of `piper ingest` is one look: they must add up
        if seen.looks < DOUBT_LOOKS or now - seen.since_utc < (seconds or DOUBT_SECONDS[doubt]):
            return
        if doubt is Doubt.GONE:
            self._believe_gone(source)
        elif doubt is Doubt.NUL:
            source.nul_until = source.nul_seen
            self.ready[source] = None
        else:
            self._believe_rewritten(source, "truncated" if doubt is Doubt.SHRUNK else "replaced")

    # ---- inside: what a look found -------------------------------------------------------------------------------

    def _recall(self, source: Source) -> None:
        """Take up a source that the manifest kept."""
        self.ledger.recall(source)
        source.known_bytes = source.nul_seen = source.size
        if source.suspicion is not None:
            self._suspects.add(source)
            if source.suspicion.doubt in {Doubt.SHRUNK, Doubt.CHANGED}:
                source.known_bytes = source.offset + len(source.fragment or b"")
        if source.vanished:
            self._vanished[source] = self._utc()
        elif source.size != source.offset:
            source.mtime_ns = -1  # it had more than was committed: whatever it looks like now is news

    def _why_unmounted(self, scan: Scan) -> str:
        """What an unmounted spool leaves is a mount point: empty, or with directories on the device of its parent."""
        known = f"{len(self.sources)} files are known: not mounted?"
        if not scan.directories:
            return f"{self._root} is empty although {known}"
        if scan.files or scan.unchanged:
            return ""
        try:
            device = Path(self._root).stat().st_dev
        except OSError as error:
            return f"{self._root}: {error.strerror}"
        if any(source.device == device for source in self.sources if not source.vanished):
            return ""  # somebody has deleted every file
        return f"{self._root} has no file and is on another disk although {known}"

    def _report(self, scan: Scan) -> None:
        self._reported = {path for path in self._reported if path in scan.special or not scan.saw(path)}
        for path, kind in scan.special.items():
            self.report_special(path, kind)
        for directory, code in scan.failed.items():
            if self._failed.get(directory) != code:
                self.ledger.observed.event("io_error", directory, errno.errorcode.get(code, str(code)))
        self._failed = scan.failed

    def _take_in(self, scan: Scan) -> None:
        unknown: list[tuple[bytes, os.stat_result]] = []
        for path, status in scan.files.items():
            source = self.sources.at(path)
            if source is not None and source.inode == status.st_ino:
                self._observe(source, status)
            elif (moved := self.sources.moved_here(path, status)) is not None:
                self._move(moved, path, status)
            else:
                unknown.append((path, status))
        # After the renames, so that a file that moved away is no longer in the way. Oldest first, so that a backlog is
        # read in the order of time and a batch of it touches few dates.
        for path, status in sorted(unknown, key=lambda entry: entry[1].st_mtime_ns):
            self._take_in_file(path, status)
        for source in list(self.sources):
            if source.seen_in != self._rest.scan and source.path not in scan.files and scan.saw(source.path):
                self.doubt(source, Doubt.GONE)
        for source in list(self.sources.displaced):
            self.doubt(source, Doubt.GONE, seconds=UNSEEN_SECONDS if scan.failed else None)

    def _take_in_file(self, path: bytes, status: os.stat_result) -> None:
        """A name that is new, or that now stands for another inode."""
        moved = self.sources.moved_here(path, status)
        if moved is not None:
            self._move(moved, path, status)
            return
        if self.sources.is_second_name(path, status):
            return
        source = Source(path, status.st_dev, status.st_ino)
        if self.sources.add(source):
            self.ledger.observed.event("replaced", path)
        self.ledger.observed.discovered += 1
        self._observe(source, status)

    def _move(self, source: Source, path: bytes, status: os.stat_result) -> None:
        if source.path != path:
            self.ledger.observed.event("renamed", path, display_path(source.path))
        self.sources.rename(source, path)
        self.ledger.touched.add(source)
        self._observe(source, status)

    def _observe(self, source: Source, status: os.stat_result) -> None:
        """A look that found the same inode under the same name."""
        if source.vanished or (source.suspicion is not None and source.suspicion.doubt is Doubt.GONE):
            source.mtime_ns = -1 if source.vanished else source.mtime_ns
            source.vanished = False
            self._vanished.pop(source, None)
            self._clear_doubt(source)
        changed = (status.st_size, status.st_mtime_ns) != (source.size, source.mtime_ns)
        if not changed and source.suspicion is None:
            return
        now = self._monotonic()
        if changed and (source.mtime_ns > 0 or self._utc() - status.st_mtime < HOT_SECONDS):
            source.changed_at = now
            self._hot[source] = None
        source.size, source.mtime_ns = status.st_size, status.st_mtime_ns
        if source.unread_since is None and source.unread_bytes:
            source.unread_since, source.unread_to = now, source.size
        if source.size or source.offset:
            self.ready[source] = None

    def _look_closely(self, source: Source) -> None:
        """Look through a fresh open: over NFS a bare stat may be a minute old."""
        try:
            fd = open_to_read(self._root_bytes, source.path)
        except OSError:
            self.look(source.path)
            return
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        self.see(source.path, status)

    # ---- inside: what is believed --------------------------------------------------------------------------------

    def _clear_doubt(self, source: Source) -> None:
        source.suspicion = None
        self._suspects.discard(source)
        self.ledger.touched.add(source)

    def _believe_gone(self, source: Source) -> None:
        """The state stays (a mount may bring the file back); its unread bytes are accounted for."""
        self.ledger.observed.event("vanished", source.path)
        self.ledger.lose(source, max(source.size, source.known_bytes))
        self._clear_doubt(source)
        source.vanished = True
        self._unreadable.discard(source)
        self._vanished[source] = self._utc()
        self.sources.displaced.discard(source)
        self._hot.pop(source, None)
        self.ready.pop(source, None)

    def _believe_rewritten(self, source: Source, kind: str) -> None:
        self.ledger.observed.event(kind, source.path)
        self.ledger.lose(source, source.known_bytes)
        self._clear_doubt(source)
        source.restart()
        source.mtime_ns = -1
        self.ready[source] = None

    def _forget_long_vanished(self) -> None:
        now = self._utc()
        for source, since in list(self._vanished.items()):
            if now - since > self._vanished_days * 86400:
                del self._vanished[source]
                self.sources.forget(source)
