"""`piper demo`: a simulated studio, a real piperd and a live view, below one root that stays afterwards.

`<root>/raw` is the spool, `<root>/data` the warehouse, `<root>/piperd.log` what piperd says. A root that is not empty
is taken only if an earlier demo made it: simulated events never mix with a studio's.
"""

from __future__ import annotations

import math
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.live import Live

from piper.demo.probe import Probe, Sample
from piper.demo.process import STOP_SECONDS, DaemonProcess
from piper.demo.simulate import SimulateError, SimulateOptions, simulate
from piper.demo.view import line, screen
from piper.errors import EX_FAILURE, EX_OK, DataRootError, PiperError
from piper.interrupts import Interrupts

HISTORY_EVENTS = 5_000
HISTORY_DAYS = 3
HISTORY_ENDS_SECONDS_AGO = 60
"""The live writers' files have later names than those of the past."""
LOOK_SECONDS = 0.5
GOLD_SECONDS = "3"
"""Sooner than the default of piperd: nobody watches a demo for long."""
LINE_SECONDS = 2.0
CATCH_UP_SECONDS = 15.0
MARKER = ".piper-demo"


class DaemonDiedError(PiperError):
    """piperd ended, or did not end, when it should not have. The message holds the end of its log."""

    def __init__(self, what: str, daemon: DaemonProcess) -> None:
        super().__init__(f"piperd {what}. Its log ends with:\n{daemon.log_tail()}", hint=f"All of it: {daemon.log}")


