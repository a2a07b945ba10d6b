"""Owner: which manifest a data root belongs to, for the lock lies where the manifest is.

Where the state is on a machine's own disk, a piper on another machine does not see that lock. So the data root names
its manifest in `owner.json`, and the manifest knows that name: one that finds another there refuses, and `piper
rebuild` makes a new manifest for somebody else's data root only when told to take it over, after which the old one
refuses.
"""

from __future__ import annotations

import json
import socket
import uuid
from dataclasses import asdict, dataclass

import duckdb

from piper.errors import DataRootError, PiperError
from piper.files import write_atomic
from piper.layout import Layout

_KEY = "warehouse"
"""In manifest_meta: the name that the data root has for this manifest."""


@dataclass(frozen=True, slots=True)
class Owner:
    """What a data root says of its manifest. `state_root`: relative to the data root where it lies inside."""

    warehouse: str
    host: str
    state_root: str

    def __str__(self) -> str:
        return f"the manifest in {self.state_root} on {self.host}"


def read_owner(layout: Layout) -> Owner | None:
    """Who owns the data root; None when it does not say, or nothing that can be understood."""
    try:
        found = json.loads(layout.owner_file.read_text("utf-8"))
        return Owner(str(found["warehouse"]), str(found["host"]), str(found["state_root"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return None


def check_owner(con: duckdb.DuckDBPyConnection, layout: Layout) -> None:
    """Refuse a data root that belongs to another manifest, or lost all that this one put there: DataRootError.

    To be asked before anything is made there: an empty directory may be a mount point without its mount.
    """
    mine, owner = _warehouse(con), read_owner(layout)
    if mine is None:
        return
    if owner is None and not layout.silver.is_dir():
        raise DataRootError(
            f"{layout.data_root} holds nothing of what the manifest in {layout.state} has put there",
            hint="Is the data root mounted? If it was lost, restore it from a backup and run `piper rebuild`.",
        )
    if owner is not None and owner.warehouse != mine:
        raise DataRootError(
            f"{layout.data_root} belongs to {owner}, not to the one in {layout.state}",
            hint="Two pipers must not write one data root. Stop this one for good and remove its state, or point"
            " paths.data_root elsewhere; `piper rebuild --take-over` makes the data root this one's.",
        )


def own(con: duckdb.DuckDBPyConnection, layout: Layout) -> None:
    """Name the manifest and write it into the data root, where that is not done. Raises OSError, duckdb.Error."""
    mine = _warehouse(con)
    if mine is None:
        mine = uuid.uuid4().hex
        con.execute("INSERT INTO manifest_meta VALUES (?, ?)", [_KEY, mine])
    owner = Owner(mine, socket.gethostname(), _state_root(layout))
    if read_owner(layout) != owner:
        write_atomic(layout.owner_file, json.dumps(asdict(owner), indent=2).encode() + b"\n")


def check_may_rebuild(layout: Layout) -> None:
    """Refuse to make a new manifest for a data root whose manifest lies elsewhere, out of sight: raises PiperError."""
    owner = read_owner(layout)
    if owner is None or (owner.state_root == _state_root(layout) and (_is_inside(layout) or _is_here(owner))):
        return
    raise PiperError(
        f"{layout.data_root} belongs to {owner}; a piper that runs with that one would not be seen here",
        hint="If it is the one that you mean, run piper there, or set paths.state_root. If it is gone for good, or"
        " will never write here again, say --take-over.",
    )


def _warehouse(con: duckdb.DuckDBPyConnection) -> str | None:
    if not con.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'manifest_meta'").fetchone():
        return None
    row = con.execute("SELECT value FROM manifest_meta WHERE key = ?", [_KEY]).fetchone()
    return str(row[0]) if row else None


def _is_inside(layout: Layout) -> bool:
    return layout.state.is_relative_to(layout.data_root)


def _is_here(owner: Owner) -> bool:
    return owner.host == socket.gethostname()


def _state_root(layout: Layout) -> str:
    return str(layout.state.relative_to(layout.data_root) if _is_inside(layout) else layout.state)
