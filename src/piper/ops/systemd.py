"""Talking to systemd: the notifications of `sd_notify(3)`, and a watchdog that is fed by progress only.

Without `NOTIFY_SOCKET` in the environment nothing is said, so piperd runs the same under any supervisor. A notification
that cannot be sent is logged once and costs nothing else: systemd then acts by its own timeouts.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

import anyio
import structlog
from prometheus_client import CollectorRegistry

from piper.ops.health import Health
from piper.ops.words import size

SEND_SECONDS: Final = 1.0
"""systemd's socket takes a message at once; a queue that stays full for so long is given up."""
PULSE_SECONDS: Final = 5.0
"""How often the status line is brought up to date, where no watchdog asks for more."""
FEEDS_PER_WATCHDOG: Final = 4

_log = structlog.get_logger(component="systemd")


class Notifier:
    """The service manager that started this process, if one did. Any thread; each call is one message."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        env = os.environ if environment is None else environment
        address = env.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._failed = False
        self.watchdog_seconds = _watchdog_seconds(env)
        """After so long without `feed` systemd kills this process; None where it does not watch."""

    @property
    def is_heard(self) -> bool:
        """Whether anybody asked to be notified."""
        return bool(self._address)

    def ready(self) -> None:
        """The service is up, or a reload is over."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload has begun; `ready` must follow whatever comes of it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, seconds: float) -> None:
        """The service stops, and will be gone within `seconds`, also where the unit's own limit is shorter."""
        self._send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}", "STATUS=Stopping: drain and publish")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={' '.join(text.split())}")

    def feed(self) -> None:
        """The watchdog's food: say it only when something went forward."""
        self._send("WATCHDOG=1")

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.settimeout(SEND_SECONDS)
                channel.connect(self._address)
                channel.send("\n".join(assignments).encode(errors="replace"))
            self._failed = False
        except OSError as error:
            if not self._failed:
                _log.warning("systemd_not_reached", notification=assignments[0], error=str(error))
            self._failed = True


def _watchdog_seconds(env: Mapping[str, str]) -> float | None:
    """WATCHDOG_USEC, unless it is meant for another process (a wrapper that passed its environment on)."""
    microseconds, pid = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(microseconds) / 1e6


async def pulse(notifier: Notifier, health: Health, describe: Callable[[], str]) -> None:
    """Keep systemd informed until cancelled: feed the watchdog while every loop beats, and tell the status.

    It runs in the event loop, so a blocked event loop starves the watchdog as well as a silent stage does.
    """
    if not notifier.is_heard:
        return
    watchdog = notifier.watchdog_seconds
    pause = PULSE_SECONDS if watchdog is None else min(PULSE_SECONDS, watchdog / FEEDS_PER_WATCHDOG)
    told, starving = "", False
    while True:
        is_alive, loops = health.is_alive()
        silent = ", ".join(f"{loop['loop']} {loop['silent_seconds']:.0f} s" for loop in loops if not loop["ok"])
        if is_alive:
            notifier.feed()
        elif not starving:
            _log.error("loop_hangs", silent=silent, watchdog_seconds=watchdog)
        starving = not is_alive
        if (text := describe() if is_alive else f"Hangs, no progress: {silent}") != told:
            notifier.status(text)
            told = text
        await anyio.sleep(pause)


def describe(health: Health, registry: CollectorRegistry) -> str:
    """Where the daemon stands, in one line; asks no stage, so that it can be told while one is busy."""
    is_ready, unready = health.readiness()
    if not is_ready:
        return "Not ready: " + "; ".join(f"{problem['condition']}: {problem['reason']}" for problem in unready)
    unread = registry.get_sample_value("piper_backlog_bytes") or 0.0
    files = registry.get_sample_value("piper_files_tracked") or 0.0
    if unread:
        return f"Reading: {size(unread)} unread, {files:,.0f} files"
    return f"Up to date with {files:,.0f} files"
