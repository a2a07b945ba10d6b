from __future__ import annotations

import gzip
import http.client
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from structlog.testing import capture_logs

from piper.errors import PiperError, PortInUseError
from piper.ops.health import Health
from piper.ops.http import MetricsServer
from piper.ops.metrics import Metrics

DEADLINE_SECONDS = 20.0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        threading.Event().wait(0.01)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def health() -> Health:
    return Health(conditions=("spool",))


@pytest.fixture
def server(metrics: Metrics, health: Health) -> Iterator[MetricsServer]:
    with MetricsServer("127.0.0.1", 0, metrics.registry, health) as running:
        yield running


def get(
    server: MetricsServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(server.url + path, headers=names, method=method)
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def connect(server: MetricsServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_SECONDS)


def read_all(connection: socket.socket) -> bytes:
    chunks = []
    try:
        while chunk := connection.recv(65536):
            chunks.append(chunk)
    except ConnectionResetError:
        pass
    return b"".join(chunks)


def test_a_scrape_gives_the_present_numbers_in_the_text_format(server: MetricsServer, metrics: Metrics) -> None:
    metrics.lines_quarantined("invalid_json", 4)
    status, headers, body = get(server, "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    samples = {(s.name, s.labels.get("reason")): s.value for f in parse_text(body.decode()) for s in f.samples}
    assert samples["piper_lines_quarantined_total", "invalid_json"] == 4


def test_a_scrape_gives_openmetrics_and_gzip_to_those_who_ask(server: MetricsServer, metrics: Metrics) -> None:
    metrics.ingest_lag([0.1, 3.0])
    status, headers, body = get(
        server, "/metrics", Accept="application/openmetrics-text; version=1.0.0", Accept_Encoding="gzip"
    )
    assert (status, headers["Content-Encoding"]) == (200, "gzip")
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    families = {family.name: family for family in parse_openmetrics(gzip.decompress(body).decode())}
    assert families["piper_ingest_lag_seconds"].type == "histogram"
    assert families["piper_lost_bytes"].type == "counter"


def test_promtool_finds_nothing_to_complain_about(server: MetricsServer, metrics: Metrics) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on PATH")
    metrics.batch_committed({"publish": 3}, 0.01)
    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input=get(server, "/metrics")[2],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (checked.returncode, checked.stdout.decode() + checked.stderr.decode()) == (0, "")


def test_health_is_200_while_loops_turn_and_503_when_one_hangs(metrics: Metrics) -> None:
    now = [0.0]
    health = Health(limits={"ingest": 60.0}, monotonic=lambda: now[0])
    with MetricsServer("127.0.0.1", 0, metrics.registry, health) as server:
        health.beat("ingest")
        status, headers, body = get(server, "/healthz")
        assert (status, headers["Content-Type"], json.loads(body)["status"]) == (
            200,
            "application/json",
            "ok",
        )
        now[0] = 61.0
        status, _, body = get(server, "/healthz")
        assert status == 503
        assert json.loads(body) == {
            "status": "stale",
            "loops": [{"loop": "ingest", "ok": False, "silent_seconds": 61.0, "limit_seconds": 60.0}],
        }


def test_readiness_gives_its_reasons(server: MetricsServer, health: Health) -> None:
    health.set_not_ready("spool", "the mount is gone")
    status, _, body = get(server, "/readyz")
    assert status == 503
    [unready] = json.loads(body)["not_ready"]
    assert (unready["condition"], unready["reason"]) == ("spool", "the mount is gone")
    health.set_ready("spool")
    status, _, body = get(server, "/readyz")
    assert (status, json.loads(body)) == (200, {"ready": True, "not_ready": []})


def test_the_root_lists_what_there_is_and_all_else_is_404(server: MetricsServer) -> None:
    status, _, body = get(server, "/")
    assert status == 200
    assert all(path in body for path in (b"/metrics", b"/healthz", b"/readyz"))
    assert get(server, "/../../etc/passwd")[0] == 404
    assert get(server, "/metrics/")[0] == 404
    assert get(server, "/readyz?verbose=1")[0] == 503


def test_head_has_the_headers_of_get_and_no_body(server: MetricsServer) -> None:
    _, of_get, body = get(server, "/")
    status, of_head, nothing = get(server, "/", "HEAD")
    assert (status, nothing) == (200, b"")
    assert of_head["Content-Length"] == of_get["Content-Length"] == str(len(body))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_other_methods_are_405_and_told_what_is_allowed(server: MetricsServer, method: str) -> None:
    status, headers, _ = get(server, "/metrics", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_no_answer_tells_the_version_of_python(server: MetricsServer) -> None:
    for path, method in (("/", "GET"), ("/nothing", "GET"), ("/", "POST")):
        _, headers, body = get(server, path, method)
        assert headers["Server"] == "piper"
        assert b"Python" not in body


def test_nonsense_instead_of_a_request_is_refused_without_noise(
    server: MetricsServer, capfd: pytest.CaptureFixture[str]
) -> None:
    with capture_logs():
        with connect(server) as connection:
            connection.sendall(b"\x16\x03\x01 what is this\r\n\r\n")
            assert b"400" in read_all(connection)
        with connect(server) as connection:
            connection.sendall(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n")
            assert b" 414 " in read_all(connection)
        with connect(server) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n")
            assert b" 431 " in read_all(connection)
        assert get(server, "/")[0] == 200
    assert capfd.readouterr().err == ""


def test_silent_clients_are_cut_off_and_make_room(metrics: Metrics, health: Health) -> None:
    with MetricsServer("127.0.0.1", 0, metrics.registry, health, connections_max=2, timeout_seconds=0.2) as server:
        with connect(server) as first, connect(server) as second:
            assert read_all(first) == b""
            assert read_all(second) == b""
        until(lambda: get(server, "/")[0] == 200)


def test_a_client_that_trickles_bytes_is_cut_off_too(metrics: Metrics, health: Health) -> None:
    with (
        MetricsServer("127.0.0.1", 0, metrics.registry, health, timeout_seconds=1.0) as server,
        connect(server) as trickler,
    ):
        trickler.sendall(b"GET / HTTP/1.1\r\n")
        trickler.settimeout(0.05)

        def is_cut() -> bool:
            try:
                trickler.sendall(b"X: y\r\n"[:1])
                return trickler.recv(1) == b""
            except TimeoutError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                return True

        until(is_cut)


def test_more_connections_than_the_bound_are_told_503_at_once(metrics: Metrics, health: Health) -> None:
    with MetricsServer("127.0.0.1", 0, metrics.registry, health, connections_max=3) as server:
        holders = [connect(server) for _ in range(3)]
        try:
            with capture_logs() as logs, connect(server) as one_more:
                answer = read_all(one_more)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert answer.endswith(b"\r\n\r\ntoo many connections\n")
            assert logs[-1]["event"] == "http_too_many_connections"
        finally:
            for holder in holders:
                holder.close()
        until(lambda: get(server, "/")[0] == 200)


def test_stop_ends_open_connections_and_frees_the_port(metrics: Metrics, health: Health) -> None:
    server = MetricsServer("127.0.0.1", 0, metrics.registry, health, timeout_seconds=600)
    server.start()
    port = server.port
    with connect(server) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert get(server, "/")[0] == 200
        server.stop()
        assert read_all(slow) == b""
    server.stop()
    with MetricsServer("127.0.0.1", port, metrics.registry, health) as again:
        assert get(again, "/")[0] == 200


def test_a_port_in_use_is_named_with_what_to_do(server: MetricsServer, metrics: Metrics, health: Health) -> None:
    second = MetricsServer("127.0.0.1", server.port, metrics.registry, health)
    with pytest.raises(PortInUseError) as caught:
        second.start()
    assert f"127.0.0.1:{server.port}" in caught.value.message
    assert "PIPER_METRICS__PORT" in caught.value.hint
    second.stop()


@pytest.mark.parametrize("host", ["host.invalid", "192.0.2.1"])
def test_a_host_that_is_not_this_machine_is_an_error_that_says_so(host: str, metrics: Metrics, health: Health) -> None:
    with pytest.raises(PiperError) as caught:
        MetricsServer(host, 0, metrics.registry, health).start()
    assert host in caught.value.message
    assert "PIPER_METRICS__HOST" in caught.value.hint


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
def test_it_listens_on_ipv6(metrics: Metrics, health: Health) -> None:
    with MetricsServer("::1", 0, metrics.registry, health) as server:
        assert server.url == f"http://[::1]:{server.port}"
        assert get(server, "/")[0] == 200


def test_a_collector_that_fails_costs_its_scrape_and_not_the_server(health: Health) -> None:
    class Broken:
        def collect(self) -> list[object]:
            raise RuntimeError("no numbers today")

    registry = CollectorRegistry()
    registry.register(Broken())  # type: ignore[arg-type]
    with MetricsServer("127.0.0.1", 0, registry, health) as server, capture_logs() as logs:
        with connect(server) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert read_all(connection) == b""
        assert get(server, "/healthz")[0] == 200
    assert "http_request_failed" in [entry["event"] for entry in logs]
