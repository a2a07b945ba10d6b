"""The process behind `faultfs`: a read-only passthrough file system that lies as its script says.

    python -m tests.support.faultfs_mount BACKING MOUNTPOINT SCRIPT [writable]

SCRIPT is a JSON list of rules, replaced atomically and looked at before every answer; `faultfs.Rule` says what each key
means. Kernel caching is off (direct_io, no attribute or entry timeout), so that what is scripted arrives; what is
changed in BACKING itself reaches no inotify watch on MOUNTPOINT, exactly as over NFS.
"""

from __future__ import annotations

import errno
import fnmatch
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mfusepy

STAT_FIELDS = ("st_mode", "st_ino", "st_dev", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks")


class FaultFs(mfusepy.Operations):  # type: ignore[misc]
    """Answers from BACKING, unless a rule says otherwise. `raw_fi`: the handles are the kernel's structs."""

    use_ns = True
    is_direct = True

    def __init__(self, backing: str, script: str) -> None:
        self._backing, self._script = backing, script
        self._stamp: tuple[int, int] | None = None
        self._rules: list[dict[str, Any]] = []

    def getattr(self, path: str, fi: Any = None) -> dict[str, int]:
        rules = self._meet("stat", path)
        status = os.lstat(self._backing + path)
        found = {name: getattr(status, name) for name in STAT_FIELDS}
        found |= {f"st_{name}time": getattr(status, f"st_{name}time_ns") for name in "amc"}
        found["st_size"] = self._size(rules, status.st_size)
        return found

    def readlink(self, path: str) -> str:
        return str(Path(self._backing + path).readlink())

    def readdir_with_offset(self, path: str, offset: int, fi: Any) -> Iterator[tuple[str, None, int]]:
        rules = self._meet("list", path)
        names = sorted(entry.name for entry in Path(self._backing + path).iterdir())
        for rule in rules:
            shown = rule.get("shows")
            if shown is not None:
                if "then" in rule and offset >= shown:
                    raise OSError(getattr(errno, rule["then"]), "scripted")
                names = names[:shown]
        return iter([(name, None, number) for number, name in enumerate(names, 1) if number > offset])

    def open(self, path: str, fi: Any) -> int:
        self._meet("open", path)
        fi.fh = os.open(self._backing + path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        fi.direct_io = self.is_direct
        return 0

    def read(self, path: str, size: int, offset: int, fi: Any) -> bytes:
        rules = self._meet("read", path, offset)
        end = self._size(rules, os.fstat(fi.fh).st_size)
        bad = [rule["from_offset"] for rule in rules if "read" in rule["on"] and rule["error"]]
        end = min([end, *bad])  # as from a disk with a bad place: what stands before it can be read
        data = os.pread(fi.fh, max(0, min(size, end - offset)), offset)
        for rule in rules:
            if "nul_from" in rule:
                kept = max(0, rule["nul_from"] - offset)
                data = data[:kept] + b"\0" * (len(data) - kept)
        return data

    def release(self, path: str, fi: Any) -> int:
        os.close(fi.fh)
        return 0

    def _size(self, rules: list[dict[str, Any]], size: int) -> int:
        return min([size, *(rule["size"] for rule in rules if "size" in rule)])

    def _meet(self, operation: str, path: str, offset: int = 0) -> list[dict[str, Any]]:
        """The rules for this path; waits or raises OSError first where they say so."""
        rules = self._rules_for(path)
        for rule in rules:
            if operation in rule["on"] and offset >= rule["from_offset"]:
                time.sleep(rule["seconds"])
                if rule["error"]:
                    raise OSError(getattr(errno, rule["error"]), "scripted")
        return rules

    def _rules_for(self, path: str) -> list[dict[str, Any]]:
        status = Path(self._script).stat()
        if (status.st_ino, status.st_mtime_ns) != self._stamp:
            self._stamp = (status.st_ino, status.st_mtime_ns)
            self._rules = json.loads(Path(self._script).read_bytes())
        return [rule for rule in self._rules if fnmatch.fnmatchcase(path, rule["path"])]


def main() -> None:
    """Serve until it is unmounted."""
    backing, mountpoint, script, *writable = sys.argv[1:]
    operations = FaultFs(backing, script)
    if writable:
        from tests.support.faultfs_writable import WritableFaultFs

        operations = WritableFaultFs(backing, script)
    mfusepy.FUSE(
        operations,
        mountpoint,
        raw_fi=True,
        foreground=True,
        ro=not writable,
        allow_other=True,
        default_permissions=False,
        use_ino=True,
        attr_timeout=0,
        entry_timeout=0,
        negative_timeout=0,
        fsname="faultfs",
    )


if __name__ == "__main__":
    main()
