"""One turn at one file: open it afresh, make sure that it is the file we know, take the complete lines.

What each oddity costs:
- cut last line: nothing; it waits (`held_bytes`) until its newline comes, and is a fragment in case the file goes.
- NUL bytes: a page that has not arrived yet reads as NULs over NFS. The lines from there on wait until the caller
  believes them (`nul_until`); NULs that stay are a hole: skipped where they stand before a line, and counted.
- a line over `line_bytes_max`: that line only, after its end was found; until then the offset stays at its start.
- a smaller size, a guard that does not hold, another inode: nothing is read; the caller decides when to believe it.

The bytes that prove the identity and the bytes that are taken come from one `pread`, so a file that is rewritten while
we look at it is either the old one or the new one for both.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from piper.spool.identity import (
    GUARD_BYTES,
    HEAD_BYTES,
    Checkpoint,
    LongLine,
    Source,
    fingerprint,
    head_holds,
)
from piper.spool.open import open_to_read

SAMPLE_BYTES = 64 * 1024
"""How much of an over-long line is kept."""
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Span:
    """Complete lines of one source: `data` is the file's bytes [start_offset, start_offset + len(data))."""

    source: Source
    start_offset: int
    start_line: int
    """1-based number of the first line."""
    data: bytes | memoryview
    ends: npt.NDArray[np.int64]
    """Where each line ends in `data`, its newline included."""

    @classmethod
    def of(cls, source: Source, start_offset: int, start_line: int, data: bytes) -> Self:
        """The span over `data`, which ends with a newline."""
        return cls(source, start_offset, start_line, data, line_ends(data))

    @property
    def lines(self) -> int:
        return len(self.ends)


@dataclass(frozen=True, slots=True)
class Skip:
    """A stretch of a file that is no event: it goes to quarantine with `reason`."""

    source: Source
    offset: int
    line: int
    """1-based."""
    length: int
    reason: str
    sample: bytes


class Outcome(enum.Enum):
    """What a turn found, apart from lines."""

    READ = "read"
    IDLE = "idle"
    NUL = "nul"
    GONE = "gone"
    REPLACED = "replaced"
    SHRUNK = "shrunk"
    CHANGED = "changed"
    SPECIAL = "special"
    ERROR = "error"


@dataclass(slots=True)
class Turn:
    """The result of one turn; READ, IDLE and NUL say that the file is the one we know."""

    outcome: Outcome
    span: Span | None = None
    skip: Skip | None = None
    hole_bytes: int = 0
    checkpoint: Checkpoint | None = None
    fragment: bytes | None = None
    """The cut last line as it stands now."""
    nul_at: int | None = None
    """Where the NUL bytes begin that stopped the turn."""
    more: bool = False
    """Whether another turn would find something at once."""
    bytes_read: int = 0
    error: int = 0
    status: os.stat_result | None = None
    """Of REPLACED: the file that stands there now."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a turn, in bytes. A turn holds at least one line of any allowed length."""

    turn_bytes: int
    line_bytes_max: int
    turn_lines: int = 20_000
    """A line costs memory whatever its length: 4 MiB of line ends would be four million rejections."""

    def __post_init__(self) -> None:
        if self.turn_bytes <= self.line_bytes_max:
            raise ValueError(f"turn_bytes {self.turn_bytes} must be more than line_bytes_max {self.line_bytes_max}")


@dataclass(slots=True)
class _View:
    """An open file that is the source, and the bytes [base, base + len(buffer)) of it; `at` lies within them."""

    fd: int
    source: Source
    at: Checkpoint
    base: int
    buffer: bytes
    error: int = 0
    """errno of what cannot be read behind the buffer."""

    @property
    def end(self) -> int:
        return self.base + len(self.buffer)

    def checkpoint(self, offset: int, lines: int) -> Checkpoint:
        """Where the source stands after `offset`, which is `lines` lines on."""
        head, head_bytes = self.at.head, self.at.head_bytes
        if head_bytes < HEAD_BYTES:
            beginning = self._bytes(0, min(HEAD_BYTES, offset))
            head, head_bytes = fingerprint(beginning), len(beginning)
        guard = self._bytes(max(0, offset - GUARD_BYTES), offset)
        return Checkpoint(offset, self.at.lines + lines, head, head_bytes, fingerprint(guard), len(guard))

    def _bytes(self, start: int, end: int) -> bytes:
        if self.base <= start and end <= self.end:
            return self.buffer[start - self.base : end - self.base]
        return os.pread(self.fd, end - start, start)


