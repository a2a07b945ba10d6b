"""Data to draw: a simulated studio's past, and a daemon at work that a Prometheus watches."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

CONFIG = Path(__file__).resolve().parents[2] / "conf" / "prometheus" / "prometheus.yml"
DAYS, EVENTS, HOSTS = 42, 60_000, 8
WATCH_SECONDS = 90.0


def history(folder: Path) -> Path:
    """Six weeks of events up to now, ingested; returns the data root."""
    environment = _environment(folder)
    _piper(environment, "simulate", "--root", str(folder / "raw"), "--days", str(DAYS), "--events", str(EVENTS),
           "--hosts", str(HOSTS))  # fmt: skip
    _piper(environment, "ingest")
    return folder / "data"


@contextmanager
def watched(folder: Path) -> Iterator[str | None]:
    """The URL of a Prometheus that has watched a piperd at work for WATCH_SECONDS; None where none is installed."""
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        yield None
        return
    folder.mkdir(parents=True)
    metrics_port, port = _free_port(), _free_port()
    (folder / "prometheus.yml").write_text(_prometheus_config(metrics_port))
    environment = _environment(folder) | {"PIPER_METRICS__PORT": str(metrics_port)}
    (folder / "raw").mkdir()
    with ExitStack() as stack:
        for command in (
            [sys.executable, "-m", "piper", "simulate", "--root", str(folder / "raw"), "--rate", "120"],
            [sys.executable, "-c", "from piper.cli import main_daemon; main_daemon()"],
            [prometheus, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb",
             f"--web.listen-address=127.0.0.1:{port}"],
        ):  # fmt: skip
            stack.enter_context(_process(command, environment, folder / "log.txt"))
        url = f"http://127.0.0.1:{port}"
        _wait_for(f"{url}/-/ready")
        time.sleep(WATCH_SECONDS)
        yield url


def _prometheus_config(port: int) -> str:
    """The one that is shipped, asking often, and this piperd."""
    shipped = CONFIG.read_text("utf-8").replace("rules/*.yml", f"{CONFIG.parent}/rules/*.yml")
    often = re.sub(r"(scrape_interval|scrape_timeout|evaluation_interval): \w+", r"\1: 1s", shipped)
    return re.sub(r"127\.0\.0\.1:\d+|\w+:9464", f"127.0.0.1:{port}", often)


def _environment(folder: Path) -> dict[str, str]:
    return dict(os.environ) | {
        "PIPER_PATHS__RAW_ROOT": str(folder / "raw"),
        "PIPER_PATHS__DATA_ROOT": str(folder / "data"),
    }


def _piper(environment: dict[str, str], *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "piper", *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def _process(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("ab") as stream, subprocess.Popen(command, env=environment, stdout=stream, stderr=stream) as process:
        try:
            yield
        finally:
            process.terminate()


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - our own
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
