"""Waiting in tests: for a condition, with a deadline, and never for a length of time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE_SECONDS = 60.0
"""Far beyond what anything takes; only a failure waits that long."""
PAUSE_SECONDS = 0.02


class DeadlineMissed(AssertionError):  # noqa: N818 - it fails a test, it is no error of piper's
    """The condition did not come true in time."""


def wait_until(
    condition: Callable[[], T],
    deadline_seconds: float = DEADLINE_SECONDS,
    *,
    what: str | Callable[[], str] = "the condition",
    pause_seconds: float = PAUSE_SECONDS,
) -> T:
    """Ask `condition` until it gives something true, and return that.

    Raises DeadlineMissed with `what` (text, or what gives it) after `deadline_seconds`.
    """
    end = time.monotonic() + deadline_seconds
    while not (found := condition()):
        if time.monotonic() > end:
            text = what if isinstance(what, str) else what()
            raise DeadlineMissed(f"not within {deadline_seconds} s: {text}; last answer {found!r}")
        time.sleep(pause_seconds)
    return found
