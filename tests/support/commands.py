"""Real `piper` processes on a data root of their own, and a writer that holds it as a daemon does."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from anyio.from_thread import start_blocking_portal

import piper
from piper.demo.simulate import SimulateOptions, SimulateSummary, simulate
from piper.errors import ControlError
from piper.layout import Layout
from piper.ops.control import Handler, ask, serve_control
from piper.ops.metrics import Metrics
from piper.settings import Settings
from piper.settings_sources import load_settings
from piper.writer import Clock, Writer

PACKAGE_ROOT = str(Path(piper.__file__).resolve().parents[1])
"""The commands run the package that the test imported, wherever they are started."""
SECONDS = 60.0
"""No command of a test takes so long; one that does hangs."""


def until(condition: Callable[[], bool]) -> None:
    """Returns once the condition holds; fails the test when it does not within SECONDS."""
    deadline = time.monotonic() + SECONDS
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        pause.wait(0.05)


@contextlib.contextmanager
def running(command: list[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process with both outputs piped, gone at the end whatever the test found."""
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@dataclass(frozen=True)
class Place:
    """A spool and a data root below one temporary directory, and commands on them."""

    root: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    """More settings for its processes."""

    @property
    def raw(self) -> Path:
        return self.root / "raw"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def env(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith("PIPER_")}
        return {
            **ours,
            "PIPER_PATHS__RAW_ROOT": str(self.raw),
            "PIPER_PATHS__DATA_ROOT": str(self.data),
            "PYTHONPATH": PACKAGE_ROOT,
            "COLUMNS": "200",
            **self.variables,
        }

    @property
    def settings(self) -> Settings:
        return load_settings(env=self.env, cwd=self.root).settings

    @property
    def layout(self) -> Layout:
        return Layout.of(self.settings)

    def simulate(self, events: int, **options: Any) -> SimulateSummary:
        chosen = {"hosts": 2, "users": 2, "rate": 0.0, "malformed_ratio": 0.01, "duplicate_ratio": 0.02, **options}
        return simulate(SimulateOptions(self.raw, events=events, **chosen))

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "piper", *arguments]

    def piper(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env={**self.env, **(env or {})},
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def json(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        done = self.piper(*arguments, "--json")
        assert done.returncode == code, done.stderr + done.stdout
        result = json.loads(done.stdout)
        assert isinstance(result, dict)
        return result

    @contextlib.contextmanager
    def piperd(self) -> Iterator[subprocess.Popen[bytes]]:
        """A real daemon that answers; stopped at the end if the test did not."""
        command = [sys.executable, "-c", "from piper.cli import main_daemon; main_daemon()"]
        env = {**self.env, "PIPER_METRICS__PORT": "0"}
        with subprocess.Popen(command, env=env, cwd=self.root, stderr=subprocess.DEVNULL) as process:
            try:
                until(lambda: self._answers(process))
                yield process
            finally:
                process.terminate()
                try:
                    process.wait(SECONDS)
                finally:
                    process.kill()

    def _answers(self, process: subprocess.Popen[bytes]) -> bool:
        assert process.poll() is None, "piperd ended"
        try:
            return bool(ask(self.layout.control_socket, "status")["state"] == "running")
        except ControlError:
            return False

    @contextlib.contextmanager
    def writer(self, command: str = "piperd", clock: Clock | None = None) -> Iterator[Writer]:
        """The data root, held by this process under the name of `command`."""
        writer = Writer.open(self.settings, Metrics(), command=command, clock=clock)
        try:
            yield writer
        finally:
            writer.close()


@contextlib.contextmanager
def listening(path: Path, handlers: Mapping[str, Handler]) -> Iterator[None]:
    """Answers on a control socket, as piperd does."""
    with start_blocking_portal() as portal:

        async def serve(*, task_status: anyio.abc.TaskStatus[anyio.CancelScope]) -> None:
            async with anyio.create_task_group() as group:
                await group.start(serve_control, path, handlers)
                task_status.started(group.cancel_scope)

        future, scope = portal.start_task(serve)
        try:
            yield
        finally:
            portal.call(scope.cancel)
            future.result(SECONDS)
