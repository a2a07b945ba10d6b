"""Staging: chunks between being written and being in their place in silver, and what a death in between leaves."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote, unquote

from piper.failpoints import failpoint
from piper.files import fsync_path, make_directory
from piper.layout import Layout

SEAL, REWRITE = "", "r"
"""What the name of a directory in staging begins with, before its number."""


METADATA_KEY = "piper_rewrite"
"""Key in the Parquet metadata of a rewrite's chunk: JSON of `number`, `through` (a commit at or above all its rows) and
`replaces` (paths below silver/)."""


def numbered(kind: str, number: int) -> str:
    """Name of the staging directory of a seal (by its commit) or a rewrite; also what its chunks' names begin with."""
    return f"{kind}{number:012d}"


def staged_name(path: str) -> str:
    """Flat name of a staged chunk whose place below silver/ is `path`."""
    return quote(path, safe="=")


def place_of(name: str) -> str:
    """The inverse of `staged_name`."""
    return unquote(name)


def unfold(staging: Path, prefix: str) -> None:
    """For a rebuild: move what is staged to `<prefix><commit>/<place>`, which opening removes and never reveals.

    Safe to repeat after a death in between. What died while it was copied (`<commit>.copy`) was never durable: it
    stays, and opening removes it. What a rewrite staged is removed: the chunks that it was to replace are still there.
    """
    for directory in sorted(staging.iterdir()) if staging.is_dir() else []:
        if re.fullmatch(rf"{REWRITE}[0-9]+", directory.name):
            shutil.rmtree(directory)
        if not directory.name.isdigit():
            continue
        for source in sorted(directory.glob("*.parquet")):
            target = staging / f"{prefix}{directory.name}" / place_of(source.name)
            make_directory(target.parent)
            source.rename(target)
            fsync_path(target.parent)
        shutil.rmtree(directory)


def reveal(layout: Layout, staged: Path, progress: Callable[[], None] = lambda: None) -> list[Path]:
    """Rename every staged chunk to its place in silver, durably. Safe to repeat: what was renamed is gone from here."""
    moved: list[Path] = []
    for source in sorted(staged.glob("*.parquet")):
        target = layout.silver / place_of(source.name)
        make_directory(target.parent)
        source.rename(target)
        moved.append(target)
        progress()
        failpoint("reveal.moved")
    for parent in {path.parent for path in moved}:
        progress()
        fsync_path(parent)
    failpoint("reveal.synced")
    shutil.rmtree(staged)
    return moved


def recover_staging(layout: Layout, durable_through: Mapping[str, int]) -> None:
    """Finish or undo what died between writing chunks and revealing them.

    A directory of staging is named by its kind and number. Up to the number in `durable_through` the manifest has
    replaced the rows elsewhere (tail rows by a seal, older chunks by a rewrite), so these chunks must appear; above it
    the rows are still where they were, so they must not.
    """
    if not layout.staging.is_dir():
        return
    for directory in sorted(layout.staging.iterdir()):
        found = re.fullmatch(rf"({SEAL}|{REWRITE})([0-9]+)", directory.name)
        if not directory.is_dir():
            directory.unlink()  # what a death left of testing whether this directory can be written
        elif found and int(found[2]) <= durable_through[found[1]]:
            reveal(layout, directory)
        else:
            shutil.rmtree(directory)
