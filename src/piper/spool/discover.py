"""Directory scans: the truth about which spool files exist.

A scan that met an error proves nothing about what it did not see; it says so in `failed` and `root_error`. Symbolic
links are never followed. Cost: one `scandir` per directory, and one `stat` per file of which the caller asks for it.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from piper.spool.open import open_to_list

SUFFIX = b".jsonl"
_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
"""How names are bytes to the system, as `os.fsencode` has it."""
DEPTH_MAX = 6
"""Host, user, and a few levels below a user directory; deeper trees are somebody's accident, and reported."""


@dataclass(slots=True)
class Scan:
    """What one walk over the spool saw."""

    files: dict[bytes, os.stat_result] = field(default_factory=dict)
    """Regular files by path relative to the root, but for those that are no news."""
    unchanged: int = 0
    """How many those were."""
    special: dict[bytes, str] = field(default_factory=dict)
    """What will not be read although it looks like input, and why."""
    failed: dict[bytes, int] = field(default_factory=dict)
    """Directories that could not be listed to their end, with errno."""
    directories: int = 0
    root_error: str = ""
    """Why the whole spool could not be seen; empty when it could."""
    root_errno: int = 0

    def saw(self, path: bytes) -> bool:
        """Whether `path` lay in a part of the tree that this scan could list: only then is its absence evidence."""
        return not self.root_error and not any(path.startswith(prefix + b"/") for prefix in self.failed)


def is_spool_path(path: bytes) -> bool:
    """Whether a scan would look at `path` (relative to the root), were it a regular file."""
    *directories, name = path.split(b"/")
    return (
        name.endswith(SUFFIX)
        and b"\0" not in path
        and 2 <= len(directories) <= DEPTH_MAX
        and not any(part in {b"", b".", b".."} for part in directories)
        and not any(part.endswith(SUFFIX) for part in directories[2:])
    )


def scan_spool(
    root: str,
    progress: Callable[[], None] = lambda: None,
    news_of: Callable[[bytes, os.DirEntry[str]], os.stat_result | None] = lambda _path, entry: status_of(entry),
) -> Scan:
    """Walk `root`/<host>/<user>/… and return every *.jsonl in it. Never raises for what it finds there.

    `progress` is called for each directory: a walk over a slow share takes minutes and is no hang. `news_of` gives the
    status of an entry, or None if it is known and there is nothing new about it; such a file is counted and not kept.
    """
    scan = Scan()
    base = os.fsencode(root)
    stack: list[tuple[bytes, int]] = [(b"", 0)]
    while stack:
        relative, depth = stack.pop()
        prefix = relative + b"/" if relative else b""
        progress()
        try:
            with _listing(base, relative) as entries:
                for entry in entries:
                    path = prefix + entry.name.encode(_ENCODING, _ERRORS)
                    try:
                        if depth >= 2 and path.endswith(SUFFIX):
                            status = news_of(path, entry)
                            if status is None:
                                scan.unchanged += 1
                            elif stat.S_ISREG(status.st_mode):
                                scan.files[path] = status
                            else:
                                scan.special[path] = kind_of(status.st_mode)
                        else:
                            _note_other(entry, path, depth, stack, scan)
                    except FileNotFoundError:
                        pass  # deleted between the listing and now: an ordinary absence
                    except OSError as error:  # the rest of the directory can still be seen
                        scan.failed[relative or path] = error.errno or 0
        except OSError as error:
            if not relative:
                why = error.strerror or errno.errorcode.get(error.errno or 0, "error")
                return Scan(root_error=f"{root}: {why}", root_errno=error.errno or 0)
            scan.failed[relative] = error.errno or 0
        scan.directories += bool(relative)
    return scan


def status_of(entry: os.DirEntry[str]) -> os.stat_result:
    """Of the entry itself, be it a link. Raises OSError."""
    return entry.stat(follow_symlinks=False)


@contextmanager
def _listing(root: bytes, path: bytes) -> Iterator[Iterator[os.DirEntry[str]]]:
    """The entries of a directory of the spool. Raises OSError."""
    fd = open_to_list(root, path)
    try:
        with os.scandir(fd) as entries:
            yield entries
    finally:
        os.close(fd)


def _note_other(entry: os.DirEntry[str], path: bytes, depth: int, stack: list[tuple[bytes, int]], scan: Scan) -> None:
    """Take in what is no input by its name or place, `depth` levels below the root. Raises OSError."""
    if entry.is_dir(follow_symlinks=False):
        if depth < DEPTH_MAX:
            stack.append((path, depth + 1))
        else:
            scan.special[path] = "directory too deep"
    elif entry.is_symlink():
        scan.special[path] = "symbolic link"
    elif path.endswith(SUFFIX):
        scan.special[path] = "file outside <host>/<user>/"


def kind_of(mode: int) -> str:
    """A word for a file type that piper does not read."""
    for test, word in (
        (stat.S_ISLNK, "symbolic link"),
        (stat.S_ISDIR, "directory"),
        (stat.S_ISFIFO, "pipe"),
        (stat.S_ISSOCK, "socket"),
        (stat.S_ISCHR, "character device"),
        (stat.S_ISBLK, "block device"),
    ):
        if test(mode):
            return word
    return "special file"
