"""The warehouse: every file that readers open, and what of silver and gold they see.

The tail is published by the writer's thread; gold and the catalog by others as well, each with a connection of its own.
What somebody removes or writes to is noticed by its identity, and made anew (`Warehouse.mend`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import duckdb

from piper.gold.models import load_models
from piper.publish.catalog import write_catalog, write_empty_chunks
from piper.publish.snapshots import GENERATION_SECONDS, Identity, identity, publish_gold
from piper.publish.tail import TailPublisher
from piper.silver.store import Store


class Warehouse:
    """The warehouse of an open store. `on_published` is told the seconds that a publish of the tail took."""

    def __init__(
        self,
        store: Store,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        on_published: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self._store, self._layout, self._on_published = store, store.layout, on_published
        self._tail = TailPublisher(store.layout, monotonic)
        self.published_seq = -1
        """The commit that readers see; -1 before the first publish of this process."""
        self.gold_is_published = True
        """Whether readers see gold as it is."""
        self._published: dict[str, Identity | None] = {}
        """Gold and the catalog as they were swapped in."""
        self._swapping = threading.Lock()
        """Held while one of them is swapped in and noted."""

    def prepare(self, *, force_catalog: bool = False) -> None:
        """Make every file that the views name, then the catalog where it is missing or of another version."""
        write_empty_chunks(self._store.con, self._layout)
        self.publish()
        self.publish_gold(self._store.con)
        self.rewrite_catalog(force=force_catalog)

    def publish(self) -> bool:
        """Have readers see all that is committed if there is news; returns whether there was. In the writer's thread.

        Raises OSError, duckdb.Error, and readers see what they saw.
        """
        progress = self._store.progress()
        if progress.commit_seq == self.published_seq:
            return False
        started = time.perf_counter()
        self._store.check_ground()
        self._tail.publish(self._store.con, progress)
        self.published_seq = progress.commit_seq
        self._on_published(time.perf_counter() - started)
        return True

    def tidy(self, *, older_than: float = GENERATION_SECONDS) -> None:
        """Delete what readers saw before, once they have not needed it for so many seconds; miss what they need now."""
        self._tail.tidy(older_than=older_than)
        if not self._tail.is_whole():  # deleted by hand: the next publish makes it anew
            self.published_seq = -1

    def publish_gold(self, con: duckdb.DuckDBPyConnection) -> None:
        """Swap in gold as it is. Any thread, with a connection of its own and no transaction of gold under way."""
        with self._swapping:
            self._store.check_ground()
            publish_gold(con, self._layout)
            self._published["gold"] = identity(self._layout.gold)

    def rewrite_catalog(self, *, force: bool = True) -> bool:
        """Write the catalog's views; without `force` only where they are missing or of another version. Any thread."""
        columns = {model.name: [column.name for column in model.columns] for model in load_models()}
        with self._swapping:
            written = write_catalog(self._layout, columns, force=force)
            self._published["catalog"] = identity(self._layout.catalog)
        return written

    def mend(self) -> list[str]:
        """Make anew what readers open and somebody has removed or written to; returns the names.

        The tail and the catalog are there afterwards, gold with its next refresh. In the writer's thread; raises
        OSError, duckdb.Error.
        """
        files = {"gold": self._layout.gold, "catalog": self._layout.catalog}
        if not self._swapping.acquire(blocking=False):
            return []  # a file and what is noted of it may differ for a moment
        try:
            lost = [name for name, path in files.items() if identity(path) != self._published.get(name)]
            lost += [] if self._tail.is_whole() else ["tail"]
        finally:
            self._swapping.release()
        if not lost:
            return []
        self._store.check_ground()
        write_empty_chunks(self._store.con, self._layout)
        if "tail" in lost:
            self.published_seq = -1
            self.publish()
        if "gold" in lost:
            self.gold_is_published = False
        if "catalog" in lost and self._layout.gold.exists():  # its views are checked as they are made
            self.rewrite_catalog()
        return lost
