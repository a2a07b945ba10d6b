"""Staging: chunks between being written and being in their place in silver, and what a death in between leaves."""

from __future__ import annotations

import shutil
from pathlib import Path

from piper.failpoints import failpoint
from piper.files import fsync_path, make_directory
from piper.layout import Layout


def recover_staging(layout: Layout, sealed_through: int) -> None:
    """Finish or undo what died between writing chunks and revealing them.

    A directory of staging is named by its commit: up to `sealed_through` the commit is durable and has dropped these rows
    from the tail, so the chunks must appear; above it the rows are still in the tail or in the spool, so they must not.
    """
    if not layout.staging.is_dir():
        return
    for directory in sorted(layout.staging.iterdir()):
        if not directory.is_dir():
            directory.unlink()  # what a death left of testing whether this directory can be written
        elif directory.name.isdigit() and int(directory.name) <= sealed_through:
            reveal(layout, directory)
        else:
            shutil.rmtree(directory)


def reveal(layout: Layout, staged: Path) -> list[Path]:
    """Rename every staged chunk to its place in silver, durably. Safe to repeat: a renamed chunk is not there any more."""
    moved: list[Path] = []
    for source in sorted(staged.rglob("*.parquet")):
        target = layout.silver / source.relative_to(staged)
        make_directory(target.parent)
        source.rename(target)
        moved.append(target)
        failpoint("reveal.moved")
    for parent in {path.parent for path in moved}:
        fsync_path(parent)
    shutil.rmtree(staged)
    return moved
