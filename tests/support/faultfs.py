"""A spool as a bad network file server shows it: a FUSE mount over an ordinary directory, scripted by rules.

Writers work in `backing`, piper reads below `root`; nothing that is written there wakes a watch on `root`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from tests.support.polling import wait_until

ANYTHING = ("stat", "list", "open", "read")


@dataclass(frozen=True)
class Rule:
    """What is false about the paths that match the glob `path` ("/" is the root; * matches slashes as well).

    `error` (an errno's name) and `seconds` (of waiting) befall the operations `on`, of reads those at or behind
    `from_offset`. `size` caps the size, `nul_from` has all data from there read as NUL. `shows`: a listing has so many
    entries, and where `then` names an errno it fails behind them. `torn`: see `faultfs_writable`.
    """

    path: str
    on: Sequence[str] = ()
    error: str = ""
    seconds: float = 0.0
    from_offset: int = 0
    size: int | None = None
    nul_from: int | None = None
    shows: int | None = None
    then: str | None = None
    torn: int | None = None


def why_no_fuse() -> str:
    """Why this machine can mount no fault layer; empty when it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "there is no /dev/fuse"
    if shutil.which("fusermount3") is None:
        return "there is no fusermount3 (Debian: fuse3)"
    return ""


class FaultFs:
    """The mount, for the time of a with statement; skips the test where there can be none."""

    def __init__(self, folder: Path, *, writable: bool = False) -> None:
        self._options = ["writable"] if writable else []
        self.backing, self.root = folder / "backing", folder / "mnt"
        self._script = folder / "script.json"
        self._log = folder / "faultfs.log"

    def script(self, *rules: Rule) -> None:
        """From now on these rules hold, and no others."""
        text = json.dumps([{k: v for k, v in asdict(rule).items() if v is not None} for rule in rules])
        new = self._script.with_suffix(".new")
        new.write_text(text)
        new.replace(self._script)

    def __enter__(self) -> Self:
        if reason := why_no_fuse():
            pytest.skip(reason)
        self.backing.mkdir(parents=True)
        self.root.mkdir()
        self.script()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.support.faultfs_mount",
                    self.backing,
                    self.root,
                    self._script,
                    *self._options,
                ],
                cwd=Path(__file__).resolve().parents[2],
                stdout=log,
                stderr=log,
            )
        try:
            wait_until(self._is_mounted, what=lambda: self._log.read_text("utf-8", "replace"))
        except BaseException:
            self._unmount()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unmount()

    def _is_mounted(self) -> bool:
        if self._process.poll() is not None:
            pytest.skip("FUSE refuses to mount here: " + self._log.read_text("utf-8", "replace")[-300:])
        return self.root.is_mount()

    def _unmount(self) -> None:
        subprocess.run(["fusermount3", "-u", "-z", str(self.root)], check=False, stderr=subprocess.DEVNULL)
        self._process.kill()  # nothing is lost: it writes nothing of its own
        self._process.wait()
