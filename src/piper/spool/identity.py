"""Which file is this? Path, device, inode, head hash and guard: never one of them alone.

The head is a hash of the file's first bytes, the guard a hash of the bytes just before the committed offset. An offset
is used only when the guard holds at that place of the file that is open now; so a reused inode, a refilled file or
another file under the old name can never make piper start in the middle of somebody else's line.
"""

from __future__ import annotations

import enum
import hashlib
import os
from dataclasses import dataclass

HEAD_BYTES = 1024
GUARD_BYTES = 4096
"""Several events: the last bytes of two events of one kind are often alike."""
VANISHED_DAYS = 30
"""How long a vanished file can come back and be known; raw files are kept for a week."""


def fingerprint(data: bytes) -> bytes:
    """16-byte BLAKE2b of `data`."""
    return hashlib.blake2b(data, digest_size=16).digest()


class Doubt(enum.StrEnum):
    """What a look at a file suggested and later looks have to confirm before it is believed."""

    SHRUNK = "shrunk"
    CHANGED = "changed"
    GONE = "gone"
    NUL = "nul"


@dataclass(slots=True)
class Suspicion:
    """A doubt, since when (UTC seconds) and how many looks agreed. Kept in the manifest, so it survives a restart."""

    doubt: Doubt
    since_utc: float
    looks: int = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a source stands, or will stand once a batch is committed."""

    offset: int
    lines: int
    head: bytes
    head_bytes: int
    guard: bytes
    guard_bytes: int


@dataclass(slots=True)
class LongLine:
    """A line over the limit, on the way through it: only its beginning and end so far are kept: flat memory."""

    sample: bytes
    position: int
    before: bytes
    """The last bytes before `position`: the walk goes on only where they still stand."""


@dataclass(slots=True, eq=False)
class Source:
    """One spool file as piper knows it.

    The fields down to `fragment` are in the manifest, `size` and `mtime_ns` as well; the rest are observations that a
    restart makes again.
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
    """A cut last line (its beginning, if over the limit), kept in case the file is deleted before its rest comes."""

    size: int = 0
    mtime_ns: int = 0
    """As last seen. Whatever differs from them is news; -1 makes the next look news in any case."""
    known_bytes: int = 0
    """The size when an open file last proved to be this one: what is lost is counted up to here."""
    held_bytes: int = 0
    """Bytes after `offset` that wait for their rest (a cut line) or for a second look (NUL bytes)."""
    changed_at: float = 0.0
    """Monotonic seconds when it last grew: what makes it hot."""
    unread_since: float | None = None
    """Monotonic seconds since when it has had bytes that could be read."""
    unread_to: int = 0
    """The size at that time: once the offset is beyond it, what is unread is younger."""
    nul_at: int | None = None
    """Where the first NUL byte stands that is not believed yet."""
    nul_seen: int = 0
    """The size when that doubt began: NUL bytes beyond it are younger than the doubt."""
    nul_until: int = 0
    """NUL bytes before this offset are believed to stay."""
    seen_in: int = 0
    """The number of the last scan that found it as it was."""
    long_line: LongLine | None = None
    error: int = 0
    """errno of the last attempt to read it, when that failed: reported once."""

    @property
    def unread_bytes(self) -> int:
        """Bytes that could be read now: neither committed nor held back."""
        return max(0, self.size - self.offset - self.held_bytes)

    @property
    def checkpoint(self) -> Checkpoint:
        """What is committed."""
        return Checkpoint(self.offset, self.lines, self.head, self.head_bytes, self.guard, self.guard_bytes)

    def advance(self, to: Checkpoint) -> None:
        """`to` is committed."""
        self.offset, self.lines = to.offset, to.lines
        self.head, self.head_bytes = to.head, to.head_bytes
        self.guard, self.guard_bytes = to.guard, to.guard_bytes

    def restart(self) -> None:
        """Forget the content: the file under this name and inode was written anew."""
        self.advance(Checkpoint(0, 0, b"", 0, b"", 0))
        self.suspicion = self.fragment = self.long_line = self.nul_at = None
        self.known_bytes = self.held_bytes = self.nul_until = 0
        self.vanished = False


def head_holds(fd: int, source: Checkpoint) -> bool:
    """Whether the open file begins with the bytes that the source began with."""
    return fingerprint(os.pread(fd, source.head_bytes, 0)) == source.head if source.head_bytes else True


def guard_holds(fd: int, source: Checkpoint) -> bool:
    """Whether the open file holds, just before the offset, what was read there."""
    if not source.guard_bytes:
        return source.offset == 0
    return fingerprint(os.pread(fd, source.guard_bytes, source.offset - source.guard_bytes)) == source.guard


def content_holds(fd: int, source: Source) -> bool:
    """Whether the open file can be `source` under another name: it holds what is known of its content.

    Of a source from which nothing was taken, that is its cut first line, or else that it did not get shorter.
    """
    size = os.fstat(fd).st_size
    if source.offset:
        return size >= source.offset and guard_holds(fd, source.checkpoint) and head_holds(fd, source.checkpoint)
    if source.fragment:
        return os.pread(fd, len(source.fragment), 0) == source.fragment
    return not source.vanished and size >= source.size


def display_path(path: bytes) -> str:
    """The path as text for `source_file`: bytes that are not UTF-8 are spelled as \\xNN."""
    return path.decode("utf-8", "backslashreplace")
