"""Numbered lines that arrive as real writers send them: in pieces cut anywhere, in several files, rotated.

Every number is one event (`event_id` = `number-000042`) of a realistic kind; some lines come twice, some are malformed.
What was written is remembered, so that a test can compare.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import orjson
from tests.support import gold_reference

from piper.demo.events import Studio
from piper.demo.lines import Origin, broken_line, encode, record

DAYS = 3
PIECE_BYTES_MAX = 4000
ROTATE_BYTES = 150_000
MALFORMED_RATIO = DUPLICATE_RATIO = 0.02
PAUSE_SECONDS = 0.01


class NumberedWriters:
    """`seats` writers of one spool. `step()` appends one piece; `finish()` the rest of what is buffered.

    The last seat rotates as logrotate does, by renaming its file and starting a new one under the old name; the others
    start a file with a new name.
    """

    def __init__(self, spool: Path, rng: Random, *, seats: int = 4) -> None:
        self._rng = rng
        self._studio = Studio(rng, error_ratio=0.06)
        self._begin = time.time() - DAYS * 86_400
        self.events: list[Mapping[str, Any]] = []
        """Accepted events, each once."""
        self.malformed: Counter[bytes] = Counter()
        """Malformed lines, without newline."""
        self.duplicates: Counter[date] = Counter()
        """Repeated lines by event date."""
        self._recent: deque[tuple[bytes, date]] = deque(maxlen=200)
        self._seats = [_Seat(spool, number, renames=number == seats - 1) for number in range(seats)]

    def step(self) -> None:
        """Append one piece of one seat's buffer, wherever that cuts a line."""
        seat = self._rng.choice(self._seats)
        if len(seat.buffer) < PIECE_BYTES_MAX:
            for _ in range(5):
                self._add_line(seat)
        seat.append(self._rng.randint(1, PIECE_BYTES_MAX))

    def finish(self) -> None:
        """Append everything that is still buffered."""
        for seat in self._seats:
            seat.append(len(seat.buffer))

    def _add_line(self, seat: _Seat) -> None:
        rng = self._rng
        number = len(self.events)
        at = self._begin + rng.random() * (DAYS - 1) * 86_400
        fields = record(self._studio.next_event(at), at, seat.origin, rng)
        fields["event_id"] = f"number-{number:06d}"
        if rng.random() < MALFORMED_RATIO:
            line = broken_line(fields, rng)
            self.malformed[line[:-1]] += 1
            seat.buffer += line
            return
        line = encode(fields)
        event = orjson.loads(line)
        self.events.append(event)
        seat.buffer += line
        self._recent.append((line, gold_reference.occurred_at(event).date()))
        if rng.random() < DUPLICATE_RATIO:
            line, day = rng.choice(self._recent)
            self.duplicates[day] += 1
            rng.choice(self._seats).buffer += line


class _Seat:
    def __init__(self, spool: Path, number: int, *, renames: bool) -> None:
        self._renames = renames
        self._folder = spool / f"ws{number % 2:02d}.studio.example" / f"artist{number}"
        self._folder.mkdir(parents=True)
        self.buffer = b""
        self.origin = Origin(
            self._folder.parent.name, self._folder.name, "Linux", "5.14", 4000 + number, f"session-{number}",
            flat=number % 2 == 1, skew_seconds=0,
        )  # fmt: skip
        self._files = 0
        self._path = self._next_path()
        self._size = 0

    def append(self, size: int) -> None:
        """Append the next `size` bytes; rotate between two lines once the file is large enough."""
        piece, self.buffer = self.buffer[:size], self.buffer[size:]
        end = piece.rfind(b"\n") + 1
        if end and self._size + end > ROTATE_BYTES:
            self._write(piece[:end])
            self._rotate()
            piece = piece[end:]
        self._write(piece)

    def _write(self, piece: bytes) -> None:
        if piece:
            with self._path.open("ab") as stream:
                stream.write(piece)
            self._size += len(piece)

    def _rotate(self) -> None:
        if self._renames:
            self._path.rename(self._next_path())
        else:
            self._path = self._next_path()
        self._size = 0

    def _next_path(self) -> Path:
        self._files += 1
        return self._folder / f"telemetry-20260101T000000Z-4000-{self._files:04d}.jsonl"


class WriterThread(threading.Thread):
    """Lets the writers go on until `finish()`."""

    def __init__(self, writers: NumberedWriters) -> None:
        super().__init__(daemon=True)
        self._writers = writers
        self._ending = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._ending.wait(PAUSE_SECONDS):
                self._writers.step()
            self._writers.finish()
        except BaseException as error:
            self._error = error

    def finish(self) -> None:
        """Write what is left, and end."""
        self._ending.set()
        self.join()
        if self._error is not None:
            raise self._error
