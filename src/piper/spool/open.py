"""The way into the spool: no symbolic link is followed below its root, neither at the end of a path nor on the way.

Anyone can swap a directory for a link between the moment that a scan sees it and the moment that a file in it is
opened: `O_NOFOLLOW` guards the last name of a path only. So each directory is opened by its one name within the one
before, which costs a few microseconds a level. The root itself may be a link: whoever runs piper has named it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

_ROOT_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_STEP_FLAGS = _ROOT_FLAGS | os.O_NOFOLLOW
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_LISTING_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC


def open_to_read(root: bytes, path: bytes) -> int:
    """Open the file at `path` (relative to `root`), whatever it is: a pipe does not wait, nor does a leased file.

    Raises OSError: ENOTDIR where a directory on the way has become something else, ELOOP where the file is a link.
    """
    with _parent(root, path) as (folder, name):
        return os.open(name, _FILE_FLAGS, dir_fd=folder)


def open_to_list(root: bytes, path: bytes) -> int:
    """Open the directory at `path` (relative to `root`; empty: the root) for `os.scandir`. Raises OSError."""
    if not path:
        return os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with _parent(root, path) as (folder, name):
        return os.open(name, _LISTING_FLAGS, dir_fd=folder)


def look_at(root: bytes, path: bytes) -> os.stat_result:
    """`lstat` of `path` (relative to `root`). Raises OSError."""
    with _parent(root, path) as (folder, name):
        return os.stat(name, dir_fd=folder, follow_symlinks=False)


@contextmanager
def _parent(root: bytes, path: bytes) -> Iterator[tuple[int, bytes]]:
    """A descriptor of the directory that holds `path`, and the last name of it."""
    *directories, name = path.split(b"/")
    if name in {b"", b".."} or b".." in directories:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    folder = os.open(root, _ROOT_FLAGS)
    try:
        for directory in directories:
            inner = os.open(directory, _STEP_FLAGS, dir_fd=folder)
            os.close(folder)
            folder = inner
        yield folder, name
    finally:
        os.close(folder)
