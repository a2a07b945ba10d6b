"""The catalog: `telemetry.duckdb`, a small file of views that everyone opens, read-only, and may keep open for weeks.

It is written by init, by an upgrade and by `piper materialize` only, whole and swapped in by rename. Its views name
absolute paths, so a container mounts the data root at the same path. The view SQL stays within what DuckDB 1.5.4 reads.

A silver view is tail ∪ chunks. The tail's segments are listed before the chunks are (keep that order): a chunk is
counted from the moment that a tail which forgets its rows, and says so in `sealed_through`, is there; one rename moves
them. In the same way a rewrite's chunks count (their rows have commit_seq -k) from the moment that a tail says
`rewritten_through` k, and `hidden` names the chunks whose place they take.

The pattern ends in `**` because that leaves out symbolic links, `*.parquet` would not: a chunk that is about to be
deleted is one (silver/hidden.py). What else may lie there (.nfs…, ….damaged) is left out by its name before it is
opened, which DuckDB does with the option `filename` only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import duckdb

from piper import __version__
from piper.failpoints import failpoint
from piper.files import FILE_MODE, fsync_path, make_directory, sql_literal, swap_in, write_atomic
from piper.layout import Layout
from piper.silver.datasets import DATASETS, EMPTY_CHUNK, UNKNOWN_PARTITION, Dataset
from piper.silver.segments import tail_ctes

EMPTY_DATE = "1970-01-01"


def silver_view_sql(dataset: Dataset, layout: Layout, *, with_internal: bool = False) -> str:
    """The SELECT of a silver view; `with_internal` adds the columns that piper keeps beside those of the contract."""
    columns = dataset.column_list if with_internal else ", ".join(f'"{name}"' for name, _ in dataset.columns)
    leaves = "event_date=*/event_type=*" if dataset.has_type_partition else "event_date=*"
    files = f"'{sql_literal(layout.silver / dataset.name)}/{leaves}/**'"
    chunks = dataset.chunk_rows_sql(files, columns, with_filename=True)
    return f"""
        WITH {tail_ctes(dataset, layout, columns)}
        FROM tail
        UNION ALL
        {chunks}
        WHERE commit_seq <= (SELECT max(sealed_through) FROM now)
            AND commit_seq >= (SELECT -max(rewritten_through) FROM now)
            AND filename LIKE '%.parquet'
            AND filename NOT IN (SELECT unnest(hidden) FROM now)"""


def gold_view_sql(model: str, columns: Iterable[str], layout: Layout) -> str:
    """The SELECT of a gold view."""
    names = ", ".join(f'"{name}"' for name in columns)
    return f"SELECT {names} FROM read_duckdb('{sql_literal(layout.gold)}', table_name = '{model}')"


def catalog_sql(layout: Layout, gold_columns: dict[str, list[str]]) -> list[str]:
    """All statements that make the catalog."""
    statements = [f"CREATE VIEW {dataset.view} AS {silver_view_sql(dataset, layout)}" for dataset in DATASETS.values()]
    statements += [
        f"CREATE VIEW {model} AS {gold_view_sql(model, columns, layout)}" for model, columns in gold_columns.items()
    ]
    return statements


def write_catalog(layout: Layout, gold_columns: dict[str, list[str]], *, force: bool = False) -> bool:
    """Write the catalog if it is missing, or was made for other views or another place; returns whether it did.

    The tail and gold snapshots and the empty chunks must exist, for views are checked as they are made. The file that
    is there is never opened as a database: a reader may hold a lock on it. One that was written to is written anew.
    """
    statements = catalog_sql(layout, gold_columns)
    made_for = hashlib.sha256("\n".join([__version__, *statements]).encode()).hexdigest()
    mark_file = layout.state / "catalog.sha256"
    if not force and mark_file.exists() and mark_file.read_text("ascii") == f"{made_for} {_sum(layout.catalog)}":
        return False
    make_directory(layout.warehouse)
    temporary = layout.catalog.with_name(f".{layout.catalog.name}.tmp")
    # Both: the log of a process that died here would be replayed into the new file.
    for leftover in (temporary, temporary.with_name(f"{temporary.name}.wal")):
        leftover.unlink(missing_ok=True)
    with duckdb.connect(str(temporary)) as con:
        for statement in statements:
            con.execute(statement)
        failpoint("catalog.filled")
        con.execute("CHECKPOINT")  # closing would do it too, and keep silent about a full disk
    temporary.chmod(FILE_MODE)
    fsync_path(temporary)
    swap_in(temporary, layout.catalog)
    failpoint("catalog.swapped")
    write_atomic(mark_file, f"{made_for} {_sum(layout.catalog)}".encode("ascii"))
    return True


def _sum(path: Path) -> str:
    """Of the content of a file; empty where there is none."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def write_empty_chunks(con: duckdb.DuckDBPyConnection, layout: Layout) -> None:
    """Put the chunk of no rows into every dataset that lacks it."""
    for dataset in DATASETS.values():
        directory = layout.silver / dataset.name / f"event_date={EMPTY_DATE}"
        columns = [(name, kind) for name, kind in dataset.stored if name != "event_date"]
        if dataset.has_type_partition:
            directory /= f"event_type={UNKNOWN_PARTITION}"
            columns = [(name, kind) for name, kind in columns if name != "event_type"]
            columns.append(("event_type_name", "VARCHAR"))
        _write_empty_chunk(con, directory / EMPTY_CHUNK, columns)


def _write_empty_chunk(con: duckdb.DuckDBPyConnection, path: Path, columns: list[tuple[str, str]]) -> None:
    if path.exists():
        return
    make_directory(path.parent)
    temporary = path.with_name(f".{path.name}.tmp")
    typed = ", ".join(f"NULL::{kind} AS {name}" for name, kind in columns)
    con.execute(f"COPY (SELECT {typed} LIMIT 0) TO '{sql_literal(temporary)}' (FORMAT parquet, COMPRESSION zstd)")
    temporary.chmod(FILE_MODE)
    fsync_path(temporary)
    swap_in(temporary, path)
