"""Directory scans: the truth about which spool files exist.

A scan that met an error proves nothing about what it did not see; it says so in `failed` and `root_error`. Symbolic
links are never followed. Cost: one `scandir` per directory and one `stat` per file, but for what need not be looked at
(`rest.py`).
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
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


class Everything:
    """What a scan looks at: everything. A subclass may know what need not be looked at."""

    def known_in(self, _directory: bytes, _status: os.stat_result, /) -> tuple[list[bytes], int] | None:
        """Of a directory of which it is known what is in it: paths of files to look at, and how many others it has."""
        return None

    def listed(self, _directory: bytes, _status: os.stat_result, _paths: list[bytes], /) -> None:
        """These files are all that the directory holds; its status was this before and after it was listed."""

    def is_at_rest(self, _path: bytes, _inode: int, /) -> bool:
        """Whether the file that has this name and number now need not be looked at."""
        return False

    def is_news(self, _path: bytes, _status: os.stat_result, /) -> bool:
        """Whether anything differs from what is known of the file."""
        return True


def scan_spool(root: str, progress: Callable[[], None] = lambda: None, attention: Everything | None = None) -> Scan:
    """Walk `root`/<host>/<user>/… and return every *.jsonl in it. Never raises for what it finds there.

    `progress` is called for each directory: a walk over a slow share takes minutes and is no hang. Files that are no
    news, says `attention`, are counted and not kept.
    """
    scan, base = Scan(), os.fsencode(root)
    stack: list[tuple[bytes, int]] = [(b"", 0)]
    while stack:
        relative, depth = stack.pop()
        progress()
        try:
            fd = open_to_list(base, relative)
            try:
                _scan_directory(fd, relative, depth, stack, attention or Everything(), scan)
            finally:
                os.close(fd)
        except OSError as error:
            if not relative:
                why = error.strerror or errno.errorcode.get(error.errno or 0, "error")
                return Scan(root_error=f"{root}: {why}", root_errno=error.errno or 0)
            scan.failed[relative] = error.errno or 0
        scan.directories += bool(relative)
    return scan


def _scan_directory(
    fd: int, relative: bytes, depth: int, stack: list[tuple[bytes, int]], attention: Everything, scan: Scan
) -> None:
    """Take in what is in one directory, `depth` levels below the root. Raises OSError where it cannot be listed."""
    status = os.fstat(fd)
    known = attention.known_in(relative, status)
    if known is not None:
        paths, others = known
        scan.unchanged += others
        for path in paths:
            try:
                name = path[len(relative) + 1 :]
                _note_file(path, os.stat(name, dir_fd=fd, follow_symlinks=False), attention, scan)
            except OSError as error:
                _note_error(error, relative, scan)
        return
    prefix = relative + b"/" if relative else b""
    paths, before = [], (len(stack), len(scan.special), len(scan.failed))
    with os.scandir(fd) as entries:
        for entry in entries:
            path = prefix + entry.name.encode(_ENCODING, _ERRORS)
            try:
                if depth < 2 or not path.endswith(SUFFIX):
                    _note_other(entry, path, depth, stack, scan)
                    continue
                paths.append(path)
                if attention.is_at_rest(path, entry.inode()):
                    scan.unchanged += 1
                else:
                    _note_file(path, entry.stat(follow_symlinks=False), attention, scan)
            except OSError as error:
                _note_error(error, relative or path, scan)
    only_files = depth >= 2 and before == (len(stack), len(scan.special), len(scan.failed))
    if only_files and os.fstat(fd).st_ctime_ns == status.st_ctime_ns:
        attention.listed(relative, status, paths)


def _note_file(path: bytes, status: os.stat_result, attention: Everything, scan: Scan) -> None:
    if not attention.is_news(path, status):
        scan.unchanged += 1
    elif stat.S_ISREG(status.st_mode):
        scan.files[path] = status
    else:
        scan.special[path] = kind_of(status.st_mode)


def _note_error(error: OSError, directory: bytes, scan: Scan) -> None:
    """An entry of a directory could not be looked at; the rest of it can still be seen."""
    if not isinstance(error, FileNotFoundError):  # deleted between the listing and now: an ordinary absence
        scan.failed[directory] = error.errno or 0


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
