"""The names that are masked: in the manifest, and in `state/mask.names` for the day on which the manifest is lost.

Both are in `state/`, which readers never mount. Without them a mask could not be turned back into its name. A name is
durable in both before a row with its mask is committed. If we die in between, it is known and nothing has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import duckdb
import pyarrow as pa
import structlog

from piper.events.privacy import MASK, load_key, mask
from piper.events.words import SEARCHED_NAMES_MAX, Pattern, is_searched, patterns
from piper.failpoints import failpoint
from piper.files import write_atomic
from piper.layout import Layout

FILE = "mask.names"
_MASK = re.compile(MASK)
_log = structlog.get_logger(component="privacy")


class UserNames:
    """Every name that has a mask. Reading is for any thread, `add` for the writer's thread."""

    def __init__(self, con: duckdb.DuckDBPyConnection, layout: Layout) -> None:
        """Load them, and bring table and file in step. `con`: the store's own connection."""
        self._con, self._path = con, layout.state / FILE
        self._patterns: tuple[dict[str, str], list[Pattern]] = ({}, [])
        """And the names that they find: another thread may have asked for them just before a name was added."""
        self._key = load_key(layout.state)
        self.by_mask: dict[str, str] = dict(con.execute("SELECT mask, name FROM user_names").fetchall())
        kept = _read(self._path)
        self._insert({masked: name for masked, name in kept.items() if masked not in self.by_mask}, is_searched=False)
        if kept.keys() != self.by_mask.keys():
            _write(self._path, self.by_mask)

    def mask(self, name: str) -> str:
        """What stands for a name."""
        return mask(name, self._key)

    def masks(self, names: Iterable[str]) -> dict[str, str]:
        """Name to mask, for those that are no masks themselves."""
        return {name: self.mask(name) for name in names if not is_mask(name)}

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Those that have no mask yet."""
        return sorted({name for name, masked in self.masks(names).items() if masked not in self.by_mask})

    def add(self, names: Iterable[str], *, is_searched: bool) -> bool:
        """Make new ones durable; returns whether there were any. `is_searched`: history holds none of them."""
        new = {self.mask(name): name for name in self.unknown(names)}
        if not new:
            return False
        _write(self._path, self.by_mask | new)
        failpoint("masking.noted")
        self._insert(new, is_searched=is_searched)
        return True

    def patterns(self) -> list[Pattern]:
        """What finds every name, in any case."""
        names = self.by_mask
        known, found = self._patterns
        if known is not names:
            found = name_patterns(names.values())
            self._patterns = names, found
        return found

    def _insert(self, new: dict[str, str], *, is_searched: bool) -> None:
        if not new:
            return
        table = pa.table({"name": pa.array(new.values(), pa.string()), "mask": pa.array(new.keys(), pa.string())})
        self._con.register("new_names", table)
        try:
            self._con.execute("INSERT INTO user_names SELECT name, mask, ? FROM new_names", [is_searched])
        finally:
            self._con.unregister("new_names")
        self.by_mask = self.by_mask | new  # a new one: other threads go through the old one


def is_mask(text: str) -> bool:
    """Whether a text looks like a mask."""
    return _MASK.fullmatch(text) is not None


def name_patterns(names: Iterable[str]) -> list[Pattern]:
    """What finds these names in any case; says so when there are more than can be looked for."""
    searched = list(dict.fromkeys(name.lower() for name in names if is_searched(name)))
    if len(searched) > SEARCHED_NAMES_MAX:  # the oldest ones: nobody can displace a name by inventing others
        _log.warning("too_many_user_names", names=len(searched), searched=SEARCHED_NAMES_MAX)
    return patterns(searched[:SEARCHED_NAMES_MAX], any_case=True)


def _read(path: Path) -> dict[str, str]:
    """Mask to name, as `_write` left it."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    return {str(entry["mask"]): str(entry["name"]) for entry in map(json.loads, data.splitlines())}


def _write(path: Path, by_mask: dict[str, str]) -> None:
    lines = [json.dumps({"mask": masked, "name": name}).encode() + b"\n" for masked, name in by_mask.items()]
    write_atomic(path, b"".join(lines), mode=0o600)
