"""Pace: how many events and bytes are committed a second, over the last minute."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

WINDOW_SECONDS = 60.0


class Pace:
    """Remembers what was committed within the window. For one thread."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._since = monotonic()
        self._commits: deque[tuple[float, int, int]] = deque()

    def add(self, events: int, size_bytes: int) -> None:
        """Note one commit."""
        self._commits.append((self._monotonic(), events, size_bytes))
        self._forget()

    def rates(self) -> dict[str, Any]:
        """Events and bytes a second; `seconds` is the time that they are the mean of, shorter after a start."""
        self._forget()
        seconds = min(WINDOW_SECONDS, max(1.0, self._monotonic() - self._since))
        return {
            "seconds": round(seconds, 1),
            "events_per_second": round(sum(events for _, events, _ in self._commits) / seconds, 2),
            "bytes_per_second": round(sum(size for _, _, size in self._commits) / seconds, 1),
        }

    def _forget(self) -> None:
        horizon = self._monotonic() - WINDOW_SECONDS
        while self._commits and self._commits[0][0] < horizon:
            self._commits.popleft()
