"""Masking: names give way to masks in every new row, and the manifest knows whether history has followed.

A change of `privacy.mask_users` counts for new rows from the next start on. History follows by one rewrite
(`silver.mask_history`), which may find rows of both forms, and leaves alone what has the right one; so however often
the setting is changed, and wherever that died, one rewrite brings all rows into the form of the day.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import duckdb

from piper.silver.datasets import DATASETS, projection_sql
from piper.silver.store import Store
from piper.silver.translation import (
    JSON,
    Found,
    Search,
    Translation,
    searched_parts,
    text_columns,
    together,
)
from piper.silver.user_names import UserNames
from piper.spool.identity import Source, display_path

SEARCH_PAUSE = timedelta(days=1)
"""History is searched for names that came later this often at most: it has to be read whole."""
_FRESH_TEXTS = (*(name for name in text_columns(DATASETS["events"])), "event_duration_ms")
"""Columns of `parsed` that all text of all datasets comes from, beside payload and metrics."""


@dataclass(frozen=True, slots=True)
class MaskingState:
    """Where a warehouse stands."""

    is_on: bool
    """New rows have masks."""
    is_pending: bool
    """Older rows may have the other form; a rewrite is due."""
    searched_at: datetime
    """When history was last searched for names, naive UTC."""
    switched_seq: int | None
    """The commit of the rewrite whose traces (replaced files, space in gold) readers could still look into."""
    is_gold_clean: bool
    cleaned_from: datetime | None
    """Since when nothing new holds the old form."""

    @property
    def is_done(self) -> bool:
        """Whether nothing that readers mount holds the other form (but for names that came after a mention of them)."""
        return not self.is_pending and self.switched_seq is None


def read_state(con: duckdb.DuckDBPyConnection) -> MaskingState | None:
    """The state; None before a writer of this version has opened the manifest."""
    row = con.execute("FROM ingest_manifest.main.masking").fetchone()
    return MaskingState(*row) if row else None


class Masking:
    """The masking of one open data root. Belongs to the writer's thread, but for `names` (see there)."""

    def __init__(self, store: Store, *, is_on: bool, now: datetime) -> None:
        """Note in the manifest whether masks are wanted; what is there already becomes due for a rewrite."""
        self.is_on = is_on
        self._con = store.con
        self.names = UserNames(store.con, store.layout)
        self._translation = Translation({}, {})
        self._settle(now)

    @property
    def state(self) -> MaskingState:
        """Where the warehouse stands now."""
        found = read_state(self._con)
        assert found is not None
        return found

    def _settle(self, now: datetime) -> None:
        before = read_state(self._con)
        if before is not None and before.is_on == self.is_on:
            return
        # No state beside data: a manifest of before version 2, or a rebuilt one. Rows of either form may be there.
        is_pending = self._has_rows()
        self._con.execute("BEGIN")
        try:
            self._con.execute("DELETE FROM masking")
            self._con.execute("INSERT INTO masking VALUES (?, ?, ?, NULL, TRUE, NULL)", [self.is_on, is_pending, now])
            self._con.execute("COMMIT")
        except BaseException:
            self._con.execute("ROLLBACK")
            raise

    def _has_rows(self) -> bool:
        row = self._con.execute(
            "SELECT EXISTS (FROM chunks) OR EXISTS (FROM hidden_chunks) OR EXISTS (FROM events_tail)"
        ).fetchone()
        return bool(row and row[0])

    # ---- new rows ------------------------------------------------------------------------------------------------

    def note_sources(self, sources: Iterable[Source]) -> None:
        """Learn the user directories of spool files."""
        if self.is_on:
            self.note_users({display_path(source.path).split("/")[1] for source in sources})

    def look(self, sources: Iterable[Source]) -> None:
        """After a batch is parsed, which came from `sources`: find the names in it. `projection_sql` then has them."""
        if not self.is_on:
            return
        con = self._con
        users = {
            name for (name,) in con.execute("SELECT DISTINCT host_user FROM parsed WHERE verdict IS NULL").fetchall()
        }
        users |= {display_path(source.path).split("/")[1] for source in sources}
        self.note_users(users)
        self._translation = translation_of_parsed(
            con, self.names, users, lambda words: self.names.add(words, is_searched=True)
        )

    def projection_sql(self, dataset: str) -> str:
        """The SELECT over `fresh` of a dataset's stored columns, with masks if they are wanted."""
        return masked_projection_sql(dataset, self._translation) if self.is_on else projection_sql(dataset)

    def mask_texts(self, con: duckdb.DuckDBPyConnection, texts: list[str]) -> list[str]:
        """Some short texts that are no rows of silver (names of hosts), with masks if they are wanted."""
        if not self.is_on or not texts:
            return texts
        search = Search(self.names.patterns())
        rows = con.execute(
            f"SELECT DISTINCT unnest({search.hits('t')}) FROM (SELECT unnest(?) AS t)", [texts]
        ).fetchall()
        translated = Translation(self.names.masks({row[0] for row in rows}), {}).text("t")
        found = con.execute(f"SELECT list({translated} ORDER BY i) FROM (SELECT unnest(?) AS t, unnest(range(?)) AS i)",
                            [texts, len(texts)]).fetchone()  # fmt: skip
        return list(found[0]) if found else texts

    def note_users(self, users: Iterable[str]) -> None:
        """Have masks for these users."""
        new = self.names.unknown(users)
        if new:
            self.names.add(new, is_searched=not self._has_rows())


