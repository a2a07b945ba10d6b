"""The writers of bench/soak.py: processes that write numbered lines as badly as writers do, and keep account of it.

Every number is one line: an event (`event_id` = `w3-00000042`) or a malformed one that holds such an id. A writer knows
where each line stands. What it takes away (truncates, deletes) it looks up in `seen`, where the soak notes every event
that silver shows: a line before a seen one of its file was read, and must be in silver or quarantine for ever; one
after it may have been read or not, and may be there once. Everything else that is complete must be there exactly once.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np

from piper.demo.events import Studio
from piper.demo.lines import Origin, encode, record

TICK_SECONDS = 0.05
DAYS = 3
CAPACITY = 20_000_000
"""Numbers that a writer can use; the arrays are sparse files."""
OLD_FILES_MAX = 12
"""Finished files that a writer leaves; older ones are deleted once they have been read, as a studio does."""
MALFORMED_RATIO = DUPLICATE_RATIO = 0.02
ID = re.compile(rb"w\d+-\d{8}")
EVENT, MALFORMED, NEVER = 0, 1, 2
"""Kinds of a number: NEVER was begun and not completed."""
LOSSLESS = ("rotate", "rename", "next_file", "touch", "cut")
LOSSY = ("truncate", "cut_back", "refill", "delete", "recreate", "replace", "abandon", "die_in_a_line")
FAULTS = (*LOSSLESS, *LOSSY)


@dataclass(frozen=True, slots=True)
class Entry:
    """One complete line in a file. `proves`: its number stands nowhere else, so seeing it says that this was read."""

    number: int
    size: int
    is_event: bool
    proves: bool


@dataclass(slots=True)
class SpoolFile:
    """A file that this writer keeps: its complete lines, and what it is still to get."""

    path: Path
    entries: list[Entry] = field(default_factory=list)
    pending: deque[tuple[Entry, bytes]] = field(default_factory=deque)
    begun: int = 0
    """Bytes of the first pending line that are in the file already."""
    size: int = 0
    was_renamed: bool = False
    is_fixed: bool = False
    """It keeps its name: malformed lines of it are read a second time, and are known by file and offset."""

    @property
    def buffered(self) -> int:
        return sum(len(line) for _, line in self.pending) - self.begun


class Account:
    """What became of each number, in arrays below `directory`."""

    def __init__(self, directory: Path, writer: int, *, is_new: bool = False) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        mode = "w+" if is_new else "r+"

        def array(name: str, kind: type[np.generic]) -> np.ndarray:
            return np.memmap(directory / f"w{writer}-{name}", dtype=kind, mode=mode, shape=(CAPACITY,))  # type: ignore[call-overload]

        self.kind = array("kind", np.uint8)
        self.standing = array("standing", np.int16)
        """Copies of the line that are on the spool or were surely read."""
        self.was_lost = array("lost", np.uint8)
        """A copy went away that may or may not have been read."""
        self.was_cut = array("cut", np.uint8)
        """Its beginning stood alone when its file went away: it may be in quarantine as `truncated_line`."""
        self.was_copied = array("copied", np.uint8)
        """It was written more than once: one copy may be read whole while the beginning of another is quarantined."""
        self.seen = array("seen", np.uint8)
        """Silver has shown it; written by the soak."""


class NumberedWriter:
    """One writer with some files. `write` appends; `fault` does something to a file that writers do."""

    def __init__(self, spool: Path, account: Account, number: int, rng: Random, faults: Sequence[str]) -> None:
        self._spool, self._account, self._number, self._rng = spool, account, number, rng
        self._studio = Studio(rng, error_ratio=0.06)
        self._begin = time.time() - DAYS * 86_400
        self._folders = [spool / f"ws{number:02d}.studio.example" / f"artist{seat}" for seat in range(2)]
        for folder in self._folders:
            folder.mkdir(parents=True, exist_ok=True)
        self.next_number = 0
        self.faults_done: dict[str, int] = {}
        self._files_made = 0
        self._old: list[SpoolFile] = []
        self._recent: deque[tuple[int, bytes]] = deque(maxlen=300)
        self._copies: dict[int, int] = {}
        self._faults = [(name, getattr(self, f"_{name}")) for name in faults]
        self._current = [SpoolFile(self._new_path(folder)) for folder in self._folders]
        for file in self._current:
            file.path.touch()

    # ---- lines -----------------------------------------------------------------------------------------------------

    def write(self, lines: int) -> None:
        """Add so many new lines, and flush somewhere in the middle of one."""
        for _ in range(lines):
            self._add_line(self._rng.randrange(len(self._current)))
        for file in self._current:
            if file.pending:
                self._flush(file, self._rng.randint(0, file.buffered))

    def finish(self) -> None:
        """Complete every line."""
        for file in [*self._current, *self._old]:
            self._flush(file, file.buffered)

    def fault(self) -> None:
        """Do one of the faults to one of the files."""
        name, action = self._rng.choice(self._faults)
        action(self._rng.randrange(len(self._current)))
        self.faults_done[name] = self.faults_done.get(name, 0) + 1

    def _add_line(self, seat: int) -> None:
        rng, file = self._rng, self._current[seat]
        if rng.random() < DUPLICATE_RATIO and self._recent:
            number, line = rng.choice(self._recent)
            self._copies[number] = self._copies.get(number, 1) + 1
            self._account.was_copied[number] = 1
            file.pending.append((Entry(number, len(line), is_event=True, proves=False), line))
            return
        number, self.next_number = self.next_number, self.next_number + 1
        at = self._begin + rng.random() * (DAYS - 0.01) * 86_400
        origin = Origin(file.path.parent.parent.name, file.path.parent.name, "Linux", "5.14", 4000 + self._number,
                        f"session-{seat}", flat=seat % 2 == 1, skew_seconds=0)  # fmt: skip
        fields = record(self._studio.next_event(at), at, origin, rng)
        event_id = f"w{self._number}-{number:08d}"
        if rng.random() < MALFORMED_RATIO:
            self._account.kind[number] = MALFORMED
            line = self._malformed(event_id, fields)
            file.pending.append((Entry(number, len(line), is_event=False, proves=False), line))
            return
        line = self._encoded(event_id, fields)
        file.pending.append((Entry(number, len(line), is_event=True, proves=True), line))

    def _encoded(self, event_id: str, fields: dict[str, object]) -> bytes:
        """The event as a line that begins with its id, so that a beginning of some length tells whose it is."""
        fields.pop("event_id")
        return b'{"event_id": "%s", ' % event_id.encode() + encode(fields)[1:]

    def _malformed(self, event_id: str, fields: dict[str, object]) -> bytes:
        line = self._encoded(event_id, fields)
        ways: list[Callable[[], bytes]] = [
            lambda: line[: self._rng.randint(40, len(line) - 3)] + b"\n",
            lambda: line[:-2] + b"}}\n",
            lambda: line[:-2] + b', "extra": NaN}\n',
            lambda: line[:30] + b"\xff" + line[30:],
            lambda: line.replace(b'"status"', b'"state"'),
        ]
        return self._rng.choice(ways)()

    def _flush(self, file: SpoolFile, size: int) -> None:
        """Append the next `size` bytes; a line is complete with its last byte."""
        if not size:
            return
        if file.begun + size < 40 and size < file.buffered:  # what stands alone tells its number, or is not begun
            size = min(40, file.buffered)
        pieces, left = [], size
        done: list[Entry] = []
        while left:
            entry, line = file.pending[0]
            piece = line[file.begun : file.begun + left]
            left -= len(piece)
            file.begun += len(piece)
            pieces.append(piece)
            if file.begun == len(line):
                file.pending.popleft()
                file.begun = 0
                done.append(entry)
                if entry.is_event and entry.proves:
                    self._recent.append((entry.number, line))
        if 0 < file.begun < 40:  # the cut must not fall before the id ends
            entry, line = file.pending[0]
            more = line[file.begun : 40]
            pieces.append(more)
            file.begun += len(more)
        for entry in done:  # before it can be read
            self._account.standing[entry.number] += 1
        data = b"".join(pieces)
        with file.path.open("ab") as stream:
            stream.write(data)
        file.size += len(data)
        file.entries += done

    # ---- what is taken away ----------------------------------------------------------------------------------------

    def _was_read(self, file: SpoolFile) -> int:
        """How many of the file's first lines were surely read."""
        seen = self._account.seen
        for at in range(len(file.entries) - 1, -1, -1):
            entry = file.entries[at]
            if entry.proves and self._copies.get(entry.number, 1) == 1 and seen[entry.number]:
                return at + 1
        return 0

    def _lose(self, file: SpoolFile, keep: int = 0) -> None:
        """All lines but the first `keep` go away, and the line that was begun."""
        for entry in file.entries[max(keep, self._was_read(file)) :]:
            self._account.standing[entry.number] -= 1
            self._account.was_lost[entry.number] = self._account.was_cut[entry.number] = 1
        file.entries = file.entries[:keep]
        file.size = sum(entry.size for entry in file.entries)
        self._drop_begun(file)

    def _drop_begun(self, file: SpoolFile) -> None:
        if file.begun:
            entry, _ = file.pending.popleft()
            file.begun = 0
            self._account.was_cut[entry.number] = 1
            self._account.was_lost[entry.number] = 1
            if entry.proves or not entry.is_event:
                self._account.kind[entry.number] = NEVER
            else:
                self._copies[entry.number] -= 1

    def _new_path(self, folder: Path) -> Path:
        self._files_made += 1
        return folder / f"telemetry-20260101T000000Z-{4000 + self._number}-{self._files_made:05d}.jsonl"

    def _retire(self, file: SpoolFile) -> None:
        self._old.append(file)
        for old in self._old[:-OLD_FILES_MAX]:
            if not old.pending and not old.begun and self._was_read(old) == len(old.entries):
                old.path.unlink()
                self._old.remove(old)

    def _successor(self, file: SpoolFile, path: Path) -> SpoolFile:
        """The file that gets what is not begun; the line that is begun ends where it began."""
        successor = SpoolFile(path)
        rest = list(file.pending)
        split = 1 if file.begun else 0
        file.pending, successor.pending = deque(rest[:split]), deque(rest[split:])
        path.touch()
        return successor

    # ---- faults ----------------------------------------------------------------------------------------------------

    def _rotate(self, seat: int) -> None:
        """As logrotate: the file gets another name, a new one its old name; a begun line is completed under the new."""
        file, old_path = self._current[seat], self._current[seat].path
        if file.is_fixed:
            self._next_file(seat)
            return
        self._move(file, self._new_path(old_path.parent))
        self._current[seat] = self._successor(file, old_path)
        if self._rng.random() < 0.5:
            self._flush(file, file.buffered)
        self._retire(file)
        for old in self._old[-3:]:
            self._flush(old, old.buffered)

    def _next_file(self, seat: int) -> None:
        file = self._current[seat]
        self._flush(file, len(file.pending[0][1]) - file.begun if file.begun else 0)
        self._current[seat] = self._successor(file, self._new_path(file.path.parent))
        self._retire(file)

    def _rename(self, seat: int) -> None:
        """Any file, into any folder of this writer."""
        file = self._rng.choice([self._current[seat], *self._old])
        if not file.is_fixed:
            self._move(file, self._new_path(self._rng.choice(self._folders)))

    def _move(self, file: SpoolFile, path: Path) -> None:
        file.path.rename(path)
        file.path, file.was_renamed = path, True

    def _touch(self, seat: int) -> None:
        """Lie about when it was written."""
        file = self._rng.choice([self._current[seat], *self._old])
        at = time.time() + self._rng.choice([-90_000, -4000, -1, 0, 3600])
        os.utime(file.path, (at, at))

    def _cut(self, seat: int) -> None:
        """A flush that ends within a line."""
        file = self._current[seat]
        if file.pending and not file.begun and len(file.pending[0][1]) > 60:
            self._flush(file, self._rng.randint(41, 59))

    def _truncate(self, seat: int) -> None:
        file = self._current[seat]
        self._lose(file)
        os.truncate(file.path, 0)

    def _cut_back(self, seat: int) -> None:
        """Keep some lines; malformed ones only under the name that they were read by."""
        file = self._current[seat]
        keep = self._rng.randint(0, len(file.entries))
        if file.was_renamed:
            keep = next((at for at, entry in enumerate(file.entries[:keep]) if not entry.is_event), keep)
        file.is_fixed |= any(not entry.is_event for entry in file.entries[:keep])
        self._lose(file, keep)
        os.truncate(file.path, file.size)

    def _refill(self, seat: int) -> None:
        """Truncate, and write more than there was before anybody looks."""
        file = self._current[seat]
        before = file.size
        self._truncate(seat)
        while file.size + file.buffered <= min(before, 300_000) + 1000:
            self._add_line(seat)
        self._flush(file, file.buffered)

    def _delete(self, seat: int) -> None:
        file = self._current[seat]
        self._lose(file)
        file.path.unlink()
        self._current[seat] = self._successor(file, self._new_path(file.path.parent))

    def _recreate(self, seat: int) -> None:
        """Another file under the same name, and as a rule with the same inode number."""
        file = self._current[seat]
        self._lose(file)
        file.path.unlink()
        self._current[seat] = self._successor(file, file.path)

    def _replace(self, seat: int) -> None:
        """A file that was written elsewhere takes the name of an old one."""
        file = self._current[seat]
        if not self._old or file.begun or file.is_fixed:
            return
        old = self._old.pop(self._rng.randrange(len(self._old)))
        self._lose(old)
        self._move(file, old.path)

    def _abandon(self, seat: int) -> None:
        """The writer is gone in the middle of a line; its file stays as it is."""
        file = self._current[seat]
        self._cut(seat)
        if not file.begun:
            return
        self._current[seat] = self._successor(file, self._new_path(file.path.parent))
        entry, _ = file.pending.popleft()
        file.begun = 0
        self._account.was_cut[entry.number] = 1
        if entry.proves or not entry.is_event:
            self._account.kind[entry.number] = NEVER
        else:
            self._copies[entry.number] -= 1

    def _die_in_a_line(self, seat: int) -> None:
        """The next writer goes on in the same file: two beginnings of events on one line, which is none."""
        file = self._current[seat]
        self._cut(seat)
        if not file.begun or len(file.pending) < 2:
            return
        entry, line = file.pending.popleft()
        if not (entry.proves and entry.is_event):
            file.pending.appendleft((entry, line))
            return
        other, rest = file.pending.popleft()
        if not (other.proves and other.is_event):
            file.pending.extendleft([(other, rest), (entry, line)])
            return
        self._account.kind[entry.number], self._account.kind[other.number] = MALFORMED, NEVER
        joined = line[: file.begun] + rest
        file.pending.appendleft((Entry(entry.number, len(joined), is_event=False, proves=False), joined))


