"""The HTTP server of `/metrics`, `/healthz` and `/readyz`, in threads: it answers while the loop is busy.

It trusts no client. One request per connection; the number of connections is bounded (more are told 503); a
connection ends after `timeout_seconds` of silence and after twice that in any case, so a client that
trickles bytes holds nothing. Only GET and HEAD are answered, and no request body is read. Nothing is served
from the disk.
"""

from __future__ import annotations

import errno
import gzip
import json
import socket
import socketserver
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, Final, Self, cast
from urllib.parse import urlsplit

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted

from piper.errors import ConfigError, PiperError, PortInUseError
from piper.ops.health import Health

CONNECTIONS_MAX: Final = 16
TIMEOUT_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.5
"""How often the accepting thread looks for connections that are too old, and for `stop`."""

_STOP_SECONDS: Final = 1.0
_TEXT: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"
_INDEX: Final = b"piper\n\n/metrics  for Prometheus\n/healthz  do the loops turn\n/readyz   may readers rely on it\n"
_BUSY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 21\r\n"
    b"Retry-After: 1\r\nConnection: close\r\n\r\ntoo many connections\n"
)

_log = structlog.get_logger(component="http")


class MetricsServer:
    """Serves `registry` and `health` at `host`:`port` between `start` and `stop`, or inside `with`.

    `port` 0 takes a free port; `server.port` is the real one once started. `host` may be a name, an IPv4 or
    an IPv6 address, or "" for all addresses.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        health: Health,
        *,
        connections_max: int = CONNECTIONS_MAX,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._host = host
        self._wanted_port = port
        self._registry = registry
        self._health = health
        self._connections_max = connections_max
        self._timeout_seconds = timeout_seconds
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port it listens on; before `start`, the one asked for."""
        return int(self._server.server_address[1]) if self._server else self._wanted_port

    @property
    def url(self) -> str:
        """Where it listens, for logs and people."""
        return f"http://{_address(self._host, self.port)}"

    def start(self) -> None:
        """Listen and answer.

        Raises `PortInUseError`, `ConfigError` (not permitted) or `PiperError` (no such address).
        """
        if self._server is not None:
            raise RuntimeError("the metrics server runs already")
        self._server = self._bind()
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), name="piper-http", daemon=True
        )
        self._thread.start()
        _log.info("http_listening", url=self.url)

    def stop(self) -> None:
        """Close the port and every open connection, within two seconds. Stopping twice is fine."""
        server, thread = self._server, self._thread
        self._server = self._thread = None
        if server is None or thread is None:
            return
        server.shutdown()
        server.server_close()
        server.hang_up()
        thread.join(_STOP_SECONDS)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _bind(self) -> _Server:
        where = _address(self._host, self._wanted_port)
        try:
            family, address = _resolve(self._host, self._wanted_port)
            return _Server(family, address, self._registry, self._health, self._connections_max, self._timeout_seconds)
        except OSError as error:
            raise _bind_error(where, error) from error


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host or '*'}:{port}"


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    return family, address