def translation_of_parsed(
    con: duckdb.DuckDBPyConnection, names: UserNames, users: set[str], add: Callable[[set[str]], object]
) -> Translation:
    """What puts masks into the accepted lines of `parsed`; `masked_projection_sql` then works on that connection.

    `users` are theirs. `add` is told of other cases of known names: whatever finds a name finds these too.
    """
    search = Search(names.patterns())
    con.execute(
        f"""CREATE OR REPLACE TABLE work.mentioned AS SELECT event_id, text, json
        FROM (SELECT event_id, {together(_FRESH_TEXTS)} AS text, {together(JSON)} AS json
            FROM parsed WHERE verdict IS NULL)
        WHERE {search.is_hit("text", "json")}"""
    )
    words = found_words(con, search, "work.mentioned", "SELECT DISTINCT source_file FROM parsed")
    con.execute("CREATE OR REPLACE TABLE work.mentions AS SELECT event_id FROM work.mentioned")
    con.execute("DROP TABLE work.mentioned")  # its texts need memory that the commit will want
    add(words)
    translation = masking(names, Found(frozenset(words), frozenset(users)))
    translation.prepare(con, "SELECT source_file FROM parsed WHERE verdict IS NULL")
    return translation


def masked_projection_sql(dataset: str, translation: Translation) -> str:
    """The SELECT over `fresh` of a dataset's stored columns, with masks."""
    mentions = "event_id IN (SELECT event_id FROM work.mentions)"
    return translation.rows(DATASETS[dataset], projection_sql(dataset), mentions)


def masking(names: UserNames, found: Found) -> Translation:
    """What puts masks in the place of the names that were found."""
    return Translation(names.masks(found.words), names.masks(found.users))


def found_words(con: duckdb.DuckDBPyConnection, search: Search, mentions: str, source_files: str) -> set[str]:
    """The names in a table of (text, json) and in `source_files`, as they are spelled there."""
    rows = con.execute(
        f"""SELECT DISTINCT 'text', unnest({search.hits("text")}) FROM {mentions}
        UNION SELECT DISTINCT 'json', unnest({search.json_hits("json")}) FROM {mentions}
        UNION SELECT DISTINCT 'text', unnest({search.hits(searched_parts("source_file"))}) FROM ({source_files})"""
    ).fetchall()
    return set(Found.of(rows).words)