@dataclass(frozen=True)
class WriterOptions:
    """What one writer process does. `lines_max` 0: it writes until it is told to stop."""

    spool: Path
    account: Path
    number: int
    seed: int
    rate: float
    """Lines a second of this writer."""
    fault_seconds: float
    """Mean pause between two faults."""
    faults: Sequence[str]
    stop_file: Path
    lines_max: int = 0


def run_writer(options: WriterOptions) -> None:
    """The life of a writer process; leaves `w<number>-done` with how many numbers it used."""
    rng = Random(options.seed)
    account = Account(options.account, options.number, is_new=True)
    (options.account / f"w{options.number}-ready").touch()
    writer = NumberedWriter(options.spool, account, options.number, rng, options.faults)
    started = time.monotonic()
    next_fault = started + rng.expovariate(1 / options.fault_seconds)
    while not options.stop_file.exists():
        now = time.monotonic()
        due = round((now - started) * options.rate) - writer.next_number
        if options.lines_max:
            due = min(due, options.lines_max - writer.next_number)
        if due > 0:
            writer.write(min(due, 2000))
        if options.lines_max and writer.next_number >= options.lines_max:
            break
        if now >= next_fault and options.faults:
            writer.fault()
            next_fault = now + rng.expovariate(1 / options.fault_seconds)
        time.sleep(TICK_SECONDS)
    writer.finish()
    done = {"numbers": writer.next_number, **writer.faults_done}
    (options.account / f"w{options.number}-done").write_text(repr(done), "ascii")
