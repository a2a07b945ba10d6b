"""The sources by name and by inode: what a file that turns up can be.

A name stands for one source at a time. A source whose name another file has taken is displaced: it may turn up under a
new name, so it stays findable by its inode until looks at the whole spool say that it is gone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from piper.spool.identity import Source, content_holds
from piper.spool.open import look_at, open_to_read


class SourceIndex:
    """All sources of one spool, those of vanished files included."""

    def __init__(self, root: bytes, sources: Iterable[Source]) -> None:
        """`sources`: oldest first, as the manifest keeps them; of two with one name the younger has it."""
        self._root = root
        self._by_path: dict[bytes, Source] = {}
        self.at = self._by_path.get
        """The source that has this name, or None."""
        self._by_inode: dict[int, Source | tuple[Source, ...]] = {}
        """Two devices can number alike, and a number is used again: each is a candidate, its content decides. Nearly
        all are alone, without a tuple around them: of 100,000 sources these would be 6 MB."""
        self.displaced: set[Source] = set()
        for source in sources:
            self._note_inode(source)
            holder = self._by_path.get(source.path)
            if holder is None or holder.vanished or not source.vanished:
                if holder is not None and not holder.vanished:
                    self.displaced.add(holder)
                self._by_path[source.path] = source

    def __len__(self) -> int:
        return len(self._by_path)

    def __iter__(self) -> Iterator[Source]:
        return iter(self._by_path.values())

    def add(self, source: Source) -> bool:
        """Take in a new source; returns whether it displaces another one."""
        self._note_inode(source)
        return self._take_name(source)

    def rename(self, source: Source, path: bytes) -> None:
        """`source` goes by another name now; one that had it is displaced."""
        if self._by_path.get(source.path) is source:
            del self._by_path[source.path]
        self.displaced.discard(source)
        source.path = path
        self._take_name(source)

    def forget(self, source: Source) -> None:
        """Drop all knowledge of a source."""
        if self._by_path.get(source.path) is source:
            del self._by_path[source.path]
        self.displaced.discard(source)
        others = tuple(other for other in self._numbered(source.inode) if other is not source)
        if others:
            self._by_inode[source.inode] = others
        else:
            del self._by_inode[source.inode]

    def moved_here(self, path: bytes, status: os.stat_result) -> Source | None:
        """The source that the file at `path` was under another name, if its content says so and it left that name."""
        for source in self._candidates(status):
            had_this_name = source.path == path and source not in self.displaced
            if not had_this_name and self._standing(source) is None and self._same_content(path, source):
                return source
        return None

    def is_second_name(self, path: bytes, status: os.stat_result) -> bool:
        """Whether `path` is a hard link to a file that is known under another name, where it still stands."""
        others = (self._standing(source) for source in self._candidates(status) if source.path != path)
        return any(there is not None and os.path.samestat(there, status) for there in others)

    def _note_inode(self, source: Source) -> None:
        others = self._numbered(source.inode)
        self._by_inode[source.inode] = (*others, source) if others else source

    def _numbered(self, inode: int) -> tuple[Source, ...]:
        found = self._by_inode.get(inode, ())
        return found if isinstance(found, tuple) else (found,)

    def _take_name(self, source: Source) -> bool:
        holder = self._by_path.get(source.path)
        self._by_path[source.path] = source
        if holder is None or holder.vanished:
            return False
        self.displaced.add(holder)
        return True

    def _candidates(self, status: os.stat_result) -> list[Source]:
        """Those with this inode number, those on this device first (a remount may number devices anew)."""
        return sorted(self._numbered(status.st_ino), key=lambda source: source.device != status.st_dev)

    def _standing(self, source: Source) -> os.stat_result | None:
        """The file with the inode number of `source` at the path of `source`, if there is one."""
        if source in self.displaced:
            return None
        try:
            there = look_at(self._root, source.path)
        except OSError:
            return None
        return there if there.st_ino == source.inode else None

    def _same_content(self, path: bytes, source: Source) -> bool:
        try:
            fd = open_to_read(self._root, path)
        except OSError:
            return False
        try:
            return content_holds(fd, source)
        except OSError:
            return False
        finally:
            os.close(fd)
