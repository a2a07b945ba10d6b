"""Upkeep: what the daemon does in the background for the warehouse, one duty at a time.

A duty is a name and a step. The step runs in upkeep's own thread with `Hands`, for as long as it takes: it reads the
manifest by a cursor of its own, and does heavy work (reading and writing chunks) in a DuckDB of its own with limited
memory, so that ingest never waits for either. Only what must take effect is handed to the writer's thread, as a short
job between two steps of its loop (`Hands.in_writer`, `Hands.commit`).

A duty that fails because of the ground (disk, mount, memory) is logged, counted and tried again, later each time; it
never stops ingest. An error inside the writer's thread is different: nobody knows then what became durable, so the
daemon opens its data root anew, as after any failed commit. A bug ends the daemon, as everywhere.

At a stop, and while the data root is opened anew, the step under way is interrupted (`Upkeep.halted`).
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
import duckdb
import structlog

from piper.errors import PiperError
from piper.ops.jobs import Jobs, refused
from piper.ops.metrics import Metrics
from piper.silver.rewrite import Rewrite
from piper.writer import Writer

CORE_SHARE = 0.25
"""Background work may take this share of one core: after a step of one second, upkeep rests for three."""
ENGINE_MEMORY = "256MB"
"""Of the DuckDB that chunks are rewritten with; what does not fit (sorting a large chunk) is spilled to disk."""
FAILURES_PAUSE_SECONDS_MAX = 3600.0
LOOK_AGAIN_SECONDS = 1.0
"""While there is a backlog, or the data root is being opened anew, upkeep looks so often whether that is over."""
_HALT_SECONDS = 0.05

T = TypeVar("T")
_log = structlog.get_logger(component="upkeep")


class Stopped(PiperError):  # noqa: N818 - it is no error of anybody's
    """A step gives up because the daemon stops or opens its data root anew; what it had prepared is undone."""

    def __init__(self) -> None:
        super().__init__("piperd is stopping or opening its data root anew", hint="Ask again later.")


class Hands:
    """What a step works with, over one open writer. All but `stop` and `in_writer`'s action belong to one thread.

    `in_writer` runs an action in the writer's thread; without a daemon the two are one.
    """

    def __init__(
        self,
        writer: Writer,
        in_writer: Callable[[Callable[[Writer], Any]], Any] | None = None,
        *,
        is_behind: Callable[[], bool] = lambda: False,
    ) -> None:
        self.writer = writer
        self.con = writer.store.cursor()
        """A cursor of the manifest."""
        self._in_writer = in_writer or (lambda action: action(writer))
        self._is_behind = is_behind
        self._engine: duckdb.DuckDBPyConnection | None = None
        self._lock = threading.Lock()
        self._stopped = False

    # ---- for steps -----------------------------------------------------------------------------------------------

    @property
    def engine(self) -> duckdb.DuckDBPyConnection:
        """A DuckDB for heavy statements over files; it knows no manifest, and is gone after the step."""
        self.check()
        if self._engine is None:
            spill = self.writer.store.layout.state / "tmp-upkeep"
            shutil.rmtree(spill, ignore_errors=True)  # of a process that was killed
            engine = duckdb.connect(
                config={
                    "memory_limit": ENGINE_MEMORY,
                    "threads": 1,
                    "temp_directory": str(spill),
                    "preserve_insertion_order": False,
                    "enable_external_file_cache": False,
                    "autoinstall_known_extensions": False,
                    "autoload_known_extensions": False,
                }
            )
            engine.execute("SET TimeZone = 'UTC'")
            engine.execute("SET enable_progress_bar = false")  # on stdout, where DuckDB takes the process for a shell
            with self._lock:
                self._engine = engine
        return self._engine

    @property
    def should_yield(self) -> bool:
        """Whether to come to an end soon: lines are waiting, or the daemon stops."""
        return self._stopped or self._is_behind()

    def check(self) -> None:
        """Raise Stopped if the step is to end now. Ask between statements: an interrupt only ends one under way."""
        if self._stopped:
            raise Stopped

    def in_writer(self, action: Callable[[Writer], T]) -> T:
        """Do something short in the writer's thread, where an error has the data root opened anew.

        Raises PiperError without having begun when that cannot be done now.
        """
        result: T = self._in_writer(action)
        return result

    def commit(self, rewrite: Rewrite, **options: Any) -> int:
        """`Rewrite.commit` in the writer's thread; abandons the rewrite if that did not even begin."""
        begun = False

        def commit(writer: Writer) -> int:
            nonlocal begun
            begun = True
            return rewrite.commit(now=writer.clock.now(), **options)

        try:
            return self.in_writer(commit)
        except BaseException:
            if not begun:
                rewrite.abandon()
            raise

    # ---- for whoever lends them ----------------------------------------------------------------------------------

    def stop(self) -> None:
        """Have the step end soon: interrupts the statement under way. Any thread; call again until it has ended."""
        self._stopped = True
        self.con.interrupt()
        with self._lock:
            if self._engine is not None:
                self._engine.interrupt()

    def put_down(self) -> None:
        """After a step: give the engine's memory back."""
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def close(self) -> None:
        """Give up the cursor; the manifest's lock lasts as long as any."""
        self.put_down()
        self.con.close()


