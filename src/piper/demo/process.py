"""piperd as a child process, on a port of its own: what the demo watches and the benchmarks measure.

The child gets the shipped settings with its own roots and port. No `PIPER_` variable of this process, no `.env` and no
configuration file reaches it, so that a demo can never write into a studio's warehouse.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import piper

LOCALHOST = "127.0.0.1"
HTTP_SECONDS = 2.0
STOP_SECONDS = 40.0
"""piperd promises to be gone within 30 s of SIGTERM."""
LOG_TAIL_LINES = 15
CODE = "from piper.cli import main_daemon; main_daemon()"


class DaemonProcess:
    """A running piperd. Leaving the `with` block ends it whatever happened; `stop` ends it cleanly before that."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self._process, self.port, self.log = process, port, log

    @classmethod
    def start(
        cls, raw_root: Path, data_root: Path, log: Path, settings: Mapping[str, str] | None = None, code: str = CODE
    ) -> Self:
        """Start piperd; its stderr is appended to `log`. `settings` are further `PIPER_…` variables.

        `code` is the Python that it runs, for a soak that makes rare things frequent.

        It is not ready yet when this returns, and may still refuse to start: watch `ready` and `exit_code`.
        """
        port = _free_port()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                env=_environment(raw_root, data_root, port) | dict(settings or {}),
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                # Ctrl-C goes to a terminal's whole process group; piperd takes a second signal as "now".
                start_new_session=True,
            )
        return cls(process, port, log)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal killed it."""
        return self._process.poll()

    @property
    def ready(self) -> bool:
        """Whether readers may rely on the warehouse: it exists and the first scan is done."""
        return self.get("/readyz")[0] == http.HTTPStatus.OK

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a GET; (0, "") when nobody answers."""
        connection = http.client.HTTPConnection(LOCALHOST, self.port, timeout=HTTP_SECONDS)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except (OSError, http.client.HTTPException):
            return 0, ""
        finally:
            connection.close()

    def interrupt(self) -> None:
        """Send SIGTERM: once asks it to drain and leave, twice to leave now."""
        self._process.send_signal(signal.SIGTERM)

    def stop(self, seconds: float = STOP_SECONDS) -> int | None:
        """Ask it to leave and wait; its exit code, or None when it is still there after `seconds`."""
        self.interrupt()
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def log_tail(self) -> str:
        """The last lines that it wrote to stderr."""
        with self.log.open(encoding="utf-8", errors="replace") as lines:
            return "".join(deque(lines, LOG_TAIL_LINES)).rstrip()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _environment(raw_root: Path, data_root: Path, port: int) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PIPER_")}
    # The child runs this piper, also from a checkout that is named by a relative PYTHONPATH.
    package_root = str(Path(piper.__file__).resolve().parents[1])
    python_path = os.pathsep.join(filter(None, [package_root, inherited.get("PYTHONPATH")]))
    return inherited | {
        "PYTHONPATH": python_path,
        "PIPER_PATHS__RAW_ROOT": str(raw_root),
        "PIPER_PATHS__DATA_ROOT": str(data_root),
        "PIPER_METRICS__HOST": LOCALHOST,
        "PIPER_METRICS__PORT": str(port),
        "PIPER_LOGGING__FORMAT": "text",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        return int(probe.getsockname()[1])
