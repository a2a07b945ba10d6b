"""piperd: the stages of `Writer` in one loop, gold in another, and what an operator and Prometheus need around them.

Order of shutdown, on SIGTERM or SIGINT: look for news once more, commit and publish what can be read in DRAIN_SECONDS,
refresh gold if that is quick, close. It is bounded by STOP_SECONDS: whatever hangs then (a dead mount) is left, for
nothing uncommitted is lost. A second signal ends the process at once.

A commit that fails leaves open what became durable, so the data root is closed and opened anew, with backoff, until it
works: metrics and health answer all the while, `/readyz` says why. Only errors that no waiting heals end the process.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
import duckdb
import structlog

from piper import __version__
from piper.duties import daemon_duties
from piper.errors import DataRootError, PiperError, WriterLockedError
from piper.failpoints import failpoint
from piper.files import ensure_writable, narrow_umask
from piper.gold.models import load_models
from piper.layout import Layout
from piper.lookout import Lookout
from piper.ops.control import serve_control
from piper.ops.facts import wants_file_events
from piper.ops.handlers import control_handlers
from piper.ops.health import Health
from piper.ops.http import MetricsServer
from piper.ops.jobs import Jobs
from piper.ops.logging import RunLog, close_run_log, configure_logging, set_level
from piper.ops.metrics import Metrics
from piper.ops.storage import chunk_counts
from piper.ops.systemd import Notifier, describe, pulse
from piper.outlet import Outlet, in_words
from piper.reload import Reloader
from piper.settings import Settings
from piper.settings_sources import LoadedSettings
from piper.spool.watch import changed_paths
from piper.upkeep import Upkeep
from piper.writer import Writer

STOP_SECONDS = 27.0
"""After the first signal the process ends within this time, whatever it was doing."""
DRAIN_SECONDS = 10.0
"""How much of that goes into reading what is still unread."""
GOLD_STOP_SECONDS = 5.0
BATCH_SHARE = 0.5
"""Of the poll interval: how long a batch gathers. The lines of a quiet file wait for those of a flood no longer."""
GOLD_SHARE = 0.25
"""Of a core's time: gold over a huge day is refreshed less often than gold.refresh_seconds asks for."""
RETRY_SECONDS_MAX = 30.0
T = TypeVar("T")
_log = structlog.get_logger(component="daemon")


def run(load: Callable[[], LoadedSettings]) -> int:
    """Run piperd until a signal ends it; returns the exit code. Raises PiperError when it cannot start.

    `load` reads the settings; it is asked again at every reload.
    """
    faulthandler.enable()  # a watchdog that kills a hung process leaves every thread's stack in the log
    settings = load().settings
    layout = Layout.of(settings)
    narrow_umask()
    ensure_writable(layout.data_root, "data root")
    configure_logging(settings.logging.level, settings.logging.format, RunLog(layout.data_root, "piperd"))
    try:
        return anyio.run(Daemon(settings, load).main)
    except BaseExceptionGroup as group:
        raise _only_error(group) from group
    finally:
        close_run_log()


