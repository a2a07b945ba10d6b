"""The images built and run for real, on an engine of the tests' own that asks no registry for anything.

Python's image is a Debian of this machine's mirror. In the demo, Debian's Prometheus stands in for Prometheus's image,
and DuckDB 1.5.4 with the provisioned datasource for Grafana's; users, mounts, ports, health checks and the order of
start are those of docker-compose.yml.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import urllib.request
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from tests.support import plugin_engine
from tests.support.docker_engine import REPOSITORY, Engine, EngineUnavailable, base_image, compose_command, engine
from tests.support.polling import wait_until
from tests.support.reader_engine import READER_VERSION
from tests.support.warehouse import GOLD_VIEWS, SILVER_VIEWS, assert_silver_is, catalog

from piper.demo.simulate import SimulateOptions, simulate

pytestmark = pytest.mark.timeout(900)  # the first run makes a Debian

IMAGE = "piper-telemetry:local"
UID = 10001
HARDENED = ["--network=host", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
VIEWS = (*SILVER_VIEWS, *GOLD_VIEWS)
STOP_SECONDS = 30


@pytest.fixture(scope="module")
def docker() -> Iterator[Engine]:
    try:
        with engine() as found:
            yield found
    except EngineUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def image(docker: Engine) -> str:
    docker.build(IMAGE, REPOSITORY)
    return IMAGE


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def health(docker: Engine, container: str) -> str:
    return docker.docker("inspect", "--format", "{{.State.Health.Status}}", container)


def events_in(raw: Path) -> list[dict[str, Any]]:
    """What is valid in a spool that was simulated without anything malformed."""
    return [json.loads(line) for file in raw.glob("*/*/*.jsonl") for line in file.read_bytes().splitlines()]


# ---- piperd ----------------------------------------------------------------------------------------------------------


def test_the_image_holds_a_venv_without_pip_and_a_user_without_rights(docker: Engine, image: str) -> None:
    (found,) = json.loads(docker.docker("image", "inspect", image))
    assert found["Config"]["User"] == f"{UID}:{UID}"
    assert found["Config"]["Entrypoint"] == ["piperd"]
    assert found["Config"]["Healthcheck"]["Test"] == ["CMD", "piper", "healthcheck"]
    inside = ["run", "--rm", *HARDENED, "--entrypoint"]
    assert docker.docker(*inside, "piperd", image, "--version").startswith("piper ")
    assert docker.docker(*inside, "sh", image, "-c", "ls -d /build; true") == "", "the build stage is not in it"
    assert docker.docker(*inside, "python3", image, "-c", "import sys; print(sys.prefix)") == "/opt/piper"
    listed = docker.docker(*inside, "ls", image, "/opt/piper/bin").split()
    assert {"piper", "piperd"} <= set(listed)
    assert not [name for name in listed if name.startswith("pip") and not name.startswith("piper")]


def test_piperd_ingests_a_spool_is_healthy_and_stops_on_sigterm(docker: Engine, image: str, tmp_path: Path) -> None:
    raw, data = tmp_path / "raw", tmp_path / "data"
    simulate(SimulateOptions(raw, events=2000, hosts=2, users=2, rate=0.0, malformed_ratio=0.0))
    data.mkdir()
    os.chown(data, UID, UID)
    env = {"PATHS__RAW_ROOT": "/spool", "PATHS__DATA_ROOT": data, "METRICS__PORT": free_port()}
    options = [option for name, value in env.items() for option in ("--env", f"PIPER_{name}={value}")]
    options += ["--volume", f"{raw}:/spool:ro", "--volume", f"{data}:{data}", "--health-interval=1s"]
    docker.docker("run", "--detach", "--name", "one", *HARDENED, *options, image)

    wait_until(lambda: health(docker, "one") == "healthy", what=lambda: docker.docker("logs", "one", check=False))
    wait_until(lambda: (data / "warehouse" / "telemetry.duckdb").exists())
    wait_until(lambda: rows(data, "silver_events") == 2000)
    wait_until(lambda: rows(data, "gold_data_quality_daily") > 0)
    status = docker.docker("exec", "one", "cat", "/proc/1/status")
    assert "NoNewPrivs:\t1" in status
    assert "CapBnd:\t0000000000000000" in status
    assert docker.docker("exec", "one", "cat", "/proc/1/comm") == "piperd", "no shell in between, so signals arrive"
    attempt = "for file in /x /tmp/x /opt/piper/x /srv/piper/x; do touch $file 2>/dev/null && echo $file; done; true"
    assert docker.docker("exec", "one", "sh", "-c", attempt) == "", "the root file system is read-only"

    docker.docker("stop", "--time", str(STOP_SECONDS), "one")
    assert docker.docker("inspect", "--format", "{{.State.ExitCode}}", "one") == "0", "137 would be SIGKILL"
    with catalog(data) as con:
        assert_silver_is(con, events_in(raw))
    owners = {path.lstat().st_uid for path in data.rglob("*")}
    assert owners == {UID}


def rows(data: Path, view: str) -> int:
    with catalog(data) as con:
        return int(con.execute(f"SELECT count(*) FROM {view}").fetchall()[0][0])


# ---- Grafana ---------------------------------------------------------------------------------------------------------


def test_grafanas_image_is_built_with_the_plugin_and_not_without_its_checksum(docker: Engine, tmp_path: Path) -> None:
    archive = tmp_path / "plugin.zip"
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("p/plugin.json", '{"id": "motherduck-duckdb-datasource"}')
        target.writestr("p/gpx_duckdb", "#!/bin/sh\necho it runs\n")
    context = REPOSITORY / "conf" / "grafana"
    with serving(tmp_path) as port:
        arguments = {"GRAFANA_IMAGE": base_image(), "PLUGIN_URL": f"http://127.0.0.1:{port}/plugin.zip"}
        with pytest.raises(AssertionError, match="no checksum"):
            docker.build("with-plugin", context, **arguments)
        sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
        docker.build("with-plugin", context, **arguments, PLUGIN_SHA256=sha256)
    command = "id -u && $GF_PATHS_PLUGINS/motherduck-duckdb-datasource/gpx_duckdb"
    inside = ["run", "--rm", "--user=472:0", *HARDENED, "--entrypoint", "sh", "with-plugin", "-c", command]
    assert docker.docker(*inside).split("\n") == ["472", "it runs"]


class serving:  # noqa: N801 - used as a verb
    """A directory over HTTP on loopback; gives the port."""

    def __init__(self, directory: Path) -> None:
        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments, directory=str(directory))

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Keeps the test's output clean."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever)

    def __enter__(self) -> int:
        self._thread.start()
        return self._server.server_port

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


# ---- the demo profile ------------------------------------------------------------------------------------------------

STAND_IN_FOR_GRAFANA = f"""
FROM {base_image()}
RUN python3 -m venv /venv && /venv/bin/pip install --no-cache-dir duckdb=={READER_VERSION} pyyaml
RUN useradd --uid 472 --gid 0 grafana && install -d -o grafana /var/lib/grafana
COPY plugin_engine.py /
USER 472
ENTRYPOINT ["/venv/bin/python", "/plugin_engine.py", "http", "/etc/grafana/provisioning/datasources/piper.yml", "3000"]
"""
STAND_IN_FOR_PROMETHEUS = f"""
FROM {base_image()}
COPY prometheus promtool /bin/
RUN install -d -o nobody /prometheus
USER nobody
ENTRYPOINT ["/bin/prometheus"]
"""


@pytest.fixture
def stand_ins(docker: Engine, tmp_path: Path) -> None:
    """Images under the names that docker-compose.yml gives those which cannot be had here."""
    for tool in ("prometheus", "promtool"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (prometheus)")
    grafana, prometheus = tmp_path / "grafana", tmp_path / "prometheus"
    grafana.mkdir()
    (grafana / "Dockerfile").write_text(STAND_IN_FOR_GRAFANA)
    shutil.copy(str(plugin_engine.__file__), grafana)
    docker.build("piper-grafana:local", grafana)
    prometheus.mkdir()
    (prometheus / "Dockerfile").write_text(STAND_IN_FOR_PROMETHEUS)
    for tool in ("prometheus", "promtool"):
        shutil.copy(str(shutil.which(tool)), prometheus)
    docker.build("prom/prometheus:local", prometheus)


def test_the_demo_comes_up_whole_and_its_grafana_reads_every_view_and_nothing_else(
    docker: Engine, image: str, stand_ins: None
) -> None:
    if compose_command() is None:
        pytest.skip("Docker Compose is not installed (docker-compose)")
    ports = {name: str(free_port()) for name in ("GRAFANA_PORT", "PROMETHEUS_PORT", "PIPER_METRICS__PORT")}
    env = {**ports, "COMPOSE_PROJECT_NAME": "demo", "PROMETHEUS_IMAGE": "prom/prometheus:local"}
    try:
        docker.compose("--profile", "demo", "up", "--detach", "--no-build", env=env)
        wait_until(lambda: health(docker, container_of(docker, "demo-grafana")) == "healthy")
        assert health(docker, container_of(docker, "demo-piperd")) == "healthy"
        assert health(docker, container_of(docker, "demo-prometheus")) == "healthy"

        def ask(sql: str) -> dict[str, Any]:
            return ask_grafana(ports["GRAFANA_PORT"], sql)

        wait_until(lambda: int(ask("SELECT count(*) FROM silver_events")["rows"][0][0]) > 100)
        wait_until(lambda: int(ask("SELECT count(*) FROM gold_data_quality_daily")["rows"][0][0]) > 0)
        assert {view: ask(f"SELECT count(*) FROM {view}")["error"] for view in VIEWS} == dict.fromkeys(VIEWS)
        for sql, said in REFUSED.items():
            assert said in (ask(sql)["error"] or ""), sql
        wait_until(lambda: is_scraped(ports["PROMETHEUS_PORT"]))
        assert get(ports["PIPER_METRICS__PORT"], "/healthz")["status"] == "ok"
    finally:
        docker.compose("--profile", "demo", "down", "--volumes", "--timeout", str(STOP_SECONDS), env=env, check=False)


REFUSED = {
    "FROM read_text('/etc/passwd')": "file system operations are disabled",
    "FROM glob('/srv/piper/data/*')": "file system operations are disabled",
    "FROM read_text('/var/lib/grafana/grafana.db')": "file system operations are disabled",
    "SET threads = 64": "the configuration has been locked",
    "COPY (SELECT 1) TO '/var/piper/x.csv'": "Read-only file system",
    "COPY (SELECT 1) TO '/srv/piper/data/silver/x.csv'": "Read-only file system",
    "ATTACH '/srv/piper/data/warehouse/x.duckdb' AS x (READ_WRITE)": "Read-only file system",
}


def container_of(docker: Engine, service: str) -> str:
    """The container of a service: every Compose names it differently, and labels it alike."""
    return docker.docker("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.service={service}")


def ask_grafana(port: str, sql: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", data=sql.encode(), timeout=30) as response:
        found = json.load(response)
    assert isinstance(found, dict)
    return found


def get(port: str, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as response:
        found = json.load(response)
    assert isinstance(found, dict)
    return found


def is_scraped(port: str) -> bool:
    """Whether Prometheus has piperd's metrics, under the job that rules and dashboards name."""
    return bool(get(port, "/api/v1/query?query=piper_build_info%7Bjob%3D%22piper%22%7D")["data"]["result"])
