"""The fault layer below a data root: what `faultfs_mount` serves, and writes that fail as the script says.

Beside the operations of `faultfs.Rule` there are "write" (data), "sync" and "make" (every change of names or sizes, and
opening in order to write). A write of which a rule knows the first `torn` bytes leaves those before it fails.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.support.faultfs_mount import FaultFs

STATFS_FIELDS = (
    "f_bsize",
    "f_frsize",
    "f_blocks",
    "f_bfree",
    "f_bavail",
    "f_files",
    "f_ffree",
    "f_favail",
    "f_namemax",
)


class WritableFaultFs(FaultFs):
    """Writes go to the backing directory at once, so what a killed piperd left is what stands there."""

    is_direct = False  # keys are mapped into memory, which direct_io does not allow

    def getattr(self, path: str, fi: Any = None) -> dict[str, int]:
        return super().getattr(path, None)

    def open(self, path: str, fi: Any) -> int:
        if fi.flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            self._meet("make", path)
        self._meet("open", path)
        fi.fh = os.open(self._backing + path, fi.flags & ~(os.O_APPEND | os.O_CREAT | os.O_EXCL))
        return 0

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        self._meet("make", path)
        fi.fh = os.open(self._backing + path, (fi.flags | os.O_CREAT) & ~os.O_APPEND, mode)
        return 0

    def write(self, path: str, data: bytes, offset: int, fi: Any) -> int:
        torn = [rule["torn"] for rule in self._rules_for(path) if "torn" in rule and "write" in rule["on"]]
        if torn:
            os.pwrite(fi.fh, data[: min(torn)], offset)
        self._meet("write", path)
        return os.pwrite(fi.fh, data, offset)

    def fsync(self, path: str, datasync: int, fi: Any) -> int:
        self._meet("sync", path)
        return 0  # power is not cut here: what was written stays

    def fsyncdir(self, path: str, datasync: int, fi: Any) -> int:
        return self.fsync(path, datasync, fi)

    def flush(self, path: str, fi: Any) -> int:
        return 0

    def truncate(self, path: str, length: int, fi: Any = None) -> int:
        self._meet("make", path)
        os.truncate(self._backing + path, length)
        return 0

    def rename(self, old: str, new: str) -> int:
        self._meet("make", old)
        Path(self._backing + old).rename(self._backing + new)
        return 0

    def link(self, target: str, source: str) -> int:
        self._meet("make", target)
        os.link(self._backing + source, self._backing + target, follow_symlinks=False)
        return 0

    def unlink(self, path: str) -> int:
        self._meet("make", path)
        Path(self._backing + path).unlink()
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        self._meet("make", path)
        Path(self._backing + path).mkdir(mode)
        return 0

    def rmdir(self, path: str) -> int:
        self._meet("make", path)
        Path(self._backing + path).rmdir()
        return 0

    def mknod(self, path: str, mode: int, dev: int) -> int:
        self._meet("make", path)
        os.mknod(self._backing + path, mode, dev)
        return 0

    def chmod(self, path: str, mode: int) -> int:
        self._meet("make", path)
        Path(self._backing + path).chmod(mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        self._meet("make", path)
        os.chown(self._backing + path, uid, gid)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        self._meet("make", path)
        os.utime(self._backing + path, ns=times)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._backing + path)
        return {name: getattr(found, name) for name in STATFS_FIELDS}
