"""Lookout: when piperd looks at the spool, so that news is found soon and looking costs a bounded share of one core.

File events are hints. Files that grew lately are looked at every `watch.poll_seconds`, everything by a full scan now
and then, and sooner when a file event spoke of something else than a file, such as a new directory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import structlog

from piper.ops.health import Health
from piper.writer import Writer

SCAN_SECONDS_MAX = 60.0
SCAN_SHARE = 0.003
"""Scans may take this share of one core: small spools are scanned every poll, 100,000 files at rest every 40 seconds or
so, and none less often than SCAN_SECONDS_MAX."""
POLL_SHARE = 0.2
"""The same for looks at the files that grew lately: some thousands every poll, 100,000 less often."""
RESCAN_SECONDS = 1.0
RESCAN_SHARE = 0.1
"""A scan that a file event asked for (a new directory) waits RESCAN_SECONDS; such scans take this share at most."""

_log = structlog.get_logger(component="daemon")


class Lookout:
    """Decides when to look at what. `note` may be called in any thread, the rest belongs to the writer's."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._hints: set[bytes] = set()
        self._rescan = False
        self._error: str | None = None
        self._next_scan = self._next_rescan = self._next_poll = self._earliest_poll = 0.0
        self.scan_seconds = 0.0
        """How long the last full scan took."""

    def note(self, paths: Iterable[bytes], *, rescan: bool) -> None:
        """These files changed, says a file event; `rescan`: so did something that is no file."""
        self._hints.update(paths)
        self._rescan |= rescan

    def begin_anew(self) -> None:
        """All is due: the data root was opened."""
        self._next_scan = self._next_poll = 0.0

    def poll_soon(self) -> None:
        """The next look is due: the pace may have changed."""
        self._next_poll = 0.0

    def next_look(self, writer: Writer) -> float:
        """When something is due, on the monotonic clock."""
        due = [self._next_scan]
        if writer.tailer.polls:
            due.append(self._next_poll)
        if self._rescan:
            due.append(self._next_rescan)
        return min(due)

    def look(self, writer: Writer) -> None:
        """Find out what is new: by hints at once, by polling what is hot, by scanning everything."""
        now, poll_seconds = time.monotonic(), writer.settings.watch.poll_seconds
        hints, self._hints = self._hints, set()
        for path in hints:
            writer.tailer.look(path)
        if now >= self._next_scan or (self._rescan and now >= self._next_rescan):
            self._rescan = False
            writer.scan()
            self.scan_seconds = seconds = time.monotonic() - now
            self._next_scan = now + min(SCAN_SECONDS_MAX, max(poll_seconds, seconds / SCAN_SHARE))
            self._next_rescan = now + max(RESCAN_SECONDS, seconds / RESCAN_SHARE)
            self._next_poll = now + poll_seconds
            self._judge_spool(writer)
        else:
            self.poll_when_due(writer)

    def poll_when_due(self, writer: Writer) -> None:
        """Look at the files that grew lately; also while a batch gathers, which their lines then join."""
        if time.monotonic() >= self._next_poll:
            self._poll(writer)

    def poll_again(self, writer: Writer) -> None:
        """The same before it is due: what has come while a commit of a flood went on."""
        if time.monotonic() >= self._earliest_poll:
            self._poll(writer)

    def _poll(self, writer: Writer) -> None:
        now = time.monotonic()
        writer.tailer.poll()
        self._earliest_poll = now + (time.monotonic() - now) / POLL_SHARE
        self._next_poll = max(now + writer.settings.watch.poll_seconds, self._earliest_poll)

    def _judge_spool(self, writer: Writer) -> None:
        error = writer.tailer.spool_error
        if error != self._error:
            self._error = error
            _log.warning("spool_unreachable", error=error) if error else _log.info("spool_reached")
        if error:
            self._health.set_not_ready("spool", error)
            return
        self._health.set_ready("spool")
        self._health.set_ready("first_scan")
