"""Masking of history: sealed chunks whose rows have names, or masks, that they should not have are rewritten.

The work of one partition each, for `privacy.bring_history_along`, which owns the rewrite. Everything here reads
files by a connection that knows no manifest but has a database `work`, in any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import duckdb

from piper.events.privacy import MASK
from piper.events.words import Pattern, pattern_of
from piper.files import sql_literal
from piper.layout import Layout
from piper.silver.datasets import DATASETS, Dataset
from piper.silver.masking import masking
from piper.silver.rewrite import Partition, Rewrite
from piper.silver.seal import StagedChunk
from piper.silver.translation import (
    USER,
    Found,
    Search,
    Translation,
    json_columns,
    searched_parts,
    text_columns,
    together,
)
from piper.silver.user_names import UserNames, is_mask


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which words and whole users a rewrite looks for, and what takes their place."""

    patterns: list[Pattern]
    is_wanted_word: Callable[[str], bool]
    is_wanted_user: Callable[[str], bool]
    translation: Callable[[Found], Translation]
    notes_words: bool
    """Spellings that it finds are names of their own, and must be known before the rewrite is durable."""


def masks_wanted(names: UserNames, patterns: list[Pattern]) -> Wanted:
    """Names give way to masks. Whole users always do; `patterns` say which names are looked for in texts."""
    return Wanted(
        patterns, lambda _: True, lambda user: not is_mask(user), lambda found: masking(names, found), notes_words=True
    )


def names_wanted(names: UserNames) -> Wanted:
    """Masks give way to the names that are known."""
    by_mask = names.by_mask

    def translation(found: Found) -> Translation:
        return Translation({word: by_mask[word] for word in found.words}, {user: by_mask[user] for user in found.users})

    def is_known(text: str) -> bool:
        return text in by_mask

    return Wanted([pattern_of(MASK)], is_known, is_known, translation, notes_words=False)


def users_of(con: duckdb.DuckDBPyConnection, layout: Layout, partition: Partition) -> set[str]:
    """Every user and user directory in a partition of events that is no mask."""
    rows = _rows(layout, DATASETS["events"], partition.paths, "host_user, source_file")
    found = con.execute(
        f"SELECT host_user FROM ({rows}) UNION SELECT split_part(source_file, '/', 2) FROM ({rows})"
    ).fetchall()
    return {user for (user,) in found if user and not is_mask(user)}


def find(
    con: duckdb.DuckDBPyConnection, layout: Layout, partition: Partition, wanted: Wanted
) -> tuple[Found, list[str]]:
    """What is wanted in a partition, and which of its chunks (relative to silver/) have any of it."""
    dataset = DATASETS[partition.dataset]
    search = Search(wanted.patterns)
    texts, jsons = together(text_columns(dataset)), together(json_columns(dataset))
    user = next(name for name, _ in dataset.stored if name in USER)
    columns = [f"{texts} AS text", f"{jsons} AS json", f"{user} AS person", "filename"]
    columns += ["source_file"] if dataset.has_type_partition else []
    rows = _rows(layout, dataset, partition.paths, ", ".join(columns))
    queries = [
        f"SELECT filename, 'text', unnest({search.hits('text')}) FROM hits",
        f"SELECT filename, 'json', unnest({search.json_hits('json')}) FROM hits",
        f"SELECT filename, 'user', person FROM ({rows})",
    ]
    if dataset.has_type_partition:
        files = f"(SELECT DISTINCT filename, source_file FROM ({rows}))"
        queries += [
            f"SELECT filename, 'user', split_part(source_file, '/', 2) FROM {files}",
            f"SELECT filename, 'text', unnest({search.hits(searched_parts('source_file'))}) FROM {files}",
        ]
    found = con.execute(
        f"""WITH hits AS (SELECT filename, text, json FROM ({rows}) WHERE {search.is_hit("text", "json")})
        {" UNION ".join(queries)}"""
    ).fetchall()
    hits = [
        (name, where, what)
        for name, where, what in found
        if (wanted.is_wanted_user if where == "user" else wanted.is_wanted_word)(what)
    ]
    root = f"{layout.silver}/"
    return Found.of((where, what) for _, where, what in hits), sorted({name.removeprefix(root) for name, _, _ in hits})


def find_words(con: duckdb.DuckDBPyConnection, texts: str, wanted: Wanted) -> list[str]:
    """What is wanted in the column `text` of a query."""
    hits = Search(wanted.patterns).hits("text")
    rows = con.execute(f"SELECT DISTINCT unnest({hits}) FROM ({texts})").fetchall()
    return [word for (word,) in rows if wanted.is_wanted_word(word)]


def rewrite_chunks(
    con: duckdb.DuckDBPyConnection,
    rewrite: Rewrite,
    partition: Partition,
    found: Found,
    paths: list[str],
    wanted: Wanted,
) -> StagedChunk | None:
    """Stage the rows of `paths`, translated, as one new chunk."""
    dataset = DATASETS[partition.dataset]
    translation = wanted.translation(found)
    files = None
    if dataset.has_type_partition:
        files = _rows(rewrite.store.layout, dataset, paths, "source_file")
    translation.prepare(con, files)
    return rewrite.replace(con, partition, paths, select=lambda rows: translation.rows(dataset, rows))


def _rows(layout: Layout, dataset: Dataset, paths: Iterable[str], columns: str) -> str:
    files = ", ".join(f"'{sql_literal(layout.silver / path)}'" for path in paths)
    return dataset.chunk_rows_sql(f"[{files}]", columns)
