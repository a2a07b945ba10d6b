"""Signals that end a command which runs until it is told to stop, as something that can be counted and waited for."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP as a count and as something to wait for, inside `with`.

    A pipe and not an Event: a handler runs in the middle of anything, also of the wait that holds the Event's lock.
    """

    def __init__(self) -> None:
        self.count = 0
        self._read, self._write = -1, -1
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)

    def wait(self, seconds: float) -> int:
        """Pause, or less when a signal comes; returns the count."""
        if select.select([self._read], [], [], seconds)[0]:
            os.read(self._read, 64)
        return self.count

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count < 64:  # never fills the pipe
            os.write(self._write, b"!")
