"""`piper sql`: a shell on the catalog that only reads. Statements end in `;`, commands begin with a dot (or as psql has
them), and an error is one line.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb
from rich.console import Console
from rich.text import Text

from piper.errors import PiperError
from piper.exits import is_interrupt
from piper.ops.reader import QueryError, one_line, statements
from piper.ops.results import Format, write_result

HISTORY_LINES = 2000
HELP = """\
.tables (\\dt)            the views, and temporary tables
.schema [NAME] (\\d)      columns of all views, or of one
.format table|csv|json   how results are written
.help (\\?)               this
.quit (\\q)               leave; Ctrl-D does it too
A statement ends in `;` and may have many lines. Ctrl-C drops it, or ends a query that runs."""

_PSQL = {"\\d": ".schema", "\\dt": ".tables", "\\?": ".help", "\\q": ".quit"}
_TABLES = "SELECT table_name AS name, lower(table_type) AS kind FROM information_schema.tables ORDER BY name"
_COLUMNS = "column_name AS column, lower(data_type) AS type FROM information_schema.columns"
_KEYWORDS = (
    "SELECT FROM WHERE GROUP ORDER LIMIT COUNT SUM AVG HAVING JOIN USING DISTINCT FILTER DESCRIBE SUMMARIZE EXPLAIN"
)


class Shell:
    """One session over a locked-down reader's connection."""

    def __init__(self, con: duckdb.DuckDBPyConnection, out: Console, form: Format = Format.TABLE) -> None:
        self._con, self._out, self._form = con, out, form
        self._is_over = False

    def talk(self) -> None:
        """With a person: prompts, line editing, history; an error is shown and the next line read."""
        self._out.print(Text("Views of the warehouse, read-only. .tables lists them, .help says more.", "dim"))
        with _line_editing(self._words()):
            buffer = ""
            while not self._is_over:
                try:
                    line = input("piper> " if not buffer else "  ...> ")
                    buffer = self._take(buffer, line)
                except EOFError:
                    self._out.print()
                    return
                except PiperError as error:
                    self._complain(error)
                    buffer = ""
                except KeyboardInterrupt:
                    self._out.print()
                    buffer = ""
                except (duckdb.Error, RuntimeError) as error:
                    if not is_interrupt(error):
                        raise
                    self._con.interrupt()  # its other threads go on otherwise, and the next query waits for them
                    self._out.print(Text("interrupted", "dim"))
                    buffer = ""

    def run(self, lines: Iterator[str]) -> None:
        """A script. The first error ends it: raises PiperError."""
        buffer = ""
        for line in lines:
            buffer = self._take(buffer, line.rstrip("\n"))
            if self._is_over:
                return
        if buffer.strip():
            self._execute(statements(self._con, buffer))

    # ---- lines ---------------------------------------------------------------------------------------------------

    def _take(self, buffer: str, line: str) -> str:
        """Take one line; returns what waits for the rest of its statement."""
        if not buffer and line.strip()[:1] in {".", "\\"}:
            self._command(line.split())
            return ""
        text = f"{buffer}{line}\n"
        if not text.strip():
            return ""
        if not text.rstrip().endswith(";"):
            return text
        try:
            found = statements(self._con, text)
        except QueryError as error:
            if "unterminated" in error.message:  # this semicolon is inside quotes
                return text
            raise
        self._execute(found)
        return ""

    def _execute(self, found: Sequence[str]) -> None:
        for statement in found:
            started = time.monotonic()
            try:
                self._con.execute(statement)
                rows = write_result(self._con, self._form, self._out)
            except duckdb.Error as error:
                if is_interrupt(error):
                    raise
                raise QueryError(one_line(error)) from error
            if self._out.is_terminal:
                self._out.print(
                    Text(f"{rows:,} row{'' if rows == 1 else 's'}, {time.monotonic() - started:.3f} s", "dim")
                )

    def _complain(self, error: PiperError) -> None:
        hint = f" ({error.hint})" if error.hint else ""
        self._out.print(Text(f"error: {error.message}{hint}", "red"), soft_wrap=True)

    # ---- commands ------------------------------------------------------------------------------------------------

    def _command(self, words: Sequence[str]) -> None:
        name, arguments = _PSQL.get(words[0], words[0]), words[1:]
        match name, arguments:
            case ".tables", []:
                self._execute([_TABLES])
            case ".schema", [] | [_]:
                self._schema(arguments[0].rstrip(";") if arguments else None)
            case ".format", [("table" | "csv" | "json") as form]:
                self._form = Format(form)
            case ".help", []:
                self._out.print(Text(HELP))
            case ((".quit" | ".exit"), []):
                self._is_over = True
            case _:
                raise QueryError(f"there is no command {' '.join(words)!r}", hint=".help lists them.")

    def _schema(self, name: str | None) -> None:
        if name is None:
            self._con.execute(f"SELECT table_name AS view, {_COLUMNS} ORDER BY table_name, ordinal_position")
        else:
            self._con.execute(f"SELECT {_COLUMNS} WHERE table_name = ? ORDER BY ordinal_position", [name])
        if not write_result(self._con, self._form, self._out):
            raise QueryError(f"there is no view {name!r}", hint=".tables lists them.")

    def _words(self) -> list[str]:
        """What the Tab key completes."""
        rows = self._con.execute("SELECT DISTINCT table_name, column_name FROM information_schema.columns").fetchall()
        commands = [line.split()[0] for line in HELP.splitlines() if line.startswith(".")]
        return sorted({name for row in rows for name in row} | set(_KEYWORDS.split()) | set(commands))


def history_file() -> Path:
    """Where the lines of earlier sessions are kept, as the XDG base directories have it."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state.startswith("/") else Path.home() / ".local" / "state") / "piper" / "sql_history"


@contextmanager
def _line_editing(words: Sequence[str]) -> Iterator[None]:
    """Keys, completion and history for `input`. A home that takes no file only means that nothing is remembered."""
    import readline

    path = history_file()

    def complete(text: str, number: int) -> str | None:
        found = [word for word in words if word.lower().startswith(text.lower())]
        return found[number] if number < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" \t\n,;()'\"=<>+-*/")
    readline.parse_and_bind("tab: complete")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with suppress(OSError):
            readline.write_history_file(path)
            path.chmod(0o600)
        sys.stdout.flush()
