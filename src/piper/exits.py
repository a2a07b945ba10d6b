"""How a command line ends: the one place where an error becomes a message and an exit code, never a traceback.

The message goes to stderr as `piper: …` with a hint below it; under `--json` it is also an object on stdout, where
nothing else is. Only a bug passes through, with its traceback, for the report.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import typer

from piper.errors import EX_FAILURE, EX_OK, EX_USAGE, PiperError
from piper.ops.terminal import printable

EX_INTERRUPTED = 130
"""128 + SIGINT, as shells show it."""


class UsageError(PiperError):
    """The command line asks for something that does not exist or does not fit together."""

    exit_code = EX_USAGE


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout; paths and times as text."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def run(application: typer.Typer, name: str, arguments: Sequence[str]) -> int:
    """Run a command line and give its exit code."""
    as_json = "--json" in arguments
    try:
        result = typer.main.get_command(application).main(args=list(arguments), prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else EX_OK
    except (KeyboardInterrupt, typer.Abort):
        return EX_INTERRUPTED
    except BrokenPipeError:
        return _nobody_reads()
    except Exception as error:
        if is_interrupt(error):
            return EX_INTERRUPTED
        shown = _as_piper_error(error)
        if shown is None:
            raise
        try:
            return _fail(shown, as_json=as_json)
        except BrokenPipeError:
            return _nobody_reads()


def _nobody_reads() -> int:
    """`piper status | head`: the exit must not try to flush what nobody takes."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EX_FAILURE


def _fail(error: PiperError, *, as_json: bool) -> int:
    sys.stderr.write(f"piper: {printable(str(error))}\n")
    if as_json:
        print_json({"error": {"message": error.message, "hint": error.hint}})
        sys.stdout.flush()
    return error.exit_code


_PARSER_ERROR: type[Exception] = typer.BadParameter.__mro__[2]
"""ClickException: Typer brings its own copy of Click in some versions, so it cannot be imported by name."""


def _as_piper_error(error: Exception) -> PiperError | None:
    """What to show for an error that is no bug of ours; None for one that is."""
    if isinstance(error, PiperError):
        return error
    if isinstance(error, _PARSER_ERROR):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "piper"
        text = error.format_message() if hasattr(error, "format_message") else str(error)
        return UsageError(text[:1].lower() + text[1:].rstrip("."), hint=f"`{command} --help` shows what it takes.")
    if isinstance(error, OSError):
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return PiperError(
            f"{where}{error.strerror or error}",
            hint="Check mount, permissions and free space; `piper doctor` looks at all.",
        )
    duckdb = sys.modules.get("duckdb")
    if duckdb is not None and isinstance(error, duckdb.Error):
        return _database_error(error, out_of_memory=isinstance(error, duckdb.OutOfMemoryException))
    return None


def _database_error(error: Exception, *, out_of_memory: bool) -> PiperError:
    text = str(error).strip().splitlines()[0]
    if out_of_memory:
        hint = "Raise duckdb.memory_limit (PIPER_DUCKDB__MEMORY_LIMIT), or lower ingest.batch_events_max."
    else:
        hint = "What was committed before is safe; run the command again. `piper doctor` looks at disks and views."
    return PiperError(f"the database refused: {text}", hint=hint)


def is_interrupt(error: Exception) -> bool:
    """DuckDB turns Ctrl-C during a query into errors of its own."""
    duckdb = sys.modules.get("duckdb")
    if duckdb is not None and isinstance(error, duckdb.InterruptException):
        return True
    return type(error) is RuntimeError and str(error) == "Query interrupted"
