"""Which file is this? Path, device, inode, head hash and guard: never one of them alone.

The head is a hash of the file's first bytes, the guard a hash of the bytes just before the committed offset. An offset is
used only when the guard holds at that place of the file that is open now; so a reused inode, a refilled file or another
file under the old name can never make piper start in the middle of somebody else's line.
"""

from __future__ import annotations

import enum
import hashlib
import os
from dataclasses import dataclass

HEAD_BYTES = 1024
GUARD_BYTES = 256


def fingerprint(data: bytes) -> bytes:
    """16-byte BLAKE2b of `data`."""
    return hashlib.blake2b(data, digest_size=16).digest()


class Doubt(enum.StrEnum):
    """What a look at a file suggested and later looks have to confirm before it is believed."""

    SHRUNK = "shrunk"
    CHANGED = "changed"
    GONE = "gone"


@dataclass(slots=True)
class Suspicion:
    """A doubt, since when (UTC seconds) and how many looks agreed. Kept in the manifest, so it survives a restart."""

    doubt: Doubt
    since_utc: float
    looks: int = 1


@dataclass(slots=True, eq=False)
class Source:
    """One spool file as piper knows it.

    `offset`, `lines`, `head` and `guard` are what the manifest has committed; `size`, `mtime_ns`, `held_bytes` and the
    fields below them are observations that a restart makes again.
    """

    path: bytes
    """Relative to the spool's root, as the file system spells it (not always UTF-8)."""
    device: int
    inode: int
    source_id: int = 0
    """0 until the first commit gives it a number."""
    offset: int = 0
    lines: int = 0
    """Lines before `offset`, blank ones included."""
    head_bytes: int = 0
    head: bytes = b""
    guard_bytes: int = 0
    guard: bytes = b""
    vanished: bool = False
    suspicion: Suspicion | None = None
    fragment: bytes | None = None
    """A cut last line, kept in case the file is deleted before its rest comes."""

    size: int = 0
    mtime_ns: int = 0
    held_bytes: int = 0
    """Bytes after `offset` that wait for their rest (a cut line) or for a second look (NUL bytes)."""
    changed_at: float = 0.0
    """Monotonic seconds when it last grew: what makes it hot."""
    unread_since: float | None = None
    """Monotonic seconds since when it has had bytes that could be read."""
    nul_since: float | None = None
    long_line: LongLine | None = None
    reported: bool = False

    @property
    def unread_bytes(self) -> int:
        """Bytes that could be read now: neither committed nor held back."""
        return max(0, self.size - self.offset - self.held_bytes)

    def restart(self, stat: os.stat_result) -> None:
        """Forget the content: the file under this name is another one, or was written anew."""
        self.device, self.inode = stat.st_dev, stat.st_ino
        self.offset = self.lines = self.head_bytes = self.guard_bytes = self.held_bytes = 0
        self.head = self.guard = b""
        self.suspicion = self.fragment = self.long_line = self.nul_since = None
        self.vanished = False


@dataclass(slots=True)
class LongLine:
    """A line over the limit, on the way through it: only its beginning is kept, so memory stays flat."""

    sample: bytes
    position: int


def head_holds(fd: int, source: Source) -> bool:
    """Whether the open file begins with the bytes that `source` began with."""
    return fingerprint(os.pread(fd, source.head_bytes, 0)) == source.head if source.head_bytes else True


def guard_holds(fd: int, source: Source) -> bool:
    """Whether the open file holds, just before the committed offset, what was read there."""
    if not source.guard_bytes:
        return source.offset == 0
    return fingerprint(os.pread(fd, source.guard_bytes, source.offset - source.guard_bytes)) == source.guard


def display_path(path: bytes) -> str:
    """The path as text for `source_file`: bytes that are not UTF-8 are spelled as \\xNN."""
    return path.decode("utf-8", "backslashreplace")
