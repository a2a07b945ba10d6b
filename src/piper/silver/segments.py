"""The published tail: Parquet segments in `warehouse/tail/`, immutable, of which the newest says which ones count.

One segment holds rows of all datasets, in the union of their columns, and for each dataset one control row: `live`, the
numbers of the segments whose rows are the tail, its own included, and how far the chunks of silver count beside them.
So one rename, of the newest segment into its place, switches everything.

A view looks at the directory three times, in this order: control rows, rows, names. A segment comes before every
control row that names it, and once it goes it does not come back; so those that the newest control row names and the
last look still finds were there for the rows. If one is missing (the query was held up for seconds between two looks,
or somebody deleted it), the query fails, for an answer without its rows would be wrong.

`publish/tail.py` writes them; here is how they are read, by the catalog's views and by piper itself.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from piper.files import sql_literal
from piper.layout import Layout
from piper.silver.datasets import DATASETS, Dataset

SUFFIX = ".parquet"
CONTROL = (
    ("segment", "BIGINT"),
    ("live", "BIGINT[]"),
    ("published_through", "BIGINT"),
    ("sealed_through", "BIGINT"),
    ("rewritten_through", "BIGINT"),
    ("hidden", "VARCHAR[]"),
)
"""Columns beside those of the datasets. A dataset's rows have `segment` only, control rows none of its columns."""
COLUMNS: dict[str, str] = {
    "dataset": "VARCHAR",
    **{name: kind for dataset in DATASETS.values() for name, kind in dataset.stored},
    **dict(CONTROL),
}
"""All columns of a segment, with their types. A name that several datasets use has one type."""
NOT_WHOLE = "the tail is not whole: segments are missing in warehouse/tail, piperd writes them anew within 15 s"


def tail_ctes(dataset: Dataset, layout: Layout, columns: str | None = None) -> str:
    """Common table expressions for a dataset: `now` (the control row that counts) and `tail` (`columns` of its rows).

    The pattern ends in `**` because that leaves out symbolic links, as which segments wait to be deleted. DuckDB lists
    files where a table is first named in FROM, from left to right, a CTE not before: hence the count in front.
    """
    files = f"'{sql_literal(layout.tail)}/**'"
    found = f"""(SELECT list(TRY_CAST(regexp_extract(file, '([0-9]+){SUFFIX}$', 1) AS BIGINT)) FROM glob({files}))"""
    which = f"WHERE dataset = '{dataset.name}' AND filename LIKE '%{SUFFIX}'"
    return f"""now AS MATERIALIZED (
            SELECT {", ".join(name for name, _ in CONTROL)}
            FROM read_parquet({files}, filename = true)
            {which} AND live IS NOT NULL
            ORDER BY segment DESC LIMIT 1
        ),
        tail AS (
            SELECT {columns or dataset.column_list}
            FROM (SELECT count(*) FROM now) CROSS JOIN read_parquet({files}, filename = true)
            {which} AND live IS NULL AND segment IN (
                SELECT unnest(CASE WHEN list_has_all({found}, live) THEN live ELSE error('{NOT_WHOLE}') END) FROM now
            )
        )"""


def segments_in(directory: Path) -> list[Path]:
    """The segments that readers list, oldest first."""
    if not directory.is_dir():
        return []
    found = (path for path in directory.iterdir() if path.suffix == SUFFIX and not path.is_symlink())
    return sorted(path for path in found if path.stem.isdigit())


def rows_sql(files: str, dataset: Dataset) -> str:
    """SELECT of a dataset's stored columns from segments, live or not; `files` is SQL text naming them."""
    return f"""SELECT {dataset.column_list} FROM read_parquet({files})
        WHERE dataset = '{dataset.name}' AND live IS NULL"""


def highest(path: Path, *columns: str) -> list[int]:
    """Highest values of control columns of one segment. Raises duckdb.Error where it cannot be read."""
    wanted = ", ".join(f"max({column})" for column in columns)
    with duckdb.connect() as probe:
        row = probe.execute(f"SELECT {wanted} FROM read_parquet('{sql_literal(path)}')").fetchone()
    return [int(value) for value in row or () if value is not None]
