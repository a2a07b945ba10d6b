"""A real piperd as a child process: start, watch, scrape, stop, kill.

Every run takes a free port and writes its stderr to a file of its own; settings are `PIPER_…` variables, and nothing of
this process's own settings reaches the child.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from prometheus_client.parser import text_string_to_metric_families
from tests.support.polling import wait_until

SOURCE_ROOT = Path(__file__).resolve().parents[2] / "src"
LOCALHOST = "127.0.0.1"
HTTP_SECONDS = 5.0
STOP_SECONDS = 35.0
"""piperd promises to be gone within 30 s of SIGTERM, whatever it was doing."""

COMMAND = (sys.executable, "-c", "from piper.cli import main_daemon; main_daemon()")
"""What runs piperd; the one place that says so."""

WITHOUT_PRIVILEGES = (
    sys.executable,
    "-c",
    """
import ctypes, os, sys
PR_CAPBSET_DROP = 24
libc = ctypes.CDLL(None)
for capability in range(64):
    libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
""",
)
"""Put before a command: file permissions then bind root too. Without effect, and not needed, for anyone else."""

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Piperd:
    """piperd over one spool and one data root; started and ended as often as a test likes.

    `settings` overrides the defaults of a test run (quick publishing and polling), by variable name without prefix:
    {"INGEST__SEAL_EVENTS_MAX": 500}.
    """

    def __init__(
        self,
        raw_root: Path,
        data_root: Path,
        logs: Path,
        settings: Mapping[str, object] | None = None,
        *,
        prefix: Sequence[str] = (),
    ) -> None:
        self.raw_root, self.data_root = raw_root, data_root
        self.settings: dict[str, object] = {
            "WATCH__POLL_SECONDS": 0.2,
            "INGEST__FLUSH_SECONDS": 0.05,
            "PUBLISH__SECONDS": 0.1,
            "GOLD__REFRESH_SECONDS": 0.5,
            "METRICS__PORT": 0,
        } | dict(settings or {})
        self._prefix = tuple(prefix)
        self._logs = logs
        self._runs = count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._log = logs / "never-started"

    # ---- life ----------------------------------------------------------------------------------------------------

    def start(self, **settings: object) -> Self:
        """Start it; returns at once, it may not even have read its settings yet."""
        assert self._process is None or self._process.poll() is not None, "it runs already"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._log = self._logs / f"piperd-{next(self._runs):03d}.log"
        with self._log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [*self._prefix, *COMMAND],
                env=self._environment(settings),
                cwd=self._logs,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
            )
        return self

    def start_ready(self, deadline_seconds: float = 60.0, **settings: object) -> Self:
        """Start it and wait until /readyz says yes."""
        self.start(**settings)
        self.wait_ready(deadline_seconds)
        return self

    def wait_ready(self, deadline_seconds: float = 60.0) -> None:
        """Wait until /readyz answers 200; fails with the log if the process ends instead."""
        wait_until(lambda: self._alive().get("/readyz")[0] == 200, deadline_seconds, what=self.log_text)

    def wait_not_ready(self, deadline_seconds: float = 60.0) -> str:
        """Wait until /readyz answers 503; returns its body."""
        wait_until(lambda: self._alive().get("/readyz")[0] == 503, deadline_seconds, what=self.log_text)
        return wait_until(lambda: self.get("/readyz")[1])

    def stop(self) -> None:
        """SIGTERM; fails unless it ends with 0 within the promised time."""
        self.signal(signal.SIGTERM)
        code = self.wait()
        assert code == 0, f"piperd ended with {code}\n{self.log_text()}"

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait(60)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Its exit code, once it has ended by itself."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"piperd is still there after {seconds} s\n{self.log_text()}") from error

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The present or last run."""
        assert self._process is not None, "not started"
        return self._process

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_running:
            self.kill()

    # ---- watching ------------------------------------------------------------------------------------------------

    @property
    def url_port(self) -> int:
        """The port of this run, from its first log line; 0 until it is there."""
        found = re.search(r'"metrics":\s*"http://[^"]*:(\d+)', self.log_text())
        return int(found[1]) if found else 0

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a GET; (0, "") while nobody answers."""
        port = self.url_port
        if not port:
            return 0, ""
        connection = http.client.HTTPConnection(LOCALHOST, port, timeout=HTTP_SECONDS)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except (OSError, http.client.HTTPException):
            return 0, ""
        finally:
            connection.close()

    def scrape(self) -> Samples:
        """All samples of /metrics by (name, sorted labels), read by Prometheus's own parser."""
        text = wait_until(lambda: self._alive().get("/metrics")[1])
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over all label sets that contain `labels`."""
        wanted = labels.items()
        return sum(
            value for (found, have), value in self.scrape().items() if found == name and wanted <= dict(have).items()
        )

    def log_text(self) -> str:
        """What this run wrote to stderr."""
        return self._log.read_text("utf-8", "replace") if self._log.exists() else ""

    def log_events(self) -> list[dict[str, Any]]:
        """Its log lines."""
        return [json.loads(line) for line in self.log_text().splitlines() if line.startswith("{")]

    def _alive(self) -> Self:
        assert self.is_running, f"piperd ended with {self.process.poll()}\n{self.log_text()}"
        return self

    def _environment(self, settings: Mapping[str, object]) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PIPER_")}
        python_path = os.pathsep.join(filter(None, [str(SOURCE_ROOT), inherited.get("PYTHONPATH")]))
        values = {"PATHS__RAW_ROOT": self.raw_root, "PATHS__DATA_ROOT": self.data_root, **self.settings, **settings}
        return inherited | {"PYTHONPATH": python_path} | {f"PIPER_{name}": str(value) for name, value in values.items()}
