"""Diagnosis: what an error of the manifest, or of the file system below it, means to an operator."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import duckdb

from piper.errors import DataRootError, ManifestDamagedError, ManifestNewerError, PiperError, WriterLockedError
from piper.layout import Layout
from piper.silver.holder import holder_of

T = TypeVar("T")
_DAMAGE = r"Corrupt database file|Could not read enough bytes|not a valid DuckDB|Failed to deserialize"
_NO_ACCESS = r"No space left|Permission denied|Read-only file system|Disk quota|Input/output error|Stale file handle"


def as_piper_error(action: Callable[[], T], manifest: Path) -> T:
    """Run `action`; errors about the manifest and its directories become PiperErrors that say what to do."""
    try:
        return action()
    except duckdb.Error as error:
        raise translate(error, manifest) from error
    except OSError as error:
        raise unusable(error) from error


def explain(error: duckdb.Error | OSError, layout: Layout) -> PiperError | None:
    """What an error of any step on an open store means to an operator; None when it says nothing about his machine."""
    if isinstance(error, OSError):
        return unusable(error)
    is_known = re.search(f"{_DAMAGE}|{_NO_ACCESS}", str(error)) or isinstance(error, duckdb.OutOfMemoryException)
    return translate(error, layout.manifest) if is_known else None


def unusable(error: OSError) -> DataRootError:
    """What an error of the file system under the data root means to an operator."""
    return DataRootError(
        f"{error.filename or 'the data root'} cannot be used: {error.strerror or error}",
        hint="Check free space, mount and permissions of that directory.",
    )


def translate(error: duckdb.Error, manifest: Path) -> PiperError:
    """What a DuckDB error about the manifest means to an operator."""
    text = str(error)
    if "lock" in text.lower() and ("Conflicting" in text or "Could not set lock" in text):
        holder = holder_of(manifest.parent / "writer.json", text)
        return WriterLockedError(
            f"{manifest} is held by {holder}",
            holder=holder,
            hint="Only one piper writes a data root. Ask it with `piper status`, or stop it first"
            " (systemctl stop piperd).",
            is_writer=holder.startswith("`"),
        )
    if "different configuration" in text:
        holder = "this very process"
        return WriterLockedError(f"{manifest} is held by {holder}", holder=holder, hint="Close its writer first.")
    if re.search(r"newer|storage version|version number", text):
        return ManifestNewerError(
            f"the ingest manifest {manifest} was written by a newer DuckDB: {_first_line(text)}",
            hint="Install the piper that wrote it, or a newer one.",
        )
    if reason := re.search(_NO_ACCESS, text):
        named = re.search(r'(?:file|directory) "([^"]+)"[^"]*$', text)
        return DataRootError(
            f"{named[1] if named else manifest} cannot be used: {reason[0]}",
            hint="Check free space, mount and permissions of that directory.",
        )
    if isinstance(error, duckdb.OutOfMemoryException):
        return DataRootError(
            f"the ingest manifest {manifest} cannot be opened: {_first_line(text)}",
            hint="Raise duckdb.memory_limit.",
        )
    return ManifestDamagedError(manifest, _first_line(text))


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "unknown error"
