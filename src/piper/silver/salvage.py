"""Salvage: what is left of silver when the manifest is gone, found by reading the files themselves.

Sealed chunks are the truth. Beside them, rows that are in no chunk may lie in the published tail, in the damaged
manifest and in staging; an event is taken from there once, by event_id. An event of a registered type always has its
row in its domain dataset as well: one that is missing is taken from the same places, or made from the event once more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from piper.errors import DataRootError
from piper.events.registry import EVENT_TYPES
from piper.files import fsync_path, sql_literal
from piper.silver.belonging import database_sequences, last_rewrite
from piper.silver.datasets import DATASETS, EMPTY_CHUNK, Dataset, projection_sql
from piper.silver.segments import highest, rows_sql
from piper.silver.staging import METADATA_KEY, REWRITE

DAMAGED = ".damaged"
"""Suffix of a chunk that was set aside: no glob of a view matches it."""
SALVAGED = "salvaged-"
"""Prefix of a directory of staging whose rows a rebuild takes over."""
_MACHINE = r"No space left|Permission denied|Input/output error|Stale file|Too many open|Out of Memory|memory limit"
"""Errors that say nothing about a file's content: a rebuild that meets one stops, and sets nothing aside."""
Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""


@dataclass(frozen=True, slots=True)
class FoundChunk:
    """A readable chunk of silver; `path` is relative to silver/."""

    dataset: str
    event_date: date
    path: str
    rows: int
    size_bytes: int
    commit_seq: int
    """Highest of its rows and of its name; negative for a chunk of a rewrite."""
    through: int
    """A commit at or above all that its rows have been in."""
    replaces: tuple[str, ...] = ()
    """Chunks whose rows a rewrite moved here."""


@dataclass(slots=True)
class Found:
    """What silver holds: its sound chunks, and the paths (relative to silver/) of those that had to be set aside."""

    root: Path
    chunks: list[FoundChunk] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    replaced: list[FoundChunk] = field(default_factory=list)
    """Chunks that are still there, while their rows are in chunks of a rewrite."""

    def files(self, dataset: str) -> list[str]:
        """Absolute paths of a dataset's chunks."""
        return [str(self.root / chunk.path) for chunk in self.chunks if chunk.dataset == dataset]

    def hide(self, paths: Collection[str]) -> list[FoundChunk]:
        """Leave out chunks that the published tail says count no more, and that no sound chunk names as replaced: the
        one that took their place was dropped since, or is damaged. Returns them.
        """
        hidden = [chunk for chunk in self.chunks if chunk.path in paths]
        self.replaced += hidden
        self.chunks = [chunk for chunk in self.chunks if chunk.path not in paths]
        return hidden

    def set_aside(self, path: Path) -> None:
        """Take a chunk out of every reader's sight; its file stays."""
        path.rename(path.with_name(path.name + DAMAGED))
        fsync_path(path.parent)
        relative = str(path.relative_to(self.root))
        self.damaged.append(relative)
        self.chunks = [chunk for chunk in self.chunks if chunk.path != relative]


def find_chunks(con: duckdb.DuckDBPyConnection, silver: Path, on_progress: Progress) -> Found:
    """Read every chunk of silver whole; set aside those that cannot be read.

    Raises DataRootError when it is the machine that fails (no access, I/O error) and not the file.
    """
    found = Found(silver)
    paths = [(dataset, path) for dataset in DATASETS.values() for path in chunk_paths(silver / dataset.name)]
    for done, (dataset, path) in enumerate(paths, 1):
        chunk = _read_chunk(con, dataset, path, silver)
        if chunk is None:
            found.set_aside(path)
        else:
            found.chunks.append(chunk)
        on_progress("chunks", done, len(paths))
    gone = {path for chunk in found.chunks for path in chunk.replaces}
    found.replaced = [chunk for chunk in found.chunks if chunk.path in gone]
    found.chunks = [chunk for chunk in found.chunks if chunk.path not in gone]
    return found


def chunk_paths(directory: Path) -> Iterator[Path]:
    """Every chunk below `directory` but the empty one, sorted."""
    return (path for path in sorted(directory.rglob("*.parquet")) if path.name != EMPTY_CHUNK)


