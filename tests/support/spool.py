"""A spool on a real disk, a Tailer over it with clocks that stand still, and what a manifest would keep of it."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from piper.spool.discover import Scan
from piper.spool.identity import Source, Suspicion, display_path
from piper.spool.ledger import Observed
from piper.spool.tail import Batch, Tailer
from piper.spool.turn import Limits, Skip

SLICE_BYTES = 1 << 20
PERSISTED = (
    "path", "device", "inode", "source_id", "offset", "lines", "head_bytes", "head", "guard_bytes", "guard", "vanished",
    "fragment", "size", "mtime_ns",
)  # fmt: skip


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    monotonic_now: float = 1000.0
    utc_now: float = 1.8e9

    def monotonic(self) -> float:
        return self.monotonic_now

    def utc(self) -> float:
        return self.utc_now

    def pass_seconds(self, seconds: float) -> None:
        self.monotonic_now += seconds
        self.utc_now += seconds


@dataclass(frozen=True)
class Line:
    """One line as the parser would get it."""

    path: str
    offset: int
    number: int
    text: bytes


@dataclass
class Manifest:
    """Keeps of sources what the real one keeps, and only when a batch says so."""

    rows: dict[int, Source] = field(default_factory=dict)

    def commit(self, batch: Batch) -> None:
        for source in sorted({*batch.checkpoints, *batch.touched}, key=lambda source: source.path):
            source.source_id = source.source_id or len(self.rows) + 1
            self.rows[source.source_id] = row = persisted(source)
            if source in batch.checkpoints:
                row.advance(batch.checkpoints[source])

    def sources(self) -> list[Source]:
        return [persisted(self.rows[number]) for number in sorted(self.rows)]


def persisted(source: Source) -> Source:
    """A source as it comes back from the manifest."""
    doubt: Suspicion | None = copy.copy(source.suspicion)
    return Source(**{name: getattr(source, name) for name in PERSISTED}, suspicion=doubt)


class Spool:
    """One spool, its tailer and everything that was delivered from it so far."""

    def __init__(
        self,
        root: Path,
        *,
        turn_bytes: int = 64 * 1024,
        line_bytes_max: int = 32 * 1024,
        rest_seconds: float = math.inf,
    ) -> None:
        self.root = root
        self.root.mkdir(exist_ok=True)
        self.limits = Limits(turn_bytes, line_bytes_max)
        self.rest_seconds = rest_seconds
        self.clock = Clock()
        self.manifest = Manifest()
        self.lines: list[Line] = []
        self.skips: list[Skip] = []
        self.lost_bytes = 0
        self.events: dict[str, int] = {}
        self.restart()

    # ---- the writers' side -------------------------------------------------------------------------------------

    def path(self, name: str | bytes) -> Path:
        return self.root / os.fsdecode(name)

    def append(self, name: str | bytes, data: bytes) -> None:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as stream:
            stream.write(data)

    def set_age(self, name: str | bytes, *, days: float) -> None:
        """Nobody has written to the file for so long."""
        then = self.clock.utc() - days * 86_400
        os.utime(self.path(name), (then, then))

    def rewrite(self, name: str | bytes, data: bytes) -> None:
        """Truncate in place, so that the inode stays, and write other content."""
        with self.path(name).open("r+b") as stream:
            stream.truncate(0)
            stream.write(data)

    def rename(self, old: str | bytes, new: str | bytes) -> None:
        self.path(new).parent.mkdir(parents=True, exist_ok=True)
        self.path(old).rename(self.path(new))

    def delete(self, name: str | bytes) -> None:
        self.path(name).unlink()

    # ---- piper's side ------------------------------------------------------------------------------------------

    def restart(self) -> None:
        """A new process: it knows what the manifest kept."""
        self.tailer = Tailer(
            self.root,
            self.limits,
            monotonic=self.clock.monotonic,
            utc=self.clock.utc,
            sources=self.manifest.sources(),
            rest_seconds=self.rest_seconds,
        )

    def scan(self) -> Scan:
        scan = self.tailer.scan()
        self.observe()
        return scan

    def observe(self) -> Observed:
        observed = self.tailer.drain_observed()
        self.lost_bytes += observed.lost_bytes
        for kind, count in observed.file_events.items():
            self.events[kind] = self.events.get(kind, 0) + count
        return observed

    def gather(self) -> Batch:
        """Read until nothing is ready, as one batch; proves that this ends."""
        batch = Batch()
        for _ in range(10_000):
            self.tailer.read(batch, SLICE_BYTES)
            if not self.tailer.ready:
                return batch
        raise AssertionError("a source is ready for ever")

    def ingest(self) -> list[bytes]:
        """Read until nothing is ready, commit, and return the texts of the lines that came."""
        batch = self.gather()
        self.manifest.commit(batch)
        self.tailer.applied(batch)
        came = list(lines_of(batch))
        self.lines += came
        self.skips += batch.skips
        self.observe()
        return [line.text for line in came]

    def pass_through(self) -> list[bytes]:
        """A scan and all that it finds: what one `piper ingest` does."""
        self.scan()
        return self.ingest()

    def believe(self, rounds: int = 4, seconds: float = 60.0) -> list[bytes]:
        """Scans over as much time as any doubt takes; returns what came meanwhile."""
        came: list[bytes] = []
        for _ in range(rounds):
            came += self.pass_through()
            self.clock.pass_seconds(seconds)
        return came + self.pass_through()

    @property
    def texts(self) -> list[bytes]:
        return [line.text for line in self.lines]

    def source(self, name: str | bytes) -> Source:
        return next(source for source in self.tailer.sources if source.path == os.fsencode(name))

    def rejected(self) -> list[tuple[str, int, int, bytes]]:
        return [(skip.reason, skip.offset, skip.length, skip.sample) for skip in self.skips]


def lines_of(batch: Batch) -> Iterator[Line]:
    """The lines of a batch, split the plain way; checks that each span is whole lines."""
    for span in batch.spans:
        data, offset = bytes(span.data), span.start_offset
        assert data.endswith(b"\n")
        for number, text in enumerate(data[:-1].split(b"\n")):
            yield Line(display_path(span.source.path), offset, span.start_line + number, text)
            offset += len(text) + 1
            assert span.start_offset + span.ends[number] == offset
        assert span.lines == number + 1


def numbered(start: int, end: int) -> bytes:
    """Lines that tell each other apart."""
    return b"".join(b'{"n": %d}\n' % number for number in range(start, end))


def texts(start: int, end: int) -> list[bytes]:
    """The same lines as they come out."""
    return numbered(start, end).splitlines()
