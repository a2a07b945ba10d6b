"""Rest: what a scan need not look at, so that it costs what is in motion and not what is there.

- A directory whose times are those that it had when it was last listed holds the same names and is not listed.
- Of a file that was silent for REST_SECONDS the name and the inode number are enough, without its size.

Neither is trusted for ever: one scan in REST_SCANS lists each directory and looks at each file all the same, and the
first scan and the one after a failure look at everything. So what grows after a long silence is found by one of the
next REST_SCANS scans, and what comes, goes or takes another name by the next one, on any file system that keeps the
times of its directories. Once a listing has shown that it does not, every scan lists every directory. Most of what a
scan costs is `stat` and listing (bench/choices.py, rest).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from piper.spool.discover import Everything
from piper.spool.index import SourceIndex

REST_SECONDS = 86_400.0
REST_SCANS = 10
SETTLED_SECONDS = 600.0
"""A directory that changed within this time may change again within one tick of its file system's clock."""


@dataclass(frozen=True, slots=True)
class _Listing:
    """What a directory held when it was last listed, and by what it is told that it still does."""

    times: tuple[int, int, int, int]
    """Device, inode, mtime and ctime: a program can set back the mtime of a directory, but not its ctime."""
    paths: list[bytes]


class Rest(Everything):
    """Which files of `sources` a scan must look at. `utc` in seconds; `rest_seconds` may be infinite: nothing rests."""

    def __init__(self, sources: SourceIndex, utc: Callable[[], float], rest_seconds: float) -> None:
        self._sources, self._utc, self._rest_seconds = sources, utc, rest_seconds
        self.scan = 0
        """The number of the present scan: sources that are no news are stamped with it."""
        self._resting_since_ns = 0
        """What was written before is at rest for the present scan; 0: nothing is."""
        self._settled_since_ns = 0
        self._held: dict[bytes, _Listing] = {}
        self._listings: dict[bytes, _Listing] = {}
        """Those of the present scan."""
        self._keeps_times = True
        """Whether this file system changes the times of a directory with its names, as far as has been seen."""

    def begin(self) -> None:
        """A scan begins."""
        self.scan += 1
        self._listings = {}
        self._settled_since_ns = int((self._utc() - SETTLED_SECONDS) * 1e9)

    def finish(self, *, whole: bool) -> None:
        """It has ended; `whole`: without an error, so it proves what is there."""
        self._resting_since_ns = int(max(0.0, self._utc() - self._rest_seconds) * 1e9) if whole else 0
        self._held = self._listings if self._resting_since_ns and self._keeps_times else {}

    def known_in(self, directory: bytes, status: os.stat_result) -> tuple[list[bytes], int] | None:
        """Of a directory that holds what it held: paths of the files to look at, and how many others there are."""
        held = self._held.get(directory)
        if held is None or held.times != _times(status) or self._has_its_turn(status.st_ino):
            return None
        self._listings[directory] = held
        awake = self._awake(held.paths)
        return awake, len(held.paths) - len(awake)

    def listed(self, directory: bytes, status: os.stat_result, paths: list[bytes]) -> None:
        """The directory had this status all the while, and holds these files and nothing else that a scan takes in."""
        times, held = _times(status), self._held.get(directory)
        if held is not None and held.times == times and set(held.paths) != set(paths):
            self._keeps_times = False
        known = [source.path for path in paths if (source := self._sources.at(path)) is not None]
        if len(known) == len(paths) and status.st_mtime_ns < self._settled_since_ns:
            self._listings[directory] = _Listing(times, known)  # the paths of the sources: they are kept once

    def is_at_rest(self, path: bytes, inode: int) -> bool:
        """Whether the file of this name and number is one that nobody has written to for long."""
        source = self._sources.at(path)
        return source is not None and source.inode == inode and not self._awake([path])

    def is_news(self, path: bytes, status: os.stat_result) -> bool:
        """Whether the file is not a source just as it was last seen. Stamps it if it is."""
        source = self._sources.at(path)
        if source is None or source.vanished or source.suspicion is not None:
            return True
        if (status.st_ino, status.st_size, status.st_mtime_ns) != (source.inode, source.size, source.mtime_ns):
            return True
        source.seen_in = self.scan
        return False

    def _awake(self, paths: list[bytes]) -> list[bytes]:
        """Those files that the present scan must look at; the others are stamped. One pass: they may be 100,000."""
        at, scan, resting_since_ns = self._sources.at, self.scan, self._resting_since_ns
        awake = []
        for path in paths:
            source = at(path)
            if (
                source is None
                or not 0 < source.mtime_ns < resting_since_ns
                or (source.inode + scan) % REST_SCANS == 0
                or source.suspicion is not None
                or source.vanished
            ):
                awake.append(path)
            else:
                source.seen_in = scan
        return awake

    def _has_its_turn(self, inode: int) -> bool:
        return (inode + self.scan) % REST_SCANS == 0


def _times(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