@dataclass(frozen=True, slots=True)
class Duty:
    """Something to be done again and again."""

    name: str
    """One of `ops.metric_list.DUTIES`."""
    seconds: float
    """How long after a step that found nothing to do."""
    step: Callable[[Hands], bool]
    """Does a bounded part (some seconds) of what is due; returns whether it did anything, so that there may be more."""
    gold_rests: bool = False
    """No gold refresh may be under way meanwhile."""
    yields: bool = True
    """It waits while lines are waiting to be read."""


@dataclass(slots=True)
class _Turn:
    """When a duty is due next, and how often in a row it has failed."""

    due: float = 0.0
    failures: int = 0


class Upkeep:
    """The task. `run` goes through the duties, in their order, whenever one is due; `do` is for commands."""

    def __init__(
        self,
        duties: Sequence[Duty],
        *,
        jobs: Jobs,
        gold_lock: anyio.Lock,
        metrics: Metrics,
        is_behind: Callable[[], bool],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._duties = {duty.name: duty for duty in duties}
        self._turns = {duty.name: _Turn() for duty in duties}
        self._jobs, self._gold_lock, self._metrics = jobs, gold_lock, metrics
        self._is_behind, self._monotonic = is_behind, monotonic
        self._lock = anyio.Lock()
        """Held while a step is under way."""
        self._hands: Hands | None = None

    # ---- the open data root --------------------------------------------------------------------------------------

    def open(self, writer: Writer) -> None:
        """The data root is open (again). In the writer's thread."""
        self._hands = Hands(writer, self._in_writer, is_behind=self._is_behind)

    def close(self) -> None:
        """The data root is about to be closed. Inside `halted`."""
        hands, self._hands = self._hands, None
        if hands is not None:
            hands.close()

    @asynccontextmanager
    async def halted(self) -> AsyncIterator[None]:
        """Inside, no step is under way: the one that was has been interrupted. Jobs must be refused meanwhile."""
        while True:
            if self._hands is not None:
                self._hands.stop()
            with anyio.move_on_after(_HALT_SECONDS) as scope:
                await self._lock.acquire()
            if not scope.cancelled_caught:
                break
        try:
            yield
        finally:
            self._lock.release()

    # ---- working -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Do what is due, until cancelled."""
        while True:
            duty, seconds = self._next()
            if duty is None:
                await anyio.sleep(seconds)
            else:
                await self._fulfil(duty)

    async def do(self, step: Callable[[Hands], T], *, gold_rests: bool = False) -> T:
        """Run a step for a command as soon as the one under way has ended; raises PiperError when it is refused."""
        try:
            return await self._run(step, gold_rests=gold_rests)
        except (duckdb.Error, OSError) as error:
            raise refused(error) from error

    def _next(self) -> tuple[Duty | None, float]:
        """The first duty that is due, or None and for how many seconds there is none."""
        now, pause = self._monotonic(), 60.0
        for duty in self._duties.values():
            due = self._turns[duty.name].due
            if due <= now and self._hands is not None and not (duty.yields and self._is_behind()):
                return duty, 0.0
            pause = min(pause, due - now if due > now else LOOK_AGAIN_SECONDS)
        return None, pause

    async def _fulfil(self, duty: Duty) -> None:
        turn, started = self._turns[duty.name], self._monotonic()
        pause = duty.seconds
        try:
            did = await self._run(duty.step, gold_rests=duty.gold_rests)
        except Stopped:
            return
        except (duckdb.Error, OSError, PiperError) as error:
            turn.failures += 1
            pause = max(pause, min(FAILURES_PAUSE_SECONDS_MAX, pause * 2.0 ** min(turn.failures, 20)))
            self._metrics.upkeep_failed(duty.name, error=str(error), again_in_seconds=pause)
        else:
            turn.failures = 0
            seconds = self._monotonic() - started
            if did:
                self._metrics.upkeep_done(duty.name, seconds)
                pause = seconds * (1 / CORE_SHARE - 1)
        turn.due = self._monotonic() + pause

    async def _run(self, step: Callable[[Hands], T], *, gold_rests: bool) -> T:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._lock)
            if gold_rests:
                await stack.enter_async_context(self._gold_lock)
            hands = self._hands
            if hands is None:
                raise Stopped
            return await anyio.to_thread.run_sync(_work, hands, step)

    def _in_writer(self, action: Callable[[Writer], T]) -> T:
        """From upkeep's thread."""
        return anyio.from_thread.run(lambda: self._jobs.do(action, commits=True))


def _work(hands: Hands, step: Callable[[Hands], T]) -> T:
    try:
        hands.check()
        return step(hands)
    except duckdb.InterruptException:
        raise Stopped from None
    finally:
        hands.put_down()