def run_demo(root: Path | None, hosts: int, users: int, rate: float, seconds: float | None, console: Console) -> int:
    """Run until `seconds` are over (None: for ever), SIGINT, SIGTERM or SIGHUP; returns the exit code.

    `root` None makes a temporary one, which is kept too. 1 is returned, after a message, when piperd died or a query
    failed. Raises PiperError for an option or a root that cannot be used. Call it from the main thread.
    """
    if not 0 < rate < math.inf:
        raise SimulateError(f"rate is {rate}", hint="Give the live writers a rate above 0.")
    place = _Place.prepare(root)
    options = SimulateOptions(place.raw, hosts=hosts, users=users, rate=rate, seed=time.time_ns() % 1_000_000)
    with Interrupts() as interrupts:
        if place.fresh:
            _say(console, f"Writing {HISTORY_EVENTS:,} events of the last {HISTORY_DAYS} days to {place.raw}")
            _write_history(options, stop=lambda: interrupts.count > 0)
            if interrupts.count:
                _say(console, "Ended before piperd was started.")
                return EX_OK
        try:
            sample = _play(place, options, seconds, console, interrupts)
        except DaemonDiedError as error:
            _say(console, f"error: {error}")
            return EX_FAILURE
    _say(console, _epilogue(place, sample))
    return EX_FAILURE if sample.queries_failed else EX_OK


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one demo lives; `fresh`: no demo was here before."""

    root: Path
    fresh: bool

    @classmethod
    def prepare(cls, root: Path | None) -> _Place:
        try:
            if root is None:
                root = Path(tempfile.mkdtemp(prefix="piper-demo-"))
            root = root.absolute()
            root.mkdir(parents=True, exist_ok=True)
            marker = root / MARKER
            fresh = not marker.exists()
            if fresh and any(root.iterdir()):
                raise DataRootError(
                    f"{root} is not empty and no demo made it",
                    hint="Give --root a new or empty directory, or leave it out.",
                )
            marker.touch()
        except OSError as error:
            message = f"the demo cannot use {root}: {error.strerror or error}"
            raise DataRootError(message, hint="Give --root a directory that you may write to.") from error
        return cls(root, fresh)

    @property
    def raw(self) -> Path:
        return self.root / "raw"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def log(self) -> Path:
        return self.root / "piperd.log"

    @property
    def catalog(self) -> Path:
        return self.data / "warehouse" / "telemetry.duckdb"


class _Simulator(threading.Thread):
    """The live writers. `written` counts their distinct valid events, complete after `finish`."""

    def __init__(self, options: SimulateOptions) -> None:
        super().__init__(name="demo-simulator", daemon=True)
        self.written = 0
        self.error: Exception | None = None
        self._options = options
        self._end = threading.Event()

    def run(self) -> None:
        try:
            # The summary's count is exact, the progress before it a moment old.
            summary = simulate(self._options, stop=self._end.is_set, on_progress=self._on_progress, wait=self._end.wait)
            self.written = summary.valid
        except Exception as error:  # noqa: BLE001,RUF100 - raised again in the main thread
            self.error = error

    def _on_progress(self, valid: int) -> None:
        self.written = valid

    def check(self) -> None:
        """Raise what ended the writers, if anything did."""
        if self.error is not None:
            raise self.error

    def finish(self) -> None:
        """Let every writer write what it holds and close its file."""
        self._end.set()
        self.join()
        self.check()


class _Display:
    """Where samples go: a live screen on a terminal, otherwise a line every LINE_SECONDS."""

    def __init__(self, console: Console, place: _Place, stack: ExitStack) -> None:
        self._console, self._root = console, str(place.root)
        self._started = time.monotonic()
        self._line_due = self._started + LINE_SECONDS
        self._live: Live | None = None
        if console.is_terminal:
            self._live = stack.enter_context(Live(console=console, auto_refresh=False))

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def show(self, sample: Sample, phase: str) -> None:
        if self._live is not None:
            view = screen(sample, elapsed_seconds=self.elapsed, root=self._root, phase=phase)
            self._live.update(view, refresh=True)
        elif time.monotonic() >= self._line_due:
            self._line_due = time.monotonic() + LINE_SECONDS
            _say(self._console, line(sample, elapsed_seconds=self.elapsed))


def _play(
    place: _Place, options: SimulateOptions, seconds: float | None, console: Console, interrupts: Interrupts
) -> Sample:
    """The demo proper; the last sample is from after piperd left."""
    probe = Probe(place.catalog, time.strftime("telemetry-%Y%m%dT%H%M%SZ", time.gmtime()))
    simulator = _Simulator(options)
    with ExitStack() as stack:
        stack.callback(probe.close)
        settings = {"PIPER_GOLD__REFRESH_SECONDS": GOLD_SECONDS}
        daemon = stack.enter_context(DaemonProcess.start(place.raw, place.data, place.log, settings))
        stack.callback(simulator.finish)
        simulator.start()
        display = _Display(console, place, stack)

        exposition = ""

        def look(phase: str) -> Sample:
            nonlocal exposition
            if daemon.exit_code is not None:
                raise DaemonDiedError(f"ended with exit code {daemon.exit_code}", daemon)
            simulator.check()
            exposition = daemon.get("/metrics")[1] or exposition
            sample = probe.look(simulator.written, exposition)
            display.show(sample, phase)
            return sample

        sample = look("starting")
        while not interrupts.wait(LOOK_SECONDS) and (seconds is None or display.elapsed < seconds):
            sample = look("live" if sample.ready else "starting")
        simulator.finish()
        _catch_up(look, interrupts)
        _stop(daemon, interrupts)
        sample = probe.look(simulator.written, exposition)
        display.show(sample, "ended")
        return sample


def _catch_up(look: Callable[[str], Sample], interrupts: Interrupts) -> None:
    """Wait until the last event is visible, unless that takes long or one more signal comes."""
    asked, deadline = interrupts.count, time.monotonic() + CATCH_UP_SECONDS
    while True:
        sample = look("catching up")
        caught_up = sample.ready and sample.visible >= sample.written
        if caught_up or time.monotonic() > deadline or interrupts.wait(LOOK_SECONDS) > asked:
            return


def _stop(daemon: DaemonProcess, interrupts: Interrupts) -> None:
    daemon.interrupt()
    asked, deadline = interrupts.count, time.monotonic() + STOP_SECONDS
    while daemon.exit_code is None and time.monotonic() < deadline:
        if interrupts.wait(0.05) > asked:
            asked = interrupts.count
            daemon.interrupt()
    if daemon.exit_code != EX_OK:
        what = "did not end in time" if daemon.exit_code is None else f"ended with exit code {daemon.exit_code}"
        raise DaemonDiedError(what, daemon)


def _write_history(options: SimulateOptions, *, stop: Callable[[], bool]) -> None:
    past = replace(options, rate=0, days=HISTORY_DAYS, events=HISTORY_EVENTS)
    simulate(past, stop=stop, clock=lambda: time.time() - HISTORY_ENDS_SECONDS_AGO)


def _epilogue(place: _Place, sample: Sample) -> str:
    question = "FROM gold_data_quality_daily"
    python = f"import duckdb; print(duckdb.connect({str(place.catalog)!r}, read_only=True).sql({question!r}))"
    return "\n".join(
        (
            "",
            f"{sample.written:,} live events written, {sample.visible:,} of them in silver_events.",
            f"{sample.queries:,} queries on one connection, {sample.queries_failed:,} failed.",
            "",
            "Everything is still there, and may be deleted:",
            f"  data   {place.data}",
            f"  spool  {place.raw}",
            f"  log    {place.log}",
            "Ask it something:",
            f"  duckdb -readonly {shlex.quote(str(place.catalog))} {shlex.quote(question)}",
            f"  {shlex.quote(sys.executable)} -c {shlex.quote(python)}",
        )
    )


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
