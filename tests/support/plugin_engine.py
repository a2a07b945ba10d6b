"""DuckDB 1.5.4 as Grafana's DuckDB plugin runs it: a process of its own that opens a path with options after a `?`,
runs `initSql` once on the first connection, and answers queries on a pool of connections for as long as it lives.

`PluginEngine` starts this very file with the readers' DuckDB first on its path; a container that stands in for
Grafana's runs it as well. So it imports nothing but the standard library, PyYAML and that DuckDB.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl

PROVISIONING = Path(__file__).resolve().parent.parent.parent / "grafana" / "provisioning"
ROWS_MAX = 100
_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")


def expand(value: Any, env: Mapping[str, str]) -> Any:
    """What Grafana makes of a provisioned value: variables filled in everywhere, unknown ones empty, `$$` a dollar."""
    if isinstance(value, str):
        parts = (_VARIABLE.sub(lambda found: env.get(found[1] or found[2], ""), part) for part in value.split("$$"))
        return "$".join(parts)
    if isinstance(value, Mapping):
        return {key: expand(item, env) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [expand(item, env) for item in value]
    return value


def provisioned(uid: str, env: Mapping[str, str], file: Path | None = None) -> dict[str, Any]:
    """A datasource of the provisioning file, as Grafana with this environment has it."""
    import yaml

    sources = yaml.safe_load((file or PROVISIONING / "datasources" / "piper.yml").read_text())["datasources"]
    found = [source for source in sources if source["uid"] == uid]
    assert len(found) == 1, f"{len(found)} datasources with uid {uid}"
    expanded = expand(found[0], env)
    assert isinstance(expanded, dict)
    return expanded


@dataclass(frozen=True)
class Answer:
    """Rows as text (at most ROWS_MAX), or the error's first line."""

    rows: list[list[str]]
    error: str | None


class PluginEngine:
    """One driver instance over `dsn`. `site` is what `reader_site()` gives; `prefix` goes before the command."""

    def __init__(self, site: Path, dsn: str, init_sql: str, *, prefix: Iterable[str] = ()) -> None:
        self._process = subprocess.Popen(
            [*prefix, sys.executable, __file__, "pipe", dsn, init_sql],
            env={"PYTHONPATH": str(site), "PATH": os.environ["PATH"], "HOME": "/nonexistent"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, sql: str, connection: int = 0) -> Answer:
        """Send one query of a panel; connections of the pool are made as they are named."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([connection, sql]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the engine died of {sql!r}: {self._process.wait()}"
        return Answer(**json.loads(line))

    def rows(self, sql: str, connection: int = 0) -> list[list[str]]:
        """The rows of a query that must work."""
        answer = self.ask(sql, connection)
        assert answer.error is None, f"{sql}: {answer.error}"
        return answer.rows

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()


class _Instance:
    """A driver instance of the plugin: one database, connections by number."""

    def __init__(self, dsn: str, init_sql: str) -> None:
        import duckdb

        # As the Go driver reads it: the first value of an option counts, and the plugin adds its own at the end.
        path, _, options = dsn.partition("?")
        self._pool = {0: duckdb.connect(path, config=dict(reversed(parse_qsl(options))))}
        self._pool[0].execute(init_sql)

    def answer(self, number: int, sql: str) -> str:
        if number not in self._pool:
            self._pool[number] = self._pool[0].cursor()
        rows, error = [], None
        try:
            found = self._pool[number].execute(sql).fetchmany(ROWS_MAX)
            rows = [[str(value) for value in row] for row in found]
        except Exception as problem:
            error = f"{type(problem).__name__}: {str(problem).splitlines()[0]}"
        return json.dumps({"rows": rows, "error": error})


def _serve_pipe(dsn: str, init_sql: str) -> None:
    instance = _Instance(dsn, init_sql)
    for line in sys.stdin:
        sys.stdout.write(instance.answer(*json.loads(line)) + "\n")
        sys.stdout.flush()


def _serve_http(provisioning: str, port: str) -> None:
    """In Grafana's place in a container: answers its health check, and SQL that is posted."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    settings = provisioned("piper-duckdb", os.environ, Path(provisioning))["jsonData"]
    instance = _Instance(settings["path"], settings["initSql"])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(json.dumps({"database": "ok"}))

        def do_POST(self) -> None:
            self._reply(instance.answer(0, self.rfile.read(int(self.headers["Content-Length"])).decode()))

        def _reply(self, body: str) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the first process of a container has no default
    HTTPServer(("", int(port)), Handler).serve_forever()


if __name__ == "__main__":
    {"pipe": _serve_pipe, "http": _serve_http}[sys.argv[1]](*sys.argv[2:])