def _read_chunk(con: duckdb.DuckDBPyConnection, dataset: Dataset, path: Path, silver: Path) -> FoundChunk | None:
    """Decode every value of a chunk; None when that fails."""
    rows = dataset.chunk_rows_sql(f"['{sql_literal(path)}']")
    whole = f"""SELECT count(*), max(commit_seq), min(event_date), count(DISTINCT event_date),
        bit_xor(hash({dataset.column_list})) FROM ({rows})"""
    try:
        result = con.execute(whole).fetchone()
    except duckdb.Error as error:
        stop_if_machine(error, path)
        return None
    if not result or result[3] != 1 or result[1] is None:  # no rows, or a foreign file: nothing that piper wrote
        return None
    count, commit_seq, event_date = result[:3]
    relative = str(path.relative_to(silver))
    size = path.stat().st_size
    about = _rewrite_of(con, path)
    if about is not None:
        replaces = tuple(about["replaces"])
        return FoundChunk(dataset.name, event_date, relative, count, size, commit_seq, about["through"], replaces)
    seq = max(commit_seq, number_in(path.name))
    return FoundChunk(dataset.name, event_date, relative, count, size, seq, seq)


def _rewrite_of(con: duckdb.DuckDBPyConnection, path: Path) -> dict[str, Any] | None:
    """What a chunk says of the rewrite that it comes from."""
    row = con.execute(
        f"""SELECT decode(value) FROM parquet_kv_metadata('{sql_literal(path)}')
        WHERE decode(key) = '{METADATA_KEY}'"""
    ).fetchone()
    return dict(json.loads(row[0])) if row else None


def stop_if_machine(error: duckdb.Error, path: Path) -> None:
    """Raise DataRootError for an error that tells nothing about the content of `path`."""
    if isinstance(error, duckdb.OutOfMemoryException) or re.search(_MACHINE, str(error)):
        raise DataRootError(
            f"{path} cannot be read now: {str(error).splitlines()[0]}",
            hint="Nothing is lost: mend the mount, the permissions or duckdb.memory_limit, and rebuild again.",
        ) from error


def number_in(name: str) -> int:
    """The commit that a chunk or a directory of staging is named by; 0 when it is named otherwise."""
    found = re.match(rf"(?:{SALVAGED})?(\d{{12,18}})(?:-|$)", name)
    return int(found[1]) if found else 0


def rewrite_in(name: str) -> int:
    """The rewrite that a chunk is named by; 0 when it is named otherwise."""
    found = re.match(rf"{REWRITE}(\d{{12,18}})-", name)
    return int(found[1]) if found else 0


def hidden_by(segments: Sequence[Path], manifest: Path | None) -> set[str]:
    """The chunks (below silver/) that the published tail, or a manifest, hides; none of those that cannot be read."""
    found: set[str] = set()
    for path in (*segments, *([manifest] if manifest is not None and manifest.exists() else [])):
        try:
            with duckdb.connect() as probe:
                if path in segments:
                    rows = probe.execute(f"SELECT unnest(hidden) FROM '{sql_literal(path)}'").fetchall()
                else:
                    probe.execute(f"ATTACH '{sql_literal(path)}' AS old (READ_ONLY)")
                    rows = probe.execute("SELECT path FROM old.main.hidden_chunks").fetchall()
        except duckdb.Error as error:
            stop_if_machine(error, path)
            continue
        matches = (re.search(r"[^/]+/event_date=.*$", hidden) for (hidden,) in rows)
        found |= {match[0] for match in matches if match}
    return found