def _bind_error(where: str, error: OSError) -> PiperError:
    if error.errno == errno.EADDRINUSE:
        return PortInUseError(
            f"the metrics address {where} is taken by another process",
            hint="Set PIPER_METRICS__PORT to a free port (0 takes any), or stop what listens there"
            " (`ss -ltnp` names it; another piperd perhaps).",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ConfigError(
            f"piper may not listen on the metrics address {where}: {error.strerror}",
            hint="Set PIPER_METRICS__PORT to a port of 1024 or more.",
        )
    return PiperError(
        f"cannot listen on the metrics address {where}: {error.strerror or error}",
        hint="Set PIPER_METRICS__HOST to an address of this machine: 127.0.0.1, or 0.0.0.0 or :: for all.",
    )


class _Server(socketserver.TCPServer):
    """Accepts, bounds and ages connections; each is answered in a thread of its own."""

    # A restart must not wait for the old connections' TIME_WAIT.
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(
        self,
        family: socket.AddressFamily,
        address: tuple[Any, ...],
        registry: CollectorRegistry,
        health: Health,
        connections_max: int,
        timeout_seconds: float,
    ) -> None:
        self.address_family = family
        self.registry = registry
        self.health = health
        self.timeout_seconds = timeout_seconds
        self._connections_max = connections_max
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        """Open connections, and when each must end (monotonic)."""
        super().__init__(cast(Any, address), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            # Out of file descriptors, most likely. The connection stays in the queue; do not spin on it.
            time.sleep(_POLL_SECONDS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            accepted = len(self._open) < self._connections_max
            if accepted:
                self._open[request] = time.monotonic() + 2 * self.timeout_seconds
        if not accepted:
            self._refuse(request)
            return
        threading.Thread(
            target=self._answer, args=(request, client_address), name="piper-http-connection", daemon=True
        ).start()

    def _answer(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError as error:
            _log.debug("http_connection_lost", error=str(error))
        except Exception:
            # A bug in a collector, say. The thread ends here, so nobody else could tell of it.
            _log.exception("http_request_failed")
        finally:
            self.shutdown_request(request)

    def _refuse(self, request: socket.socket) -> None:
        # The send buffer of a new connection is empty, so this cannot block the accepting thread.
        request.settimeout(0)
        try:
            request.send(_BUSY)
        except OSError as error:
            _log.debug("http_connection_lost", error=str(error))
        _log.warning("http_too_many_connections", connections_max=self._connections_max)
        self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        now = time.monotonic()
        self._hang_up([connection for connection, end in self._connections() if end < now])

    def hang_up(self) -> None:
        """End all connections; their threads see the end of the stream and finish."""
        self._hang_up([connection for connection, _ in self._connections()])

    def _connections(self) -> list[tuple[socket.socket, float]]:
        with self._lock:
            return list(self._open.items())

    def _hang_up(self, connections: list[socket.socket]) -> None:
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                _log.debug("http_connection_lost", error=str(error))

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        # Called inside an except block; the default prints a traceback to stderr.
        _log.exception("http_accept_failed", client=str(client_address))


class _Handler(BaseHTTPRequestHandler):
    """One request. `BaseHTTPRequestHandler` limits the request line to 64 KiB and headers to 100."""

    protocol_version = "HTTP/1.1"
    # What cannot be parsed is answered with a status line too, not in the manner of HTTP/0.9.
    default_request_version = "HTTP/1.0"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.timeout_seconds)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/metrics":
            self._metrics()
        elif path == "/healthz":
            ok, loops = self.server.health.is_alive()
            self._json(ok, {"status": "ok" if ok else "stale", "loops": loops})
        elif path == "/readyz":
            ready, unready = self.server.health.readiness()
            self._json(ready, {"ready": ready, "not_ready": unready})
        elif path == "/":
            self._reply(HTTPStatus.OK, _INDEX)
        else:
            self._reply(HTTPStatus.NOT_FOUND, b"not found\n")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _metrics(self) -> None:
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        body = encode(self.server.registry)
        headers = {"Vary": "Accept, Accept-Encoding"}
        if gzip_accepted(self.headers.get("Accept-Encoding", "")):
            body = gzip.compress(body, compresslevel=1)
            headers["Content-Encoding"] = "gzip"
        self._reply(HTTPStatus.OK, body, content_type, headers)

    def _json(self, ok: bool, answer: dict[str, Any]) -> None:
        status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
        self._reply(status, json.dumps(answer).encode() + b"\n", _JSON)

    def _reply(
        self, status: int, body: bytes, content_type: str = _TEXT, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the base class refuses (a malformed request, another method) in our words."""
        status = HTTPStatus(code)
        headers: dict[str, str] = {}
        if status is HTTPStatus.NOT_IMPLEMENTED:
            # The base class knows no 405: a method without a do_<METHOD> is "not implemented" to it.
            status = HTTPStatus.METHOD_NOT_ALLOWED
            headers["Allow"] = "GET, HEAD"
        _log.debug("http_refused", status=status.value, message=message, explain=explain)
        self._reply(status, f"{status.phrase.lower()}\n".encode(), headers=headers)

    def version_string(self) -> str:
        """The Server header, without the versions that the base class tells everyone."""
        return "piper"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """A scrape every few seconds is not news; the base class would write it to stderr."""
        _log.debug("http_request", message=format % args)
