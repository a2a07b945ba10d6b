"""Jobs: how another task of the daemon gets something done in the writer's thread, between two steps of its loop."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import anyio
import anyio.to_thread
import duckdb

from piper.errors import PiperError
from piper.writer import Writer

T = TypeVar("T")

LOOK_SECONDS = 1.0
"""How often a waiting job asks whether it can still be done."""


class _Job(Generic[T]):
    """One action, and what came of it."""

    def __init__(self, action: Callable[[Writer], T], *, commits: bool) -> None:
        self._action, self.commits = action, commits
        self.done = threading.Event()
        self.results: list[T] = []
        self.error: Exception | None = None

    def __call__(self, writer: Writer) -> None:
        try:
            self.results.append(self._action(writer))
        except Exception as error:  # handed to the client that waits
            self.error = error
        finally:
            self.done.set()


class Jobs:
    """The queue. `wake` ends the loop's rest; `why_not` says, while a job waits, why it will not be done now."""

    def __init__(self, wake: Callable[[], None], why_not: Callable[[], PiperError | None]) -> None:
        self._wake, self._why_not = wake, why_not
        self._waiting: deque[_Job[Any]] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def run_all(self, writer: Writer) -> None:
        """Do what waits. Call it in the writer's thread. Raises what a job that commits was failed by."""
        while self._waiting:
            job = self._waiting.popleft()
            job(writer)
            if job.commits and isinstance(job.error, duckdb.Error | OSError):
                raise job.error

    async def do(self, action: Callable[[Writer], T], *, commits: bool = False) -> T:
        """Run `action` in the writer's thread.

        Raises PiperError when that is not possible now, and then it has not begun and never will; or when the ground
        gives way under it (a full disk, a lost mount): a command is refused then, and piperd goes on. With `commits`
        that is said to the loop as well, since nobody knows what became durable: it opens the data root anew. Anything
        else that `action` raises is a bug and ends piperd.
        """
        job = _Job(action, commits=commits)
        self._waiting.append(job)
        self._wake()
        try:
            while not await anyio.to_thread.run_sync(job.done.wait, LOOK_SECONDS, abandon_on_cancel=True):
                if (refusal := self._why_not()) is not None and self._withdraw(job):
                    raise refusal
        except anyio.get_cancelled_exc_class():
            self._withdraw(job)
            raise
        if job.error is None:
            return job.results[0]
        if isinstance(job.error, duckdb.Error | OSError):
            raise refused(job.error) from job.error
        raise job.error

    def _withdraw(self, job: _Job[T]) -> bool:
        """Take it out of the queue; False when it has begun, so that its end is to be waited for."""
        try:
            self._waiting.remove(job)
        except ValueError:
            return False
        return True


def refused(error: BaseException) -> PiperError:
    """What a client is told when the disk or the manifest failed under its command."""
    return PiperError(f"piperd could not do it: {error}", hint="Look at /readyz and the daemon's log, then ask again.")
