"""A realistic spool without a studio: the library behind `piper simulate`.

Live (`days` 0): events occur now, at `rate` a second over all writers, until `events` are written or `stop()`
is true. History (`days` N): they are spread over the last N days, mostly office hours; every writer starts a
new process, and so a new file, each day. `rate` 0 writes either as fast as it can. At most one buffer per
writer is held in memory. The same options, seed and clock give the same bytes in an empty root. In a root
that holds an earlier simulation new file names and new event ids are used: nothing is overwritten and nothing
is repeated but on purpose.
"""

from __future__ import annotations

import math
import sys
import time
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Literal

from piper.demo.events import Studio
from piper.demo.lines import Origin, broken_line, encode, record
from piper.demo.world import activity
from piper.demo.writer import SpoolWriter
from piper.errors import EX_USAGE, PiperError

DAY_SECONDS = 86_400
EVENTS_PER_DAY = 10_000
BATCH_EVENTS = 1_000
TICK_SECONDS = 0.05
STEP_SECONDS_MAX = 1.0
"""No single step of the clock counts for more: after a suspend the missed events are not made up for."""
RECENT_LINES = 256
USER_NAMES = (
    *(
        "amara",
        "bjorn",
        "chloe",
        "dmitri",
        "elif",
        "farah",
        "goran",
        "hana",
        "ines",
        "jonas",
        "keiko",
        "liam",
    ),
    *("mira", "nadia", "oscar", "priya", "quinn", "rosa", "sven", "tomas", "uma", "viktor", "wanda", "yusuf"),
)


class SimulateError(PiperError):
    """An option of the simulation has a value that makes no sense."""

    exit_code = EX_USAGE


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    """What to write. `users` are per host; `rate` is events a second over all writers, 0 without pause.

    `events` counts valid, distinct events (None: endless when live, 10,000 a day for history). Malformed and
    duplicate lines come on top, each with its ratio; `error_ratio` is the typical share of events with status
    `error`, varied by type and show. `mixed`: every second writer sends the flat dialect.
    """

    root: Path
    hosts: int = 5
    users: int = 2
    rate: float = 50.0
    events: int | None = None
    days: int = 0
    dialect: Literal["nested", "flat", "mixed"] = "mixed"
    seed: int = 0
    error_ratio: float = 0.06
    malformed_ratio: float = 0.001
    duplicate_ratio: float = 0.002
    rotate_bytes: int = 8 * 1024 * 1024
    flush_seconds: float = 1.0


@dataclass(frozen=True)
class SimulateSummary:
    """Exactly what was written.

    `valid`: lines that must be accepted once, `duplicates`: lines that repeat one of those, `malformed`:
    lines that must be quarantined; `lines` is their sum, every line ends with a newline, none is blank.
    """

    files: int
    lines: int
    valid: int
    duplicates: int
    malformed: int
    bytes: int


def simulate(
    options: SimulateOptions,
    *,
    stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[int], None] | None = None,
    clock: Callable[[], float] = time.time,
    wait: Callable[[float], object] = time.sleep,
) -> SimulateSummary:
    """Write the spool; returns when all is on disk.

    `stop` is asked at least every 1,000 events or every tick of 50 ms, and ends the run cleanly.
    `on_progress` then gets the number of valid events so far. `clock` gives POSIX seconds; `wait` pauses and
    may return early. Raises SimulateError for a bad option and DataRootError when the root cannot be written;
    an exception leaves the buffered ends of lines unwritten, as a crash of the writers would.
    """
    _check(options)
    run = _Run(options, clock)
    try:
        run.open()
        _play(run, stop=stop, on_progress=on_progress, wait=wait)
        for seat in run.seats:
            seat.writer.finish()
    finally:
        for seat in run.seats:
            seat.writer.close()
    return run.summary()


