"""Events for the benchmarks by the million: simulated lines once, then the same lines again under new ids.

The digits of an id are written into a copy of the bytes by NumPy, so a block of 5,000 lines (3 MB) costs milliseconds
and the writer of a benchmark takes nothing from the daemon that it measures.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np

from piper.demo.events import Studio
from piper.demo.lines import Origin, encode, record

DIGITS = 12
"""Hexadecimal digits of an event_id that count up; the others tell templates apart."""
_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)


class Lines:
    """`count` different simulated nested events of today, which every `block` numbers anew. `seed`: other ids."""

    def __init__(self, count: int = 5_000, *, seed: int = 0, host: str = "ws000.studio.example") -> None:
        rng = Random(seed)
        studio, now = Studio(rng, error_ratio=0.06), time.time()
        origin = Origin(host, "artist", "Linux", "5.14", 1_000, str(uuid.UUID(int=seed)), flat=False, skew_seconds=0)
        lines, places, size = [], [], 0
        for _ in range(count):
            fields = record(studio.next_event(now), now, origin, rng)
            line = encode(fields)
            end = line.index(fields["event_id"].encode()) + len(fields["event_id"])
            places.append(size + end - DIGITS)
            size += len(line)
            lines.append(line)
        self.count, self.bytes = count, size
        self._data = np.frombuffer(b"".join(lines), dtype=np.uint8)
        self._places = np.array(places)[:, None] + np.arange(DIGITS)
        self._next = 0

    def block(self) -> bytes:
        """All lines once more, none with an id that was there before."""
        numbers = np.arange(self._next, self._next + self.count)[:, None]
        self._next += self.count
        data = self._data.copy()
        data[self._places] = _HEX[(numbers >> (4 * np.arange(DIGITS)[::-1])) & 15]
        return data.tobytes()

    def each(self) -> Iterator[bytes]:
        """Line by line, without end."""
        while True:
            yield from self.block().splitlines(keepends=True)


def spool_paths(raw: Path, files: int, directories: int = 200) -> list[Path]:
    """Names for `files` spool files, four users a host; their directories are made."""
    folders = [raw / f"ws{number // 4:03d}" / f"artist{number % 4}" for number in range(min(directories, files))]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return [
        folders[number % len(folders)] / f"telemetry-20260101T000000Z-{number}-0001.jsonl" for number in range(files)
    ]
