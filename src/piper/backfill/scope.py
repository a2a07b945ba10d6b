"""Scope: which days a backfill is for, and which spool files can hold events of them.

A file's modification time is the file server's, its name tells when the writer began by the clock of its host; that
clock may be days off, and so are its events then. So a file is read if it was written to after the first day less
WRITTEN_SLACK, and begun before the last day plus BEGUN_SLACK; one whose name tells nothing may have begun any time.
What was written down much later than it happened is found by naming the later days as well, or by `--all`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from os import stat_result

WRITTEN_SLACK = timedelta(days=7)
BEGUN_SLACK = timedelta(days=2)
_EPOCH = date(1970, 1, 1)
_STAMP = re.compile(rb"(\d{8}T\d{6})Z")


@dataclass(frozen=True, slots=True)
class Scope:
    """The days from `start` to `end`, both included; None: without bound."""

    start: date | None = None
    end: date | None = None

    @property
    def first(self) -> date:
        """The first day, for comparing."""
        return self.start or date.min

    @property
    def last(self) -> date:
        """The last day, for comparing."""
        return self.end or date.max

    def as_json(self) -> dict[str, str | None]:
        """For requests and the manifest; `Scope.of` reads it."""
        return {
            "start": self.start.isoformat() if self.start else None,
            "end": self.end.isoformat() if self.end else None,
        }

    @classmethod
    def of(cls, found: Mapping[str, str | None]) -> Scope:
        """The inverse of `as_json`."""
        start, end = (date.fromisoformat(text) if (text := found[key]) else None for key in ("start", "end"))
        return cls(start, end)

    def can_hold(self, name: bytes, status: stat_result) -> bool:
        """Whether a file can hold events of these days."""
        return self.can_have_held(name, status.st_mtime)

    def can_have_held(self, name: bytes, written_at: float) -> bool:
        """Whether a file that was last written to then (Unix seconds) can hold events of these days, or could."""
        # Differences only: a file can say that it was written, or begun, at a time that a date less a week cannot be.
        if self.start is not None and written_at < (self.start - _EPOCH - WRITTEN_SLACK).total_seconds():
            return False
        begun = _begun(name)
        return self.end is None or begun is None or begun - self.end <= BEGUN_SLACK


def in_order(files: Mapping[bytes, stat_result]) -> list[bytes]:
    """Paths in the order in which a backfill reads them: of several lines with one event_id the first counts.

    By file name, which begins with when the writer began, then by the whole path: the same every time.
    """
    return sorted(files, key=lambda path: (path.rpartition(b"/")[2], path))


def _begun(path: bytes) -> date | None:
    found = _STAMP.search(path.rpartition(b"/")[2])
    try:
        return datetime.strptime(found[1].decode(), "%Y%m%dT%H%M%S").date() if found else None  # noqa: DTZ007 - a date
    except ValueError:
        return None