def _only_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a person can act on, where a task group wraps exactly that."""
    found, _ = group.split(PiperError)
    leaf: BaseException = found if found is not None else group
    while isinstance(leaf, BaseExceptionGroup) and (found is not None or len(leaf.exceptions) == 1):
        leaf = leaf.exceptions[0]
    return leaf


class Daemon:
    """One run of piperd."""

    def __init__(self, settings: Settings, load: Callable[[], LoadedSettings]) -> None:
        self.settings = settings
        self.layout = Layout.of(settings)
        self.metrics = Metrics()
        self.health = Health()
        self.metrics.show_health(self.health)
        self.started_at = time.time()
        self.writer: Writer | None = None
        self._thread = anyio.CapacityLimiter(1)
        """Everything that touches the writer's connection or the tailer runs here, one step at a time."""
        self.gold_lock = anyio.Lock()
        self._gold_cursor: duckdb.DuckDBPyConnection | None = None
        self.jobs = Jobs(lambda: self._wake.set(), self._why_no_job)
        self._reopening = self._has_been_open = False
        self.is_behind = True
        """Whether lines waited to be read at the end of the loop's last turn; upkeep gives way to them."""
        self.upkeep = Upkeep(
            daemon_duties(),
            jobs=self.jobs,
            gold_lock=self.gold_lock,
            metrics=self.metrics,
            is_behind=lambda: self.is_behind,
        )
        self._lookout = Lookout(self.health)
        self._outlet = Outlet(
            self.layout, self.metrics, self.health, lambda: anyio.from_thread.run_sync(self._gold_wake.set)
        )
        self._wake = anyio.Event()
        self._gold_wake = anyio.Event()
        self._stopping = anyio.Event()
        self._caught_up = anyio.Event()
        """The ingest loop had nothing to do for the first time."""
        self._notifier = Notifier()
        self.reloader = Reloader(load, self, self._notifier)

    async def main(self) -> int:
        """Start, run until a signal, stop in order."""
        metrics = self.settings.metrics
        with MetricsServer(metrics.host, metrics.port, self.metrics.registry, self.health) as server:
            _log.info(
                "starting",
                version=__version__,
                pid=os.getpid(),
                metrics=server.url,
                data_root=str(self.layout.data_root),
            )
            async with anyio.create_task_group() as tasks:
                await tasks.start(self._watch_signals)
                tasks.start_soon(pulse, self._notifier, self.health, self._describe)
                await self._in_thread(self._open)
                tasks.start_soon(self.reloader.serve)
                tasks.start_soon(self._gold_loop)
                tasks.start_soon(self.upkeep.run)
                if wants_file_events(self.settings.watch.mode, self.settings.paths.raw_root):
                    tasks.start_soon(self._watch_spool)
                await tasks.start(serve_control, self.layout.control_socket, control_handlers(self))
                self._notifier.ready()
                await self._ingest_loop()
                with anyio.CancelScope(shield=True):
                    await self._stop()
                tasks.cancel_scope.cancel()
        _log.info("stopped", uptime_seconds=round(time.time() - self.started_at, 1))
        return 0

    # ---- the ingest loop -----------------------------------------------------------------------------------------

    async def _ingest_loop(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self._beat()
            try:
                idle_seconds = await self._in_thread(self._turn)
                failures = 0
            except (duckdb.Error, OSError) as error:
                failures += 1
                await self._reopen(error, failures)
                continue
            if idle_seconds > 0:
                self._caught_up.set()
                self._beat(rest_seconds=idle_seconds + self.settings.ingest.flush_seconds)
                await self._rest(idle_seconds)

    def _beat(self, rest_seconds: float = 0.0) -> None:
        """Ingest and publishing go forward, or rest for so long."""
        self.health.beat("ingest", rest_seconds=rest_seconds)
        self.health.beat("publish", rest_seconds=rest_seconds)

    async def _rest(self, seconds: float) -> None:
        """Sleep until something happens or is due; then let a micro-batch gather."""
        with anyio.move_on_after(seconds):
            await self._wake.wait()
            if not self.jobs:
                gather = max(self.settings.ingest.flush_seconds, self._outlet.pause())
                with anyio.move_on_after(gather):
                    await self._stopping.wait()
        if self._wake.is_set():
            self._wake = anyio.Event()

    def _turn(self) -> float:
        """One step in the writer's thread; returns for how long there is nothing to do, in seconds."""
        writer = self.writer
        assert writer is not None
        failpoint("daemon.turn")
        writer.store.check_ground()
        self.jobs.run_all(writer)
        self._lookout.look(writer)
        if writer.tail_is_old and not writer.tailer.ready:
            writer.seal()
        gather_seconds = self.settings.watch.poll_seconds * BATCH_SHARE
        writer.ingest(seconds=gather_seconds, look=lambda: self._lookout.poll_when_due(writer))
        if writer.tailer.is_flooded:  # what the other files got meanwhile need not wait for the next batch of the flood
            self._lookout.poll_again(writer)
            writer.ingest(seconds=gather_seconds, quiet_only=True)
        next_duty = self._outlet.keep(writer)
        self.is_behind = writer.tailer.ready
        if self.is_behind or self.jobs:
            return 0.0
        due = min(self._lookout.next_look(writer), next_duty)
        return max(0.001, due - time.monotonic(), self._outlet.pause())

    # ---- opening, failing, stopping ------------------------------------------------------------------------------

    def _open(self) -> None:
        settings = self.settings
        again = self._has_been_open
        writer = Writer.open(settings, self.metrics, command="piperd", progress=self._beat, again=again)
        self.writer = writer
        self._has_been_open = True
        if self.settings is not settings:  # reloaded while it was opened
            writer.adopt(self.settings)
        self._gold_cursor = writer.store.cursor()
        self.upkeep.open(writer)
        self.metrics.chunks_counted(chunk_counts(writer.store.con))
        self._lookout.begin_anew()
        self._outlet.publish_soon()
        self.health.set_ready("manifest_open")
        self.health.set_ready("publish")

    def _close(self) -> None:
        writer, self.writer, self._gold_cursor = self.writer, None, None
        self.upkeep.close()
        if writer is not None:
            try:
                writer.close()
            except (duckdb.Error, OSError) as error:
                _log.error("close_failed", error=str(error))

    async def _reopen(self, error: BaseException, failures: int) -> None:
        """After a failed step: what is durable is in the manifest, so open it anew, again and again."""
        kind = _kind_of(error)
        self.metrics.commit_failed(kind, error=str(error))
        self.health.set_not_ready("manifest_open", in_words(error, self.layout))
        if self._gold_cursor is not None:
            self._gold_cursor.interrupt()
        self._reopening = True
        async with self.upkeep.halted(), self.gold_lock:
            await self._in_thread(self._close)
            while not self._stopping.is_set():
                pause = min(RETRY_SECONDS_MAX, 0.5 * 2 ** min(failures, 10)) * random.uniform(0.7, 1.3)  # noqa: S311
                self._beat(rest_seconds=pause)
                with anyio.move_on_after(pause):
                    await self._stopping.wait()
                try:
                    await self._in_thread(self._open)
                    self._reopening = False
                    return
                except (DataRootError, WriterLockedError, duckdb.Error, OSError) as again:
                    failures += 1
                    self.health.set_not_ready("manifest_open", str(again))
                    _log.error("reopen_failed", error=str(again), failures=failures)

    async def _stop(self) -> None:
        _log.info("stopping")
        self._notifier.stopping(STOP_SECONDS + 3.0)
        self.health.ended("gold")
        if self._gold_cursor is not None:
            self._gold_cursor.interrupt()
        async with self.upkeep.halted(), self.gold_lock:
            try:
                await self._in_thread(self._drain)
                await self._last_gold()
            except (duckdb.Error, OSError, PiperError) as error:
                _log.error("drain_failed", error=str(error))
            for loop in ("ingest", "publish"):
                self.health.ended(loop)
            await self._in_thread(self._close)

    def _drain(self) -> None:
        """Commit what can be read within DRAIN_SECONDS, and publish it."""
        writer = self.writer
        if writer is None:
            return
        deadline = time.monotonic() + DRAIN_SECONDS
        writer.tailer.poll()
        self._drain_ready(writer, deadline)
        if time.monotonic() + self._lookout.scan_seconds < deadline:  # files that nobody has reported yet
            writer.scan()
            self._drain_ready(writer, deadline)
        writer.ingest()
        writer.export_quarantine()
        writer.publish()

    def _drain_ready(self, writer: Writer, deadline: float) -> None:
        while writer.tailer.ready and time.monotonic() < deadline:
            writer.ingest()

    async def _last_gold(self) -> None:
        writer, cursor = self.writer, self._gold_cursor
        if writer is None or cursor is None:
            return
        timer = threading.Timer(GOLD_STOP_SECONDS, cursor.interrupt)
        timer.start()
        try:
            await anyio.to_thread.run_sync(writer.refresh_gold, cursor)
        except duckdb.InterruptException:
            _log.info("gold_left_for_the_next_start")
        finally:
            timer.cancel()

    # ---- the other tasks -----------------------------------------------------------------------------------------

    async def _watch_signals(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    self.reloader.ask()
                    continue
                if self._stopping.is_set():
                    _log.warning("ended_by_second_signal", signal=signal.Signals(number).name)
                    os._exit(128 + number)
                _log.info("signal", signal=signal.Signals(number).name)
                self._stopping.set()
                self._wake.set()
                self._gold_wake.set()
                threading.Thread(target=_end_late, daemon=True).start()

    async def _watch_spool(self) -> None:
        async for paths, other in changed_paths(self.settings.paths.raw_root, self._stopping):
            self._lookout.note(paths, rescan=other)
            self._wake.set()

    async def _gold_loop(self) -> None:
        with anyio.move_on_after(self.settings.gold.refresh_seconds):
            await self._caught_up.wait()  # so that the first refresh has something to show
        while not self._stopping.is_set():
            async with self.gold_lock:
                started = time.monotonic()
                await self.refresh_gold()
                seconds = time.monotonic() - started
            with anyio.move_on_after(max(self.settings.gold.refresh_seconds, seconds / GOLD_SHARE) - seconds):
                await self._gold_wake.wait()
                if not self._stopping.is_set():
                    self._gold_wake = anyio.Event()

    async def refresh_gold(self, *, rebuild: bool = False, models: list[str] | None = None) -> bool:
        """Bring gold up to date, with `gold_lock` held; returns whether anything was written."""
        writer, cursor = self.writer, self._gold_cursor
        if writer is None or cursor is None:
            return False
        self.health.beat("gold")  # watched while it works: neither a rest nor a wait for the lock is a hang
        try:
            return await anyio.to_thread.run_sync(
                lambda: writer.refresh_gold(
                    cursor,
                    rebuild=rebuild,
                    models=models,
                    in_writer=lambda step: anyio.from_thread.run(self._in_thread, step),
                )
            )
        except duckdb.InterruptException:
            return False
        except (duckdb.Error, OSError) as error:
            # A single model's failure is counted where it happens; this one kept all of them from readers.
            for model in load_models():
                self.metrics.gold_refreshed(model.name, 0.0, ok=False, error=str(error))
            return False
        finally:
            self.health.ended("gold")

    # ---- control -------------------------------------------------------------------------------------------------

    async def take_over(self, settings: Settings) -> None:
        """Go on with `settings`, which differ in `reload.RELOADABLE` keys only. Raises PiperError, nothing changed."""
        before, self.settings = self.settings, settings

        def adopt(writer: Writer) -> None:
            writer.adopt(settings)
            self._lookout.poll_soon()
            self._outlet.publish_soon()

        try:
            if self.writer is not None:
                await self.jobs.do(adopt)
        except PiperError:
            if self.writer is not None:  # else the data root is being opened anew, with the new settings
                self.settings = before
                raise
        set_level(settings.logging.level)
        self._gold_wake.set()

    def _describe(self) -> str:
        return describe(self.health, self.metrics.registry)

    def _why_no_job(self) -> PiperError | None:
        if self._stopping.is_set():
            return PiperError("piperd is stopping")
        if self.writer is None or self._reopening:
            return PiperError("piperd is opening its data root anew", hint="Ask again; /readyz says what is wrong.")
        return None

    async def _in_thread(self, action: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(action, limiter=self._thread)


def _end_late() -> None:
    """Exit although something still hangs; all that is lost by it is read again at the next start."""
    time.sleep(STOP_SECONDS)
    _log.error("stop_took_too_long", seconds=STOP_SECONDS)
    close_run_log()
    os._exit(0)


def _kind_of(error: BaseException) -> str:
    text = str(error)
    if "No space left" in text or "Disk quota" in text:
        return "disk_full"
    if isinstance(error, duckdb.FatalException | duckdb.InternalException):
        return "fatal"
    return "io_error" if isinstance(error, OSError | duckdb.IOException) else "other"
