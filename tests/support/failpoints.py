"""Every failpoint of the source, found by reading it."""

from __future__ import annotations

import re
from pathlib import Path

import piper

_CALL = re.compile(r"\bfailpoint\(f?\"([^\"]+)\"\)")
SNAPSHOTS = ("gold",)
"""What `publish.{path.stem}.…` stands for."""


def failpoints_in_source() -> list[str]:
    """Names, sorted; one that is spelled with what is published stands for each of it."""
    names: set[str] = set()
    for file in Path(piper.__file__).parent.rglob("*.py"):
        for name in _CALL.findall(file.read_text("utf-8")):
            if "{path.stem}" in name:
                names.update(name.replace("{path.stem}", stem) for stem in SNAPSHOTS)
            else:
                names.add(name)
    return sorted(names)
