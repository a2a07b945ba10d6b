"""What waits on the spool, by file and by host: which files are furthest behind, and whose they are.

A host is the first directory below the spool, as its writers made it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

FILES_MAX = 10
"""Files that are named: enough to see who floods or hangs; the sums are of all."""


@dataclass(frozen=True, slots=True)
class Unread:
    """A file with bytes that are not committed; `seconds`: for how long."""

    source_file: str
    size_bytes: int
    seconds: float


def total(waiting: Iterable[Unread]) -> dict[str, Any]:
    """The sums, and the files with most bytes to go; for the `spool` part of a status."""
    waiting = list(waiting)
    worst = sorted(waiting, key=lambda file: (-file.size_bytes, file.source_file))[:FILES_MAX]
    return {
        "unread_bytes": sum(file.size_bytes for file in waiting),
        "unread_files": len(waiting),
        "oldest_unread_seconds": round(max((file.seconds for file in waiting), default=0.0), 1),
        "behind": [
            {"source_file": file.source_file, "unread_bytes": file.size_bytes, "seconds": round(file.seconds, 1)}
            for file in worst
        ],
    }


def by_host(waiting: Iterable[Unread]) -> dict[str, dict[str, Any]]:
    """The same sums for each host that has something unread."""
    hosts: dict[str, list[Unread]] = {}
    for file in waiting:
        hosts.setdefault(file.source_file.partition("/")[0], []).append(file)
    return {host: _without_files(total(files)) for host, files in hosts.items()}


def _without_files(sums: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sums.items() if name != "behind"}