class Salvage:
    """Fills the tail tables, keys and chunks of an empty manifest.

    First all `add_…`, outside a transaction (a file that cannot be read would end it), then `fill` inside the caller's.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, found: Found) -> None:
        self._con, self._found = con, found
        self.last_seq = max((chunk.through for chunk in found.chunks + found.replaced), default=0)
        self.last_rewrite = max(
            (rewrite_in(path.name) for path in found.root.rglob(f"{REWRITE}*.parquet*")), default=0
        )  # damaged ones too: numbers are never used again
        for dataset in DATASETS.values():
            con.execute(
                f"CREATE OR REPLACE TEMP TABLE candidates_{dataset.name} AS FROM {dataset.tail_table} WHERE FALSE"
            )

    def add_database(self, path: Path) -> bool:
        """Take the tail rows of a manifest as candidates; False when it cannot be read whole.

        It is read by an instance of its own: an error in a damaged file must not stop the new manifest.
        """
        try:
            with duckdb.connect() as probe:
                probe.execute(f"ATTACH '{sql_literal(path)}' AS old (READ_ONLY)")
                tables = {
                    dataset.name: probe.execute(
                        f"SELECT {dataset.column_list} FROM old.main.{dataset.tail_table} WHERE commit_seq IS NOT NULL"
                    ).to_arrow_table()
                    for dataset in DATASETS.values()
                }
            seqs = database_sequences(path)
            rewrite = last_rewrite(path)
        except duckdb.Error as error:
            stop_if_machine(error, path)
            return False
        self.last_seq = max(self.last_seq, *seqs)
        self.last_rewrite = max(self.last_rewrite, rewrite)
        self._add_tables(tables)
        return True

    def add_segment(self, path: Path) -> bool:
        """Take the rows of a segment of the published tail as candidates, live or not; False when it is damaged."""
        try:
            with duckdb.connect() as probe:
                file = f"'{sql_literal(path)}'"
                tables = {name: probe.execute(rows_sql(file, d)).to_arrow_table() for name, d in DATASETS.items()}
            self.last_seq = max(self.last_seq, *highest(path, "published_through", "sealed_through"))
            self.last_rewrite = max(self.last_rewrite, *highest(path, "rewritten_through"))
        except duckdb.Error as error:
            stop_if_machine(error, path)
            return False
        self._add_tables(tables)
        return True

    def _add_tables(self, tables: dict[str, pa.Table]) -> None:
        for name, table in tables.items():
            self._con.register("candidate_rows", table)
            try:
                self._add_candidates(DATASETS[name], f"SELECT {DATASETS[name].column_list} FROM candidate_rows")
            finally:
                self._con.unregister("candidate_rows")

    def add_chunks(self, chunks: Iterable[FoundChunk]) -> None:
        """Take the rows of chunks that count no more as candidates."""
        for chunk in chunks:
            dataset, path = DATASETS[chunk.dataset], self._found.root / chunk.path
            self._add_candidates(dataset, dataset.chunk_rows_sql(f"['{sql_literal(path)}']"))

    def add_staging(self, staging: Path) -> None:
        """Take the rows of chunks that were prepared and not revealed, after `unfold`."""
        for directory in sorted(staging.glob(f"{SALVAGED}*")):
            self.last_seq = max(self.last_seq, number_in(directory.name))
            for dataset in DATASETS.values():
                for path in chunk_paths(directory / dataset.name):
                    if _read_chunk(self._con, dataset, path, staging) is not None:
                        self._add_candidates(dataset, dataset.chunk_rows_sql(f"['{sql_literal(path)}']"))

    def _add_candidates(self, dataset: Dataset, rows: str) -> None:
        self._con.execute(f"INSERT INTO candidates_{dataset.name} ({dataset.column_list}) {rows}")

    def fill(self, seq: int) -> tuple[int, int]:
        """Insert keys, salvaged rows (as of commit `seq`) and chunks; returns (events in chunks, events salvaged)."""
        con = self._con
        con.execute(f"INSERT INTO event_keys SELECT md5_number(event_id) FROM ({self._chunk_rows('events')})")
        sealed = _count(con, "SELECT count(*) FROM event_keys")
        events = DATASETS["events"]
        con.execute(
            f"""INSERT INTO events_tail SELECT {_stamped(events, seq)} FROM candidates_events
            WHERE md5_number(event_id) NOT IN (SELECT key FROM event_keys)
            QUALIFY row_number() OVER (PARTITION BY event_id) = 1"""
        )
        con.execute("INSERT INTO event_keys SELECT md5_number(event_id) FROM events_tail")
        salvaged = _count(con, "SELECT count(*) FROM events_tail")
        for dataset in DATASETS.values():
            if not dataset.has_type_partition:
                self._complete(dataset, seq)
        self._register_chunks()
        return sealed, salvaged

    def _chunk_rows(self, dataset: str, columns: str | None = None) -> str:
        """SELECT over the sound chunks of a dataset, also when there are none."""
        files = self._found.files(dataset)
        if not files:
            return f"SELECT {columns or DATASETS[dataset].column_list} FROM {DATASETS[dataset].tail_table} WHERE FALSE"
        quoted = ", ".join("'" + sql_literal(path) + "'" for path in files)
        return DATASETS[dataset].chunk_rows_sql(f"[{quoted}]", columns)

    def _complete(self, dataset: Dataset, seq: int) -> None:
        """Bring a domain dataset in step with the events: a row for each, and none without its event."""
        con = self._con
        self._set_orphans_aside(dataset)
        types = ", ".join(f"'{entry.name}'" for entry in EVENT_TYPES.values() if entry.dataset == dataset.name)
        events = f'"event_type" IN ({types}) AND is_known_type'
        con.execute(
            f"""CREATE OR REPLACE TEMP TABLE lacking AS
            FROM (({self._chunk_rows("events")}) UNION ALL SELECT {DATASETS["events"].column_list} FROM events_tail)
            WHERE {events} AND md5_number(event_id) NOT IN
                (SELECT md5_number(event_id) FROM ({self._chunk_rows(dataset.name)}))"""
        )
        con.execute(
            f"""INSERT INTO {dataset.tail_table} SELECT {_stamped(dataset, seq)} FROM candidates_{dataset.name}
            WHERE event_id IN (SELECT event_id FROM lacking)
            QUALIFY row_number() OVER (PARTITION BY event_id) = 1"""
        )
        con.execute(
            f"""CREATE OR REPLACE TEMP VIEW fresh AS
            SELECT * REPLACE ({seq}::BIGINT AS commit_seq), '{dataset.name}' AS dataset,
                NULL::VARCHAR AS event_duration_ms
            FROM lacking WHERE event_id NOT IN (SELECT event_id FROM {dataset.tail_table})"""
        )
        con.execute(f"INSERT INTO {dataset.tail_table} ({dataset.column_list}) {projection_sql(dataset.name)}")

    def _set_orphans_aside(self, dataset: Dataset) -> None:
        """A domain chunk with a row whose event is lost goes as a whole: the event comes again from raw with its row,
        and the other rows are made again from their events.
        """
        if not self._found.files(dataset.name):
            return
        keyed = self._chunk_rows(dataset.name, "md5_number(event_id) AS key, filename")
        rows = self._con.execute(
            f"SELECT DISTINCT filename FROM ({keyed}) WHERE key NOT IN (SELECT key FROM event_keys) ORDER BY filename"
        ).fetchall()
        for (name,) in rows:
            self._found.set_aside(Path(name))

    def _register_chunks(self) -> None:
        chunks = self._found.chunks
        table = pa.table(
            {
                "dataset": pa.array([c.dataset for c in chunks], pa.string()),
                "event_date": pa.array([c.event_date for c in chunks], pa.date32()),
                "path": pa.array([c.path for c in chunks], pa.string()),
                "row_count": pa.array([c.rows for c in chunks], pa.int64()),
                "size_bytes": pa.array([c.size_bytes for c in chunks], pa.int64()),
                "commit_seq": pa.array([c.commit_seq for c in chunks], pa.int64()),
            }
        )
        self._con.register("found_chunks", table)
        try:
            self._con.execute("INSERT INTO chunks BY NAME FROM found_chunks")
        finally:
            self._con.unregister("found_chunks")
        for chunk in self._found.replaced:
            self._con.execute(
                "INSERT INTO hidden_chunks VALUES (?, ?, 0, now() AT TIME ZONE 'UTC')", [chunk.dataset, chunk.path]
            )


def _stamped(dataset: Dataset, seq: int) -> str:
    return dataset.column_list.replace('"commit_seq"', f"{seq}::BIGINT")


def _count(con: duckdb.DuckDBPyConnection, query: str) -> int:
    row = con.execute(query).fetchone()
    return int(row[0]) if row else 0
