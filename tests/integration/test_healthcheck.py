"""`piper healthcheck`: what a supervisor learns from its exit code and its one line."""

from __future__ import annotations

import json
import os
import signal
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from tests.conftest import MakePiperd
from tests.support.commands import Place
from tests.support.piperd import LOCALHOST

from piper.errors import PiperError
from piper.ops.health import Health
from piper.ops.healthcheck import ask_health
from piper.ops.http import MetricsServer
from piper.settings import Settings
from piper.settings_sources import load_settings


def settings_for(port: int, tmp_path: Path, host: str = LOCALHOST) -> Settings:
    env = {"PIPER_METRICS__PORT": str(port), "PIPER_METRICS__HOST": host}
    return load_settings(env=env, cwd=tmp_path).settings


def test_a_running_piperd_is_alive_and_a_stopped_one_is_not(
    make_piperd: MakePiperd, raw_root: Path, tmp_path: Path
) -> None:
    raw_root.mkdir()
    piperd = make_piperd().start_ready()
    env = {"PIPER_METRICS__PORT": str(piperd.url_port)}
    place = Place(tmp_path)

    alive = place.piper("healthcheck", env=env)
    assert (alive.returncode, alive.stdout) == (0, f"alive: http://127.0.0.1:{piperd.url_port}/healthz\n")
    found = json.loads(place.piper("healthcheck", "--json", env=env).stdout)
    assert found["alive"] is True
    assert {loop["loop"] for loop in found["loops"]} >= {"ingest"}

    piperd.stop()
    stopped = place.piper("healthcheck", env=env)
    assert (stopped.returncode, stopped.stdout) == (1, "")
    assert stopped.stderr.startswith(f"piper: piperd does not answer at http://127.0.0.1:{env['PIPER_METRICS__PORT']}")
    assert len(stopped.stderr.splitlines()) == 1


def test_a_piperd_that_hangs_is_not_alive(make_piperd: MakePiperd, raw_root: Path, tmp_path: Path) -> None:
    raw_root.mkdir()
    piperd = make_piperd().start_ready()
    os.kill(piperd.process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(PiperError, match="does not answer"):
            ask_health(settings_for(piperd.url_port, tmp_path))
    finally:
        os.kill(piperd.process.pid, signal.SIGCONT)


def test_a_loop_without_a_sign_of_life_is_named(tmp_path: Path) -> None:
    now = [0.0]
    health = Health(limits={"ingest": 60.0, "gold": 600.0}, conditions=(), monotonic=lambda: now[0])
    health.beat("ingest")
    health.beat("gold")
    now[0] = 75.0
    with MetricsServer("", 0, CollectorRegistry(), health) as server:
        found = ask_health(settings_for(server.port, tmp_path, host="0.0.0.0"))
    assert not found.alive
    assert str(found).startswith("stale: ingest for 75 s without a sign of life")


def test_without_a_fixed_port_it_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(PiperError, match="PIPER_METRICS__PORT"):
        ask_health(settings_for(0, tmp_path))


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]", b""])
def test_another_server_on_the_port_is_not_taken_for_piperd(tmp_path: Path, body: bytes) -> None:
    with serving(body) as port, pytest.raises(PiperError, match="is not piperd"):
        ask_health(settings_for(port, tmp_path))


@contextmanager
def serving(body: bytes) -> Iterator[int]:
    """A server that answers everything with `body`, on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Keeps the test's output clean."""

    with socketserver.TCPServer((LOCALHOST, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