def line_ends(data: bytes | memoryview) -> npt.NDArray[np.int64]:
    """Where the complete lines of `data` end, newlines included."""
    return np.flatnonzero(np.frombuffer(data, np.uint8) == 0x0A).astype(np.int64, copy=False) + 1


def take_turn(root: bytes, source: Source, start: Checkpoint | None, limits: Limits) -> Turn:
    """Read complete lines of `source` from its offset, or from `start` where a batch under way has already read ahead.

    Reads up to the size that fstat of a fresh open reports, and updates the observations of `source` (size, held bytes,
    the walk through an over-long line), never what is committed.
    """
    try:
        fd = open_to_read(root, source.path)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            return Turn(Outcome.GONE)
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            return Turn(Outcome.SPECIAL)
        return Turn(Outcome.ERROR, error=error.errno or 0)
    try:
        return _read(fd, source, start or source.checkpoint, limits)
    except OSError as error:
        return Turn(Outcome.ERROR, error=error.errno or 0)
    finally:
        os.close(fd)


def _read(fd: int, source: Source, at: Checkpoint, limits: Limits) -> Turn:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return Turn(Outcome.SPECIAL)
    if status.st_ino != source.inode:
        return Turn(Outcome.REPLACED, status=status)
    if status.st_size < at.offset:
        return Turn(Outcome.SHRUNK)
    base = 0 if at.offset <= HEAD_BYTES else at.offset - at.guard_bytes
    size = min(status.st_size, at.offset + (0 if source.long_line else limits.turn_bytes))
    view = _View(fd, source, at, base, *_read_all(fd, size - base, base))
    if view.end < at.offset:
        return Turn(Outcome.ERROR, error=view.error) if view.error else Turn(Outcome.SHRUNK)
    if not _is_known(view):
        return Turn(Outcome.CHANGED)
    source.device = status.st_dev  # a remount may number it anew; inode, head and guard have just agreed
    source.size, source.mtime_ns = status.st_size, status.st_mtime_ns
    if view.end < size:  # it is being cut while we look, or cannot be read from there on
        source.size, source.mtime_ns = status.st_size if view.error else view.end, -1
    if source.long_line is not None:
        return _through_long_line(view, source.long_line, limits)
    turn = _take_lines(view, limits)
    if view.error and turn.checkpoint is None and source.long_line is None:
        return Turn(Outcome.ERROR, error=view.error)
    return turn


def _read_all(fd: int, size: int, start: int) -> tuple[bytes, int]:
    """The bytes [start, start + size) as far as they can be read, and the errno where that ended early.

    A bad place makes the kernel give what stands before it, without an error: only who asks again is told. Raises
    OSError when nothing can be read.
    """
    data = os.pread(fd, size, start)
    while 0 < len(data) < size:
        try:
            more = os.pread(fd, size - len(data), start + len(data))
        except OSError as error:
            return data, error.errno or errno.EIO
        if not more:
            break
        data += more
    return data, 0


def _is_known(view: _View) -> bool:
    """Whether what stands before `at` is what was read there; at 0, whether the cut line seen there still stands."""
    at, known = view.at, view.source.fragment
    if not at.offset:
        seen = view.buffer[: len(known)] if known else b""
        return known is None or known.startswith(seen) or b"\0" in seen
    lead = at.offset - view.base
    if fingerprint(view.buffer[lead - at.guard_bytes : lead]) != at.guard:
        return False
    return fingerprint(view.buffer[: at.head_bytes]) == at.head if view.base == 0 else head_holds(view.fd, at)


