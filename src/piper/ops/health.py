"""Is the daemon alive (its loops turn) and ready (its answers can be trusted)?

Two questions, two consumers: a supervisor restarts what is not alive, so only a hung loop counts there; an
operator waits for what is not ready, so a missing spool counts there and never causes a restart, which
would not bring the mount back. State lives in memory only: a new process starts with no heartbeat and with
nothing ready.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final, TypedDict

LOOP_LIMIT_SECONDS: Final[Mapping[str, float]] = MappingProxyType({"ingest": 60.0, "publish": 60.0, "gold": 600.0})
"""How long a loop may be silent. Ingest and publish turn every second; a gold step may rebuild years."""

CONDITIONS: Final = ("manifest_open", "first_scan", "spool", "publish")
"""What must hold before readers may rely on what they see."""


class LoopState(TypedDict):
    """`silent_seconds` since the last beat, allowed up to `limit_seconds`."""

    loop: str
    ok: bool
    silent_seconds: float
    limit_seconds: float


class Unready(TypedDict):
    """A condition that does not hold, why, and since when (ISO 8601, UTC)."""

    condition: str
    reason: str
    since_utc: str


@dataclass(frozen=True, slots=True)
class _Failing:
    reason: str
    since: datetime


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Health:
    """Heartbeats and readiness conditions, for any thread.

    `limits` names the loops and how many seconds each may be silent, `conditions` what readiness consists of.
    Both are closed sets: another name raises `ValueError`, so a typo cannot leave a loop unwatched. A loop is
    watched from its first beat (recovery at start may take long, and readiness tells of it) until `ended`.
    """

    def __init__(
        self,
        *,
        limits: Mapping[str, float] = LOOP_LIMIT_SECONDS,
        conditions: tuple[str, ...] = CONDITIONS,
        monotonic: Callable[[], float] = time.monotonic,
        utc_now: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._limits = dict(limits)
        self._monotonic = monotonic
        self._utc_now = utc_now
        self._lock = threading.Lock()
        self._beats: dict[str, float] = {}
        self._known = frozenset(conditions)
        start = _Failing("piperd is starting", utc_now())
        self._failing: dict[str, _Failing] = dict.fromkeys(conditions, start)

    def beat(self, loop: str, *, rest_seconds: float = 0.0) -> None:
        """Say that `loop` turns. Costs a lock and a clock; call it at every turn.

        `rest_seconds` announces a rest on purpose: the limit counts from its end.
        """
        if loop not in self._limits:
            raise ValueError(f"no loop is called {loop!r}, only {', '.join(self._limits)}")
        with self._lock:
            self._beats[loop] = self._monotonic() + rest_seconds

    def ended(self, loop: str) -> None:
        """Say that `loop` is not at work, on purpose, so that its silence is not taken for a hang until it beats."""
        with self._lock:
            self._beats.pop(loop, None)

    def is_alive(self) -> tuple[bool, list[LoopState]]:
        """Whether no watched loop is silent for longer than its limit, and the state of each."""
        with self._lock:
            now = self._monotonic()
            silences = {loop: max(0.0, now - beat) for loop, beat in self._beats.items()}
        states: list[LoopState] = [
            {
                "loop": loop,
                "ok": silent <= self._limits[loop],
                "silent_seconds": round(silent, 3),
                "limit_seconds": self._limits[loop],
            }
            for loop, silent in sorted(silences.items())
        ]
        return all(state["ok"] for state in states), states

    def set_ready(self, condition: str) -> None:
        """`condition` holds now."""
        self._check(condition)
        with self._lock:
            self._failing.pop(condition, None)

    def set_not_ready(self, condition: str, reason: str) -> None:
        """`condition` does not hold, for `reason` (to people). Repeating it keeps the time since when."""
        self._check(condition)
        with self._lock:
            before = self._failing.get(condition)
            self._failing[condition] = _Failing(reason, before.since if before else self._utc_now())

    def readiness(self) -> tuple[bool, list[Unready]]:
        """Whether all conditions hold, and those that do not, in the order of their names."""
        with self._lock:
            failing = sorted(self._failing.items())
        unready: list[Unready] = [
            {"condition": name, "reason": failure.reason, "since_utc": failure.since.isoformat()}
            for name, failure in failing
        ]
        return not unready, unready

    def _check(self, condition: str) -> None:
        if condition not in self._known:
            raise ValueError(f"no condition is called {condition!r}, only {', '.join(sorted(self._known))}")
