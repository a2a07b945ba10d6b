"""Fetch a Grafana plugin, check it, unpack it: `fetch_plugin.py URL SHA256 DIRECTORY`.

The plugin is unsigned, so that its checksum is all that says that it is the one somebody looked at. Without the right
one nothing is unpacked. Run while the image is built; needs Python and nothing else.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path

TIMEOUT_SECONDS = 120
BACKEND_PREFIX = "gpx_"
"""How Grafana calls the executables of plugins; a zip file has lost who may execute what."""


def main(url: str, sha256: str, directory: str) -> None:
    """Leave the plugin at `directory`/<plugin id>, or exit with one line that says why not."""
    if not sha256:
        sys.exit(f"no checksum: set DUCKDB_PLUGIN_SHA256 to that of {url}, once you trust it (docs/docker.md)")
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310 - the checksum decides
        archive = response.read()
    found = hashlib.sha256(archive).hexdigest()
    if found != sha256.lower():
        sys.exit(f"{url} has the checksum {found}, not {sha256}: look at it before you trust it")
    with tempfile.TemporaryDirectory(dir=Path(directory).parent) as unpacked:
        zipfile.ZipFile(io.BytesIO(archive)).extractall(unpacked)
        install(Path(unpacked), Path(directory))


def install(unpacked: Path, directory: Path) -> None:
    """Move the outermost folder with a plugin.json to where Grafana looks, readable for everyone."""
    description = min(unpacked.rglob("plugin.json"), key=lambda path: len(path.parts), default=None)
    if description is None:
        sys.exit("the archive holds no plugin.json")
    target = directory / json.loads(description.read_text("utf-8"))["id"]
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    description.parent.rename(target)
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.name.startswith(BACKEND_PREFIX) else 0o644)


if __name__ == "__main__":
    main(*sys.argv[1:])