def _take_lines(view: _View, limits: Limits) -> Turn:
    source, at, buffer = view.source, view.at, view.buffer
    lead = at.offset - view.base
    if len(buffer) == lead:
        source.held_bytes = 0
        return Turn(Outcome.IDLE, fragment=source.fragment)
    if buffer[lead] == 0 and at.offset < source.nul_until:
        return _skip_hole(view)
    nul = buffer.find(b"\0", max(lead, source.nul_until - view.base))
    until = len(buffer) if nul < 0 else nul
    ends = line_ends(memoryview(buffer)[lead:until])
    last = lead + int(ends[-1]) if len(ends) else lead
    is_long = until - last > limits.line_bytes_max
    ends = ends[: limits.turn_lines]
    end = lead + int(ends[-1]) if len(ends) else lead
    if is_long and end == lead:
        before = buffer[max(0, until - GUARD_BYTES) : until]
        source.long_line = LongLine(buffer[lead : lead + SAMPLE_BYTES], view.base + until, before)
        return Turn(Outcome.READ, fragment=source.fragment, more=True, bytes_read=until - lead)
    turn = Turn(Outcome.IDLE, bytes_read=len(buffer) - lead)
    if end > lead:
        turn = _lines_turn(view, lead, ends)
    beyond = nul < 0 and view.end < source.size
    turn.more = is_long or end < last or (beyond and end > lead)
    turn.fragment = buffer[end:until] or None if not turn.more else None
    source.held_bytes = 0 if turn.more else source.size - view.base - end
    if nul >= 0 and end == last:
        turn.outcome, turn.nul_at = Outcome.NUL, view.base + nul
    return turn


def _lines_turn(view: _View, lead: int, ends: npt.NDArray[np.int64]) -> Turn:
    start, size = view.at.offset, int(ends[-1])
    checkpoint = view.checkpoint(start + size, len(ends))
    skipped = len(BOM) if start == 0 and view.buffer.startswith(BOM) else 0
    data = memoryview(view.buffer)[lead + skipped : lead + size]
    span = Span(view.source, start + skipped, view.at.lines + 1, data, ends - skipped if skipped else ends)
    return Turn(Outcome.READ, span, checkpoint=checkpoint, bytes_read=size)


def _skip_hole(view: _View) -> Turn:
    """Skip believed NULs before a line. A sparse hole is jumped over in one step, so one of 1 GiB costs no reading."""
    source, at = view.source, view.at
    data = view.buffer[at.offset - view.base :]
    end = view.end - len(data.lstrip(b"\0"))
    until = min(source.nul_until, source.size)
    if end == view.end < until:
        try:
            end = max(end, os.lseek(view.fd, end, os.SEEK_DATA))
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but the hole to the end
                end = until
            elif error.errno != errno.EINVAL:  # EINVAL: the file system cannot say, so the NULs are read
                raise
    end = min(end, until)
    source.held_bytes = 0
    return Turn(
        Outcome.READ, hole_bytes=end - at.offset, checkpoint=view.checkpoint(end, 0), more=end < source.size,
        bytes_read=len(data),
    )  # fmt: skip


def _through_long_line(view: _View, line: LongLine, limits: Limits) -> Turn:
    """Go on looking for the end of a line over the limit."""
    source, at = view.source, view.at
    base = line.position - len(line.before)
    size = min(limits.turn_bytes, max(0, source.size - line.position))
    view.base = base
    view.buffer, view.error = _read_all(view.fd, len(line.before) + size, base)
    if not view.buffer.startswith(line.before):  # what we walked over was written anew, so begin again
        source.long_line = None
        return Turn(Outcome.READ, more=True)
    lead = len(line.before)
    if view.error and len(view.buffer) == lead:
        return Turn(Outcome.ERROR, error=view.error)
    nul = view.buffer.find(b"\0", max(lead, source.nul_until - base))
    until = len(view.buffer) if nul < 0 else nul
    newline = view.buffer.find(b"\n", lead, until)
    if newline >= 0:
        source.long_line, source.held_bytes = None, 0
        end = base + newline + 1
        skip = Skip(source, at.offset, at.lines + 1, end - 1 - at.offset, "line_too_long", line.sample)
        return Turn(
            Outcome.READ, skip=skip, checkpoint=view.checkpoint(end, 1), more=end < source.size,
            bytes_read=newline + 1 - lead,
        )  # fmt: skip
    line.position, line.before = base + until, view.buffer[max(0, until - GUARD_BYTES) : until]
    turn = Turn(Outcome.READ if until > lead else Outcome.IDLE, fragment=line.sample, bytes_read=until - lead)
    if nul >= 0:
        turn.outcome, turn.nul_at = Outcome.NUL, base + nul
    else:
        turn.more = until > lead and line.position < source.size
    source.held_bytes = 0 if turn.more else source.size - at.offset
    return turn
