"""A real Prometheus with our rules, scraping one piperd every second, and its HTTP API."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from tests.support.polling import wait_until

CONF = Path(__file__).resolve().parents[2] / "conf" / "prometheus"
INTERVAL = "1s"
RETENTION = "60d"
HTTP_SECONDS = 10.0
TOOL_SECONDS = 120.0


def rules() -> list[dict[str, Any]]:
    """All rules of conf/prometheus, as they are written."""
    files = [yaml.safe_load(path.read_text("utf-8")) for path in sorted((CONF / "rules").glob("*.yml"))]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def promtool(*arguments: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """One run of promtool, which must be there; `text` goes to its stdin."""
    tool = shutil.which("promtool")
    assert tool is not None
    command = [tool, *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=TOOL_SECONDS)


class Prometheus:
    """Prometheus over conf/prometheus/prometheus.yml, but for the target, the intervals and a folder of its own.

    `history` is OpenMetrics text of what it is to know from before its start.
    """

    def __init__(self, folder: Path, target: str, history: str = "") -> None:
        self.target = target
        self._data, self._log, self._config = folder / "data", folder / "prometheus.log", folder / "prometheus.yml"
        folder.mkdir(parents=True)
        config = yaml.safe_load((CONF / "prometheus.yml").read_text("utf-8"))
        config["global"] = {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL}
        config["rule_files"] = [str(CONF / pattern) for pattern in config["rule_files"]]
        [job] = config["scrape_configs"]
        job["static_configs"] = [{"targets": [target]}]
        self._config.write_text(yaml.safe_dump(config), "utf-8")
        if history:
            self._data.mkdir()
            source = folder / "history.txt"
            source.write_text(history, "utf-8")
            done = promtool("tsdb", "create-blocks-from", "openmetrics", source, self._data)
            assert done.returncode == 0, done.stdout + done.stderr
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        program = shutil.which("prometheus")
        assert program is not None
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--config.file={self._config}",
                    f"--storage.tsdb.path={self._data}",
                    f"--storage.tsdb.retention.time={RETENTION}",
                    "--web.listen-address=127.0.0.1:0",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(60)

    def log_text(self) -> str:
        """What it wrote to stderr."""
        return self._log.read_text("utf-8", "replace")

    def api(self, path: str, **parameters: str) -> Any:
        """`data` of an answer of its API; fails where it refuses or warns."""
        port = wait_until(self._port, what=self.log_text)
        url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=HTTP_SECONDS) as answer:
                body = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from error
        assert body["status"] == "success", body
        assert not body.get("warnings"), body
        return body["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The result of an instant query: labels and value of each series."""
        data = self.api("query", query=expr)
        assert data["resultType"] == "vector", data
        return [{"labels": each["metric"], "value": float(each["value"][1])} for each in data["result"]]

    def value(self, expr: str) -> float:
        """The only value of an instant query; 0 without any."""
        found = self.query(expr)
        assert len(found) <= 1, found
        return float(found[0]["value"]) if found else 0.0

    def names(self) -> set[str]:
        """Every metric name that it has."""
        return set(self.api("label/__name__/values"))

    def _port(self) -> int:
        """Where it listens, by its own words; 0 until it answers there."""
        assert self._process is not None
        assert self._process.poll() is None, self.log_text()
        found = re.search(r'msg="Listening on" address=127\.0\.0\.1:(\d+)', self.log_text())
        return int(found[1]) if found and "ready to receive web requests" in self.log_text() else 0
