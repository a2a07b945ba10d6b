"""Waiting for another process without guessing how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_POLL_SECONDS = 0.02


def eventually(look: Callable[[], T], what: str, *, seconds: float = 30.0) -> T:
    """The first true answer of `look`; fails, naming `what`, when there is none within `seconds`."""
    deadline = time.monotonic() + seconds
    while not (answer := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(_POLL_SECONDS)
    return answer
