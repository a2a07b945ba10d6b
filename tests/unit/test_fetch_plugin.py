"""`conf/grafana/fetch_plugin.py`: what is baked into Grafana's image, and what is not."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "conf" / "grafana" / "fetch_plugin.py"
FILES = {
    "some-plugin/plugin.json": '{"id": "some-datasource"}',
    "some-plugin/gpx_some_linux_amd64": "#!",
    "some-plugin/img/logo.svg": "<svg/>",
    "some-plugin/panels/plugin.json": '{"id": "inner"}',
}


def fetch(archive: Path, sha256: str, into: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), archive.as_uri(), sha256, str(into)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return an_archive(tmp_path / "plugin.zip", FILES)


def an_archive(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as target:
        for name, text in files.items():
            target.writestr(name, text)
    return path


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_plugin_with_the_right_checksum_is_there_under_its_id_and_can_be_run(archive: Path, tmp_path: Path) -> None:
    done = fetch(archive, checksum(archive).upper(), tmp_path / "plugins")
    assert done.returncode == 0, done.stderr
    plugin = tmp_path / "plugins" / "some-datasource"
    assert (plugin / "plugin.json").read_text() == FILES["some-plugin/plugin.json"]
    assert os.access(plugin / "gpx_some_linux_amd64", os.X_OK)
    assert {path.name: path.stat().st_mode & 0o777 for path in (plugin, plugin / "img", plugin / "plugin.json")} == {
        "some-datasource": 0o755,
        "img": 0o755,
        "plugin.json": 0o644,
    }


@pytest.mark.parametrize(("sha256", "said"), [("", "no checksum"), ("0" * 64, "look at it before you trust it")])
def test_without_the_right_checksum_nothing_is_installed(archive: Path, tmp_path: Path, sha256: str, said: str) -> None:
    done = fetch(archive, sha256, tmp_path / "plugins")
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "plugins").exists()


def test_an_archive_that_is_no_plugin_is_refused(tmp_path: Path) -> None:
    archive = an_archive(tmp_path / "other.zip", {"readme": "hello"})
    done = fetch(archive, checksum(archive), tmp_path / "plugins")
    assert done.returncode == 1
    assert "no plugin.json" in done.stderr
