"""DuckDB 1.5.4, the engine inside the Grafana plugin, for a reader process of its own.

`reader_site()` is a directory to put first on a child's PYTHONPATH. It is made once per checkout and Python version, by
pip; `PIPER_READER_SITE` names one that is there already. Only the standard library is needed here, the benchmarks use
it too.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

READER_VERSION = "1.5.4"
SITE_VARIABLE = "PIPER_READER_SITE"
DEFAULT_SITE = Path(__file__).resolve().parents[2] / ".cache" / f"duckdb-{READER_VERSION}"
_PIP_SECONDS = 150


class ReaderUnavailable(Exception):  # noqa: N818 - a state of the world, not a fault
    """There is no DuckDB of the readers' version, and pip could not get it. The text says why."""


def reader_site(cache: Path | None = None) -> Path:
    """The directory that holds the readers' `duckdb`, made on first use; several processes may ask at once.

    `cache` is where to keep it; below it every Python version has a directory of its own, for the wheels are binary.
    """
    named = os.environ.get(SITE_VARIABLE)
    if cache is None and named:
        if not (Path(named) / "duckdb").is_dir():
            raise ReaderUnavailable(f"{SITE_VARIABLE} is {named}, which holds no duckdb")
        return Path(named)
    cache = cache or DEFAULT_SITE
    site = cache / str(sys.implementation.cache_tag)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not site.is_dir():
                _install(site)
    except OSError as error:
        raise ReaderUnavailable(f"{cache} cannot be used: {error}") from error
    return site


def reader_environment(site: Path) -> dict[str, str]:
    """The environment of a child that imports `duckdb` from `site`."""
    return os.environ | {"PYTHONPATH": str(site)}


def require_reader_site() -> Path:
    """`reader_site()` for tests: skips with the reason where it cannot be had, fails where `CI` is true."""
    import pytest

    try:
        return reader_site()
    except ReaderUnavailable as error:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"CI must test against DuckDB {READER_VERSION}: {error}")
        pytest.skip(f"no DuckDB {READER_VERSION}: {error}")


def _install(site: Path) -> None:
    """Under another name first: a directory that is there is complete."""
    partial = site.with_name(f".{site.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    options = ["--quiet", "--no-deps", "--disable-pip-version-check", "--only-binary=:all:"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(partial), f"duckdb=={READER_VERSION}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ReaderUnavailable(f"pip did not finish within {_PIP_SECONDS} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ReaderUnavailable(f"pip: {lines[-1]}")
    partial.rename(site)
