"""One turn at one file: open it afresh, make sure that it is the file we know, take the complete lines.

What each oddity costs:
- cut last line: nothing; it waits (`held_bytes`) until its newline comes, and is kept as a fragment in case the file goes.
- NUL bytes: a page that has not arrived yet reads as NULs over NFS. The lines from there on wait for NUL_HOLD_SECONDS; NULs
  that stay are a hole: skipped where they stand before a line, and counted.
- a line over `line_bytes_max`: that line only, after its end was found; until then the offset stays at its start.
- a smaller size, a guard that does not hold, another inode: nothing is read; the caller decides when to believe it.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from dataclasses import dataclass

from piper.spool.identity import (
    GUARD_BYTES,
    HEAD_BYTES,
    LongLine,
    Source,
    fingerprint,
    guard_holds,
    head_holds,
)

NUL_HOLD_SECONDS = 30.0
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
    lines: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Skip:
    """A stretch of a file that is no event: it goes to quarantine with `reason`, or is only counted (no reason)."""

    source: Source
    offset: int
    line: int
    """1-based; 0 where the stretch is a hole and no line."""
    length: int
    reason: str
    sample: bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a source stands once a batch is committed."""

    offset: int
    lines: int
    head: bytes
    head_bytes: int
    guard: bytes
    guard_bytes: int


class Outcome(enum.Enum):
    """What a turn found, apart from lines."""

    READ = "read"
    IDLE = "idle"
    GONE = "gone"
    REPLACED = "replaced"
    SHRUNK = "shrunk"
    CHANGED = "changed"
    NUL = "nul"
    SPECIAL = "special"
    ERROR = "error"


