"""The spool by host directory: how many files piper knows there, and how much of them is unread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from piper.spool.identity import Source, display_path
from piper.spool.tail import Tailer

RECOUNT_SECONDS = 60.0
"""Counting files looks at every source, so it is not done more often."""


class SpoolHost(NamedTuple):
    """One host directory: the first part of `source_file` of its events."""

    host: str
    files: int
    """Files known below it, less those that vanished. A directory whose last file is forgotten is forgotten too."""
    bytes_behind: int
    """Bytes that could be read and are not committed, as far as they are known."""


class SpoolHosts:
    """Counts a tailer's sources by host. Like the tailer it belongs to the writer's thread."""

    def __init__(self, tailer: Tailer, *, monotonic: Callable[[], float]) -> None:
        self._tailer, self._monotonic = tailer, monotonic
        self._files: Counter[str] = Counter()
        self._counted_at: float | None = None
        self._was_scanned = False

    def count(self) -> list[SpoolHost]:
        """Every known host directory, sorted: unread bytes as of now, files as of RECOUNT_SECONDS ago at most.

        Before the first scan it is what the manifest keeps, unread bytes included.
        """
        now = self._monotonic()
        tailer = self._tailer
        is_new_scan = tailer.scanned and not self._was_scanned
        if self._counted_at is None or now - self._counted_at >= RECOUNT_SECONDS or is_new_scan:
            self._files = _files_by_host(tailer)
            self._counted_at, self._was_scanned = now, tailer.scanned
        behind: Counter[str] = Counter()
        for source in (source for source, _ in tailer.waiting()) if tailer.scanned else tailer.sources:
            behind[_host_of(source)] += _unread_bytes(source)
        return [SpoolHost(host, self._files[host], behind[host]) for host in sorted(self._files.keys() | behind.keys())]


def _files_by_host(tailer: Tailer) -> Counter[str]:
    files: Counter[str] = Counter()
    for source in tailer.sources:
        files[_host_of(source)] += not source.vanished
    return files


def _host_of(source: Source) -> str:
    return display_path(source.path.partition(b"/")[0])


def _unread_bytes(source: Source) -> int:
    """A cut last line that the manifest kept is no backlog; after a look the source says so itself."""
    if source.vanished:
        return 0
    return max(0, min(source.unread_bytes, source.size - source.offset - len(source.fragment or b"")))