def _check(options: SimulateOptions) -> None:
    def require(holds: bool, what: str, hint: str) -> None:
        if not holds:
            raise SimulateError(what, hint=hint)

    for name in ("hosts", "users", "rotate_bytes"):
        value = getattr(options, name)
        require(value >= 1, f"{name} is {value}", f"{name} must be 1 or more.")
    for name in ("rate", "days", "flush_seconds", "events"):
        value = getattr(options, name)
        holds = value is None or (value >= 0 and math.isfinite(value))
        require(holds, f"{name} is {value}", f"{name} must be a finite number, 0 or more.")
    for name in (field.name for field in fields(options) if field.name.endswith("_ratio")):
        value = getattr(options, name)
        require(0 <= value <= 1, f"{name} is {value}", f"{name} must be between 0 and 1.")
    known = ("nested", "flat", "mixed")
    require(options.dialect in known, f"dialect is {options.dialect!r}", f"Use one of {', '.join(known)}.")
    endless = not options.rate and options.events is None and not options.days
    require(not endless, "rate 0 without an end would fill the disk", "Give --events or --days, or a --rate.")


def _play(
    run: _Run,
    *,
    stop: Callable[[], bool],
    on_progress: Callable[[int], None] | None,
    wait: Callable[[float], object],
) -> None:
    rate, credit = run.options.rate, 0.0
    while run.valid < run.events_max and not stop():
        credit += run.advance() * rate
        allowed = int(credit) if rate else BATCH_EVENTS
        credit -= allowed if rate else 0
        for _ in range(min(allowed, run.events_max - run.valid)):
            run.emit()
        run.flush_due()
        if on_progress:
            on_progress(run.valid)
        if rate and run.valid < run.events_max:
            wait(TICK_SECONDS)


class _Seat:
    """One user on one host: where and how he writes, and the process that is writing now."""

    def __init__(self, options: SimulateOptions, index: int) -> None:
        host = index // options.users
        lap, name = divmod(index, len(USER_NAMES))
        self._index = index
        self._seed = options.seed
        self._hostname = f"ws{host + 1:02d}.studio.example"
        self._user = USER_NAMES[name] + (str(lap + 1) if lap else "")
        self._windows = host % 5 == 4
        # Every third host's clock is a few seconds off.
        self._skew_seconds = (-3, 0, 0, 2, 0, 0)[host % 6]
        self._flat = options.dialect == "flat" or (options.dialect == "mixed" and index % 2 == 1)
        self.writer = SpoolWriter(
            options.root / self._hostname / self._user,
            Random(f"{options.seed}:flush:{index}"),  # noqa: S311 - repeatable on purpose
            rotate_bytes=options.rotate_bytes,
            flush_seconds=options.flush_seconds,
            backdate=options.days > 0,
        )
        self.started_at: float | None = None
        self.origin = self._origin(0)

    def begin(self, at: float) -> int:
        """Start a new process at this seat, ending the one before; returns its process id."""
        self.writer.finish()
        pid = 1_000 + zlib.crc32(f"{self._seed}:{self._index}:{int(at)}".encode()) % 60_000
        pid = self.writer.begin(at, pid)
        self.started_at = at
        self.origin = self._origin(pid)
        return pid

    def _origin(self, pid: int) -> Origin:
        return Origin(
            hostname=self._hostname,
            user=self._user,
            os="Windows" if self._windows else "Linux",
            os_release="10" if self._windows else "5.14.0-427.el9.x86_64",
            pid=pid,
            session_id=str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{self._user}.{pid}.{self.started_at}.{self._hostname}")),
            flat=self._flat,
            skew_seconds=self._skew_seconds,
        )