@dataclass(slots=True)
class Turn:
    """The result of one turn; `more` says that the file had more than the turn's limit."""

    outcome: Outcome
    span: Span | None = None
    skip: Skip | None = None
    checkpoint: Checkpoint | None = None
    more: bool = False
    error: int = 0
    bytes_read: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a turn, in bytes."""

    turn_bytes: int
    line_bytes_max: int


def take_turn(root: bytes, source: Source, start: Checkpoint | None, limits: Limits, now: float) -> Turn:
    """Read complete lines of `source` from its offset, or from `start` where a batch under way has already read ahead.

    `now` is monotonic seconds. Opens with O_NOFOLLOW and O_NONBLOCK, reads up to the size that fstat of that fresh open
    reports, and updates the observations of `source` (size, held bytes), never what is committed.
    """
    try:
        fd = os.open(
            root + b"/" + source.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        )
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            return Turn(Outcome.GONE)
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            return Turn(Outcome.SPECIAL)
        return Turn(Outcome.ERROR, error=error.errno or 0)
    try:
        return _read(fd, source, start, limits, now)
    except OSError as error:
        return Turn(Outcome.ERROR, error=error.errno or 0)
    finally:
        os.close(fd)


def _read(fd: int, source: Source, start: Checkpoint | None, limits: Limits, now: float) -> Turn:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return Turn(Outcome.SPECIAL)
    if status.st_ino != source.inode:
        return Turn(Outcome.REPLACED)
    doubt = _doubt(fd, source, status)
    if doubt is not None:
        return Turn(doubt)
    source.device = status.st_dev  # a remount may number it anew; inode, head and guard have just agreed
    source.size, source.mtime_ns = status.st_size, status.st_mtime_ns
    at = start or Checkpoint(
        source.offset, source.lines, source.head, source.head_bytes, source.guard, source.guard_bytes
    )
    if source.long_line is not None:
        return _through_long_line(fd, source, at, limits)
    data = os.pread(fd, min(limits.turn_bytes, status.st_size - at.offset), at.offset)
    if not data:
        source.held_bytes = 0
        return Turn(Outcome.IDLE)
    return _take_lines(fd, source, at, data, limits, now)


def _doubt(fd: int, source: Source, status: os.stat_result) -> Outcome | None:
    if status.st_size < source.offset:
        return Outcome.SHRUNK
    if source.offset and not (guard_holds(fd, source) and head_holds(fd, source)):
        return Outcome.CHANGED
    return None


def _take_lines(fd: int, source: Source, at: Checkpoint, data: bytes, limits: Limits, now: float) -> Turn:
    more = at.offset + len(data) < source.size
    read = len(data)
    nul = data.find(b"\0")
    if nul >= 0:
        if source.nul_since is None:
            source.nul_since = now
        if now - source.nul_since < NUL_HOLD_SECONDS:
            data = data[: data.rfind(b"\n", 0, nul) + 1]
            source.held_bytes = source.size - at.offset - len(data)
            turn = _lines_turn(fd, source, at, data) if data else Turn(Outcome.NUL)
            turn.bytes_read = read
            return turn
        hole = len(data) - len(data.lstrip(b"\0"))
        if hole:
            return _skip_hole(fd, source, at, hole)
    else:
        source.nul_since = None
    end = data.rfind(b"\n") + 1
    fragment = data[end:]
    if not end and len(fragment) > limits.line_bytes_max:
        source.long_line = LongLine(fragment[:SAMPLE_BYTES], at.offset + len(fragment))
        return Turn(Outcome.READ, more=True, bytes_read=read)
    if more and not end:  # a short read: the file is being cut while we look; the next turn's fstat will tell
        return Turn(Outcome.IDLE, bytes_read=read)
    source.held_bytes = 0 if more else len(fragment)
    source.fragment = fragment if fragment and not more else None
    if not end:
        return Turn(Outcome.IDLE, bytes_read=read)
    turn = _lines_turn(fd, source, at, data[:end])
    turn.more, turn.bytes_read = more, read
    return turn


def _lines_turn(fd: int, source: Source, at: Checkpoint, data: bytes) -> Turn:
    lines = data.count(b"\n")
    checkpoint = _checkpoint(fd, at, data, at.offset + len(data), lines)
    start = at.offset
    if start == 0 and data.startswith(BOM):
        start, data = len(BOM), data[len(BOM) :]
    return Turn(Outcome.READ, Span(source, start, at.lines + 1, lines, data), checkpoint=checkpoint)


def _skip_hole(fd: int, source: Source, at: Checkpoint, hole: int) -> Turn:
    """Skip NULs before a line. A sparse hole is jumped over in one step, so a hole of 1 GiB costs no reading."""
    try:
        end = min(os.lseek(fd, at.offset + hole, os.SEEK_DATA), source.size)
    except OSError:  # ENXIO: nothing but the hole to the end; EINVAL: the file system cannot say
        end = at.offset + hole
    end = max(end, at.offset + hole)
    skip = Skip(source, at.offset, 0, end - at.offset, "", b"")
    source.held_bytes = 0
    return Turn(Outcome.READ, skip=skip, checkpoint=_checkpoint(fd, at, b"", end, 0), more=end < source.size)


def _through_long_line(fd: int, source: Source, at: Checkpoint, limits: Limits) -> Turn:
    long_line = source.long_line
    assert long_line is not None
    data = os.pread(fd, min(limits.turn_bytes, source.size - long_line.position), long_line.position)
    newline = data.find(b"\n")
    if newline < 0:
        long_line.position += len(data)
        source.held_bytes = source.size - at.offset if long_line.position >= source.size else 0
        return Turn(Outcome.READ if data else Outcome.IDLE, more=long_line.position < source.size, bytes_read=len(data))
    end = long_line.position + newline + 1
    source.long_line, source.held_bytes = None, 0
    length = end - 1 - at.offset
    skip = Skip(source, at.offset, at.lines + 1, length, "line_too_long", long_line.sample)
    checkpoint = _checkpoint(fd, at, b"", end, 1)
    return Turn(Outcome.READ, skip=skip, checkpoint=checkpoint, more=end < source.size, bytes_read=len(data))


def _checkpoint(fd: int, at: Checkpoint, data: bytes, offset: int, lines: int) -> Checkpoint:
    head, head_bytes = at.head, at.head_bytes
    if head_bytes < HEAD_BYTES and head_bytes < offset:
        beginning = data[:HEAD_BYTES] if at.offset == 0 and data else os.pread(fd, min(HEAD_BYTES, offset), 0)
        head, head_bytes = fingerprint(beginning), len(beginning)
    guard = data[-GUARD_BYTES:]
    if len(guard) < min(GUARD_BYTES, offset):
        guard = os.pread(fd, min(GUARD_BYTES, offset), offset - min(GUARD_BYTES, offset))
    return Checkpoint(offset, at.lines + lines, head, head_bytes, fingerprint(guard), len(guard))
