"""Fixtures that several suites share."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.support.piperd import Piperd

MakePiperd = Callable[..., Piperd]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts what it puts in the background so
    signal.signal(signal.SIGINT, signal.default_int_handler)  # programs under test inherit it, and some get Ctrl-C


@pytest.fixture
def raw_root(tmp_path: Path) -> Path:
    """Where the spool of this test is, or will be."""
    return tmp_path / "raw"


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """Where piper of this test writes."""
    return tmp_path / "data"


@pytest.fixture
def make_piperd(tmp_path: Path, raw_root: Path, data_root: Path) -> Iterator[MakePiperd]:
    """Makes daemons over this test's roots, not started yet; what still runs at the end is killed."""
    with ExitStack() as stack:

        def make(settings: Mapping[str, object] | None = None, **options: object) -> Piperd:
            number = len(list(tmp_path.glob("logs-*")))
            logs = tmp_path / f"logs-{number}"
            logs.mkdir()
            roots = {"raw_root": raw_root, "data_root": data_root} | options
            return stack.enter_context(Piperd(logs=logs, settings=settings, **roots))  # type: ignore[arg-type]

        yield make
