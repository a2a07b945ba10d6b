"""Durable files: the one place that writes, swaps and syncs anything that another process may open.

The order is always: write under a name that no reader looks for, fsync the file, rename, fsync the directory. If we die
before the rename, a leftover temporary file remains and nothing else; after it, the new content is there whole.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from piper.errors import DataRootError

DIRECTORY_MODE = 0o750
FILE_MODE = 0o640
UMASK = 0o027


def narrow_umask() -> None:
    """Let this process make nothing that others could open, whatever umask it was started with, DuckDB's files and
    half-written ones included; a narrower umask stays. Call it before there are threads.
    """
    os.umask(os.umask(UMASK) | UMASK)


def fsync_path(path: Path) -> None:
    """Flush a file or directory to its disk; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: Path) -> None:
    """Create `path` and its parents, each made durable in its parent; a no-op where it exists."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
    fsync_path(path.parent)


def write_atomic(path: Path, data: bytes, *, mode: int = FILE_MODE) -> None:
    """Replace `path` by `data` in one step: a reader sees the old content or the new one, also after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        swap_in(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def swap_in(temporary: Path, path: Path) -> None:
    """Rename a finished, already synced file over `path` and make the rename durable."""
    temporary.rename(path)
    fsync_path(path.parent)


def ensure_writable(directory: Path, what: str) -> None:
    """Create `directory` and prove that it takes a file; raises DataRootError saying what is wrong and what to do."""
    try:
        make_directory(directory)
        probe = directory / f".probe-{socket.gethostname()}-{os.getpid()}"
        with probe.open("wb") as stream:
            stream.write(b"piper")
            stream.flush()
            os.fsync(stream.fileno())
        probe.unlink()
    except OSError as error:
        raise DataRootError(
            f"{what} {directory} cannot be written: {error.strerror or error}",
            hint="Check mount, free space and permissions of that directory, or point paths.data_root elsewhere.",
        ) from error


def sql_literal(path: Path | str) -> str:
    """`path` for use between single quotes in SQL."""
    return str(path).replace("'", "''")
