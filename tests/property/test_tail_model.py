"""The tail against a plain model of what writers did: random histories of files, looks, restarts and clocks.

The model knows complete lines by their numbers and says of each how often it may come. Never a piece of a line, never a
line twice (unless the file was cut back and kept it), every line that stands on the spool in the end at least once.
Silver tells events apart by their ids and quarantine its lines by their place, so that is once there.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.support.spool import Spool

NAMES = [f"host{h}/user/{n}.jsonl" for h in range(2) for n in range(3)]
TURN_BYTES, LINE_BYTES_MAX = 512, 256
PADS = st.sampled_from([0, 0, 1, 20, 200, 240, 300, 1500])
PICK = st.integers(0, 5)


@dataclass
class File:
    """One file that a writer keeps: complete lines, and the beginning of the one that it is writing."""

    name: str
    lines: list[bytes] = field(default_factory=list)
    begun: bytes = b""
    """The whole line of which `written` bytes are in the file."""
    written: int = 0
    is_doubtful: bool = True
    """Its content may have to be believed first."""


class TailModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp(prefix="tail-model-")
        self.spool = Spool(Path(self.directory) / "raw", turn_bytes=TURN_BYTES, line_bytes_max=LINE_BYTES_MAX)
        self.files: dict[str, File] = {}
        self.number = 0
        self.known: dict[bytes, int] = {}
        """Each complete or begun line, and how often it may come."""
        self.inodes: set[int] = set()
        self.is_lossless = True
        self.checked_lines = self.checked_skips = 0
        self.came: Counter[bytes] = Counter()
        self.truncated: Counter[bytes] = Counter()

    def teardown(self) -> None:
        try:
            self.settle()
            if self.is_lossless:
                assert self.spool.lost_bytes == 0
        finally:
            shutil.rmtree(self.directory)

    # ---- what writers do ---------------------------------------------------------------------------------------

    def new_line(self, pad: int) -> bytes:
        self.number += 1
        line = b'{"n": %d, "pad": "%s"}' % (self.number, b"x" * pad)
        self.known[line] = 1
        return line

    def pick(self, index: int) -> File:
        return list(self.files.values())[index % len(self.files)]

    def write(self, file: File, data: bytes) -> None:
        self.spool.append(file.name, data)

    @rule(name=st.sampled_from(NAMES))
    def create(self, name: str) -> None:
        if name in self.files:
            return
        self.files[name] = file = File(name)
        self.write(file, b"")
        inode = self.spool.path(name).stat().st_ino
        file.is_doubtful = inode in self.inodes
        self.inodes.add(inode)

    @precondition(lambda self: self.files)
    @rule(index=PICK, pads=st.lists(PADS, min_size=1, max_size=6))
    def append(self, index: int, pads: list[int]) -> None:
        file = self.pick(index)
        self.flush(index)
        for pad in pads:
            file.lines.append(self.new_line(pad))
            self.write(file, file.lines[-1] + b"\n")

    @precondition(lambda self: self.files)
    @rule(index=PICK, pad=PADS, share=st.floats(0, 1))
    def cut(self, index: int, pad: int, share: float) -> None:
        """A flush that ends somewhere in a line; the next ones go on from there."""
        file = self.pick(index)
        file.begun = file.begun or self.new_line(pad)
        until = file.written + int(share * (len(file.begun) - file.written))
        self.write(file, file.begun[file.written : until])
        file.written = until

    @precondition(lambda self: self.files)
    @rule(index=PICK)
    def flush(self, index: int) -> None:
        """The rest of the line that was begun."""
        file = self.pick(index)
        if file.begun:
            self.write(file, file.begun[file.written :] + b"\n")
            file.lines.append(file.begun)
            file.begun, file.written = b"", 0

    @precondition(lambda self: self.files)
    @rule(index=PICK, name=st.sampled_from(NAMES))
    def rename(self, index: int, name: str) -> None:
        """Also over another file, which that deletes."""
        file = self.pick(index)
        self.is_lossless &= name == file.name or name not in self.files
        self.spool.rename(file.name, name)
        del self.files[file.name]
        file.name = name
        self.files[name] = file

    @precondition(lambda self: self.files)
    @rule(index=PICK, kept=st.sampled_from(NAMES), pads=st.lists(PADS, max_size=4))
    def rotate(self, index: int, kept: str, pads: list[int]) -> None:
        """As logrotate: the old file goes on under another name, a new one has its name at once."""
        name = self.pick(index).name
        if kept in self.files:
            return
        self.rename(index, kept)
        self.create(name)
        for pad in pads:
            self.files[name].lines.append(self.new_line(pad))
            self.write(self.files[name], self.files[name].lines[-1] + b"\n")

    @precondition(lambda self: self.files)
    @rule(index=PICK)
    def delete(self, index: int) -> None:
        self.is_lossless = False
        file = self.pick(index)
        self.spool.delete(file.name)
        del self.files[file.name]

    @precondition(lambda self: self.files)
    @rule(index=PICK, keep=st.integers(0, 3), pads=st.lists(PADS, max_size=8))
    def cut_back_and_refill(self, index: int, keep: int, pads: list[int]) -> None:
        self.is_lossless = False
        file = self.pick(index)
        kept = file.lines[:keep]
        os.truncate(self.spool.path(file.name), sum(len(line) + 1 for line in kept))
        for line in kept:
            self.known[line] += 1
        file.lines, file.begun, file.written, file.is_doubtful = kept, b"", 0, True
        for pad in pads:
            file.lines.append(self.new_line(pad))
            self.write(file, file.lines[-1] + b"\n")

    @precondition(lambda self: self.files)
    @rule(index=PICK, pads=st.lists(PADS, max_size=8))
    def recreate(self, index: int, pads: list[int]) -> None:
        """Another file under the same name; as a rule (ext4) with the inode number that the old one has given back."""
        name = self.pick(index).name
        self.delete(index)
        self.create(name)
        file = self.files[name]
        for pad in pads:
            file.lines.append(self.new_line(pad))
            self.write(file, file.lines[-1] + b"\n")

    @precondition(lambda self: self.files)
    @rule(index=PICK, pads=st.lists(PADS, max_size=3))
    def refill_past_the_old_end(self, index: int, pads: list[int]) -> None:
        """Emptied, and longer than before when somebody looks the next time."""
        file = self.pick(index)
        before = self.spool.path(file.name).stat().st_size
        self.cut_back_and_refill(index, 0, pads)
        while self.spool.path(file.name).stat().st_size <= before:
            file.lines.append(self.new_line(200))
            self.write(file, file.lines[-1] + b"\n")

    @precondition(lambda self: self.files)
    @rule(index=PICK, seconds=st.sampled_from([-1e9, -3600.0, 0.0, 3600.0]))
    def touch(self, index: int, seconds: float) -> None:
        """Lie about when it was written."""
        at = self.spool.clock.utc() + seconds
        os.utime(self.spool.path(self.pick(index).name), (at, at))

    # ---- what piper does ---------------------------------------------------------------------------------------

    @rule()
    def scan(self) -> None:
        self.spool.pass_through()
        self.check()
        for file in self.files.values():
            if not file.is_doubtful:
                assert all(self.came[line] for line in file.lines), f"{file.name} is not doubtful and not complete"

    @rule()
    def scan_only(self) -> None:
        self.spool.scan()

    @rule()
    def poll(self) -> None:
        self.spool.tailer.poll()
        self.spool.ingest()

    @precondition(lambda self: self.files)
    @rule(looks=st.integers(1, 5), seconds=st.sampled_from([1, 60, 600]))
    def scan_error(self, looks: int, seconds: int) -> None:
        """The mount is away for some looks, and what was known is still known when it is back."""
        aside = self.spool.root.with_name("away")
        self.spool.root.rename(aside)
        if looks % 2:
            self.spool.root.mkdir()  # a mount point without its mount
        for _ in range(looks):
            self.spool.pass_through()
            self.spool.clock.pass_seconds(seconds)
        if looks % 2:
            self.spool.root.rmdir()
        aside.rename(self.spool.root)

    @rule(name=st.sampled_from(NAMES))
    def hint(self, name: str) -> None:
        self.spool.tailer.look(name.encode())
        self.spool.ingest()

    @rule()
    def fail_to_commit(self) -> None:
        self.spool.tailer.abandon(self.spool.gather())

    @rule()
    def die_before_the_commit(self) -> None:
        self.spool.gather()
        self.spool.restart()

    @rule()
    def restart(self) -> None:
        self.spool.restart()

    @rule(seconds=st.sampled_from([1, 10, 100, 1000]))
    def pass_seconds(self, seconds: int) -> None:
        self.spool.clock.pass_seconds(seconds)

    @rule()
    def settle(self) -> None:
        """Looks enough for everything to be believed."""
        self.spool.believe()
        self.check()
        for file in self.files.values():
            assert all(self.came[line] for line in file.lines), f"{file.name} is not complete"
            file.is_doubtful = False

    # ---- what must hold ----------------------------------------------------------------------------------------

    @invariant()
    def check(self) -> None:
        for line in self.spool.lines[self.checked_lines :]:
            assert line.text in self.known, f"a piece of a line: {line}"
            self.came[line.text] += 1
            self.check_count(line.text)
        self.checked_lines = len(self.spool.lines)
        for skip in self.spool.skips[self.checked_skips :]:
            whole = self.whole_line(skip.sample)
            if skip.reason == "line_too_long":
                assert skip.length == len(whole) > LINE_BYTES_MAX
                self.came[whole] += 1
                self.check_count(whole)
            else:
                assert skip.length == len(skip.sample)
                self.truncated[whole] += 1
                assert self.truncated[whole] == 1
                assert not self.came[whole], "a line that came and was handed on as truncated as well"
        self.checked_skips = len(self.spool.skips)

    def check_count(self, line: bytes) -> None:
        assert self.came[line] <= self.known[line], f"{line[:20]!r} came too often"
        assert not self.truncated[line], "handed on as truncated, and came as well"

    def whole_line(self, sample: bytes) -> bytes:
        """The one line that begins with `sample`; a sample that says too little stands for none."""
        if re.match(rb'\{"n": \d+, ', sample):
            found = [line for line in self.known if line.startswith(sample)]
            assert len(found) == 1
            return found[0]
        return b"%s #%d" % (sample, len(self.truncated))


TailModel.TestCase.settings = settings(
    stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
# A failure takes minutes until it is told: hypothesis looks for the shortest history that fails.
test_the_tail_agrees_with_the_model = pytest.mark.timeout(600)(TailModel.TestCase)
