"""The ledger: what happened to the files of the spool, what it cost, and whose state has to be written."""

from __future__ import annotations

from dataclasses import dataclass, field

from piper.spool.identity import Source, display_path
from piper.spool.turn import Skip

FRAGMENTS_BYTES_MAX = 32 * 1024 * 1024
"""For all cut last lines together; one beyond that is lost bytes and no `truncated_line` when its file goes."""
NOTES_MAX = 100


@dataclass(slots=True)
class Observed:
    """Counts since the last `drain_observed()`: what the metrics want to know."""

    discovered: int = 0
    bytes_read: int = 0
    lost_bytes: int = 0
    """Seen and gone unread; a hole that stayed NUL counts as well."""
    file_events: dict[str, int] = field(default_factory=dict)
    errors: dict[int, int] = field(default_factory=dict)
    """Looks at files and directories that failed, by errno: every one, where `io_error` is told once a change."""
    notes: list[tuple[str, str, str]] = field(default_factory=list)
    """(kind, path, detail), bounded; for the log."""

    def error(self, code: int) -> None:
        """A look failed with this errno."""
        self.errors[code] = self.errors.get(code, 0) + 1

    def event(self, kind: str, path: bytes = b"", detail: str = "") -> None:
        """`kind` is one of metrics.FILE_EVENTS."""
        self.file_events[kind] = self.file_events.get(kind, 0) + 1
        if len(self.notes) < NOTES_MAX:
            self.notes.append((kind, display_path(path), detail))


class Ledger:
    """What the next commit has to know besides lines."""

    def __init__(self) -> None:
        self.observed = Observed()
        self.touched: set[Source] = set()
        """Sources whose name, doubt or fragment changed since it was last written."""
        self.lost: list[Skip] = []
        """Cut last lines of files that are gone."""
        self._fragment_bytes = 0

    def recall(self, source: Source) -> None:
        """The manifest kept a fragment of this source."""
        self._fragment_bytes += len(source.fragment or b"")

    def keep_fragment(self, source: Source, fragment: bytes | None) -> None:
        """`fragment` is the cut last line now; a change is written with the next commit, so it survives a restart."""
        if fragment == source.fragment:
            return
        self._fragment_bytes += len(fragment or b"") - len(source.fragment or b"")
        if fragment is not None and self._fragment_bytes > FRAGMENTS_BYTES_MAX:
            self._fragment_bytes -= len(fragment)
            fragment = None
        source.fragment = fragment
        self.touched.add(source)

    def lose(self, source: Source, size: int) -> None:
        """The content of `source` is gone, and so is what stood between its offset and `size`."""
        fragment = source.fragment or b""
        if fragment:
            self.lost.append(Skip(source, source.offset, source.lines + 1, len(fragment), "truncated_line", fragment))
            self.keep_fragment(source, None)
        self.observed.lost_bytes += max(0, size - source.offset - len(fragment))
