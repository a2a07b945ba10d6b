"""A reader of the warehouse for commands: the catalog as everyone opens it, and locked down to the warehouse.

The connection can open no file outside warehouse/ and silver/, load no extension and change no setting, and it spills
to a directory of its own, under the memory limit that piperd has. DuckDB's lock-down does not tell reading from
writing: under it `COPY … TO` and `ATTACH` still reach every file in those directories. So text of a person goes through
`statements`, which lets only reading statements (and temporary tables) pass.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

from piper.errors import EX_USAGE, PiperError
from piper.files import sql_literal
from piper.layout import Layout
from piper.settings import Settings

_READING = {
    duckdb.StatementType.SELECT,
    duckdb.StatementType.SET,  # variables; settings are locked
    # The catalog is read-only, so these can only touch temporary tables and views.
    duckdb.StatementType.CREATE,
    duckdb.StatementType.INSERT,
    duckdb.StatementType.UPDATE,
    duckdb.StatementType.DELETE,
    duckdb.StatementType.DROP,
}
_EXPLAIN = re.compile(r"\s*EXPLAIN\s+(ANALYZE\b)?\s*(\([^)]*\))?", re.IGNORECASE)


class NoWarehouseError(PiperError):
    """There is no catalog to read at the data root."""


class QueryError(PiperError):
    """DuckDB refused a query; the message is its own, on one line."""


class NotReadingError(PiperError):
    """A statement that is not for readers, or not one statement."""

    exit_code = EX_USAGE


@contextmanager
def open_reader(settings: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    """A locked-down connection to the catalog. Raises NoWarehouseError, and PiperError when it cannot be opened."""
    layout = Layout.of(settings)
    if not layout.catalog.exists():
        raise NoWarehouseError(f"there is no warehouse at {layout.data_root}", hint="Run `piper init` to make one.")
    with tempfile.TemporaryDirectory(prefix="piper-reader-") as spill:
        con = _connect(settings, layout, spill)
        try:
            _lock(con, layout)
            yield con
        finally:
            # After Ctrl-C DuckDB's other threads go on with the query until they are told, and closing waits for them.
            con.interrupt()
            con.close()


def _connect(settings: Settings, layout: Layout, spill: str) -> duckdb.DuckDBPyConnection:
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": settings.duckdb.memory_limit,
        "temp_directory": spill,
        "enable_external_file_cache": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "python_enable_replacements": False,
    }
    try:
        return duckdb.connect(str(layout.catalog), read_only=True, config=config)
    except duckdb.Error as error:
        raise PiperError(
            f"{layout.catalog} cannot be opened: {one_line(error)}",
            hint="Readers need read access to warehouse/ and silver/. `piper materialize` writes the catalog anew.",
        ) from error


def _lock(con: duckdb.DuckDBPyConnection, layout: Layout) -> None:
    readable = ", ".join(f"'{sql_literal(path)}/'" for path in (layout.warehouse, layout.silver))
    con.execute("SET TimeZone = 'UTC'")
    con.execute(f"SET allowed_directories = [{readable}]")
    con.execute("SET enable_external_access = false")
    con.execute("SET lock_configuration = true")


def one_statement(con: duckdb.DuckDBPyConnection, text: str) -> str:
    """`text` if it is exactly one statement that only reads. Raises QueryError (syntax) and NotReadingError."""
    found = statements(con, text)
    if len(found) != 1:
        count = f"{len(found)} statements" if found else "nothing"
        raise NotReadingError(f"one statement is needed, this is {count}", hint="Ask one after the other.")
    return found[0]


def statements(con: duckdb.DuckDBPyConnection, text: str) -> list[str]:
    """The statements in `text`, once all of them are known to read only. Raises as `one_statement` does."""
    parsed = _parse(con, text)
    for statement in parsed:
        inner = [statement.type]
        if statement.type == duckdb.StatementType.EXPLAIN:  # with ANALYZE it runs what it explains
            inner = [inside.type for inside in _parse(con, _EXPLAIN.sub("", statement.query, count=1))]
        for kind in inner:
            if kind not in _READING:
                raise NotReadingError(
                    f"{kind.name} is not for readers",
                    hint="SELECT, FROM, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN and temporary tables are.",
                )
    if any(not statement.query for statement in parsed):  # a PIVOT becomes several, none with a text of its own
        return [text]
    return [statement.query for statement in parsed]


def _parse(con: duckdb.DuckDBPyConnection, text: str) -> list[duckdb.Statement]:
    try:
        return con.extract_statements(text)
    except duckdb.Error as error:
        raise QueryError(one_line(error)) from error


def one_line(error: BaseException) -> str:
    """A DuckDB error without the excerpt of the query that it draws below."""
    text = re.split(r"\n+LINE \d+:", str(error).strip())[0]
    return re.sub(r"\s+", " ", text)