class _Run:
    """The state of one simulation: its seats, its randomness, its counts."""

    def __init__(self, options: SimulateOptions, clock: Callable[[], float]) -> None:
        self.options = options
        self._clock = clock
        self._now = clock()
        self._elapsed = 0.0
        self.seats = [_Seat(options, index) for index in range(options.hosts * options.users)]
        by_default = options.days * EVENTS_PER_DAY or sys.maxsize
        self.events_max = by_default if options.events is None else options.events
        self.valid = self._duplicates = self._malformed = 0
        self._recent: deque[tuple[bytes, int]] = deque(maxlen=RECENT_LINES)

    def open(self) -> None:
        """Start the writers and settle the run's randomness.

        The first seat's file name is the claim of this run: its creation is exclusive, so that seed, second
        and process id together are no other run's, and neither are the event ids drawn from them.
        """
        options = self.options
        begin = self._now - options.days * DAY_SECONDS
        pid = self.seats[0].begin(begin)
        self._rng = Random(f"{options.seed}:{int(begin)}:{pid}")  # noqa: S311 - repeatable on purpose
        self._studio = Studio(self._rng, error_ratio=options.error_ratio)
        count = len(self.seats)
        self._monitors = {"farm": 0, "storage": count // 2}
        # With few seats the monitors' hosts are someone's workstation too.
        self._artists = [index for index in range(count) if count <= 2 or index not in self._monitors.values()]
        self._shares = list(accumulate(self._rng.uniform(0.3, 1.5) for _ in self._artists))
        if options.days:
            self._moment = _office_hours(begin, options.days, self.events_max, self._rng).__next__
        else:
            self._moment = self._clock
            for seat in self.seats[1:]:
                seat.begin(begin)

    def advance(self) -> float:
        """Seconds since the last call; a clock that jumps neither stalls the run nor floods it."""
        before, self._now = self._now, self._clock()
        step = min(max(self._now - before, 0.0), STEP_SECONDS_MAX)
        self._elapsed += step
        return step

    def emit(self) -> None:
        """Write the next valid event and, now and then, a malformed line and a repeated one."""
        options, rng, at = self.options, self._rng, self._moment()
        line, index = self._next_line(at, broken=False)
        self._append(index, line, at)
        self._recent.append((line, index))
        self.valid += 1
        if rng.random() < options.malformed_ratio:
            line, index = self._next_line(at, broken=True)
            self._append(index, line, at)
            self._malformed += 1
        if rng.random() < options.duplicate_ratio:
            line, index = rng.choice(self._recent)
            self._append(index if rng.random() < 0.5 else rng.randrange(len(self.seats)), line, at)
            self._duplicates += 1

    def flush_due(self) -> None:
        """Let every writer flush whose moment has come."""
        for seat in self.seats:
            seat.writer.flush_if_due(self._elapsed)

    def summary(self) -> SimulateSummary:
        """The exact counts; complete after every writer has finished."""
        return SimulateSummary(
            files=sum(seat.writer.files for seat in self.seats),
            lines=self.valid + self._duplicates + self._malformed,
            valid=self.valid,
            duplicates=self._duplicates,
            malformed=self._malformed,
            bytes=sum(seat.writer.bytes_total for seat in self.seats),
        )

    def _next_line(self, at: float, *, broken: bool) -> tuple[bytes, int]:
        """A line and the index of the seat that writes it."""
        event = self._studio.next_event(at)
        index = self._monitors.get(event.role)
        if index is None:
            index = self._rng.choices(self._artists, cum_weights=self._shares)[0]
        fields = record(event, at, self._seat(index, at).origin, self._rng)
        return (broken_line(fields, self._rng) if broken else encode(fields)), index

    def _append(self, index: int, line: bytes, at: float) -> None:
        self._seat(index, at).writer.append(line, at)

    def _seat(self, index: int, at: float) -> _Seat:
        """The seat with a running process: in history mode everyone starts a new one each day."""
        seat = self.seats[index]
        if seat.started_at is None or (self.options.days and at // DAY_SECONDS != seat.started_at // DAY_SECONDS):
            seat.begin(at)
        return seat


def _office_hours(begin: float, days: int, events: int, rng: Random) -> Iterator[float]:
    """Ascending times of `events` events over `days` days, as many in each hour as people are busy then."""
    hours = [begin + hour * 3_600 for hour in range(days * 24)]
    shares = list(accumulate(activity(hour + 1_800) for hour in hours))
    done = 0
    for hour, share in zip(hours, shares, strict=True):
        count = round(events * share / shares[-1]) - done
        done += count
        for position in range(count):
            yield hour + (position + rng.random()) * 3_600 / count
