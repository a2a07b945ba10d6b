"""The control channel: how a command asks the running daemon, as only one process may hold the manifest.

A unix stream socket, `state/control.sock`, mode 0600: who may connect is who may write the data root. One
request per connection, one JSON value a line:

    → {"command": "backfill", "args": {...}}
    ← {"progress": {...}}                     as often as it likes
    ← {"result": {...}}                       or {"error": {"message": "...", "hint": "..."}}, once

A command that began is not bound to its client: when the client goes away (a closed terminal, Ctrl-C), the
daemon carries on and only the answer is lost. If the daemon dies, the client gets a `ControlError`; what
the command had committed by then stays.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import anyio
import orjson
import structlog
from anyio.abc import SocketListener, SocketStream, TaskGroup, TaskStatus
from anyio.streams.buffered import BufferedByteReceiveStream

from piper.errors import ControlError, PiperError

REQUEST_BYTES_MAX: Final = 64 * 1024
ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
CLIENTS_MAX: Final = 8
CLIENT_SECONDS: Final = 5.0
"""What a client has to send its request, and to take each line of the answer."""

LOOK_SECONDS: Final = 5.0
"""How often the daemon looks whether its socket is still there."""

_ACCEPT_PAUSE_SECONDS: Final = 0.1
_FAREWELL_SECONDS: Final = 1.0

Progress = Callable[[Mapping[str, Any]], Awaitable[None]]
"""Sends one progress line. Never fails: without a client (any more) it does nothing."""

Handler = Callable[[dict[str, Any], Progress], Awaitable[Mapping[str, Any]]]
"""A command: args and progress in, result out. `PiperError` is the way to refuse; the client is shown it.

Another exception is a bug or a broken environment: the client is told, and it ends `serve_control` as it
would end any other task of the daemon.
"""

_log = structlog.get_logger(component="control")


class DaemonNotRunningError(ControlError):
    """No daemon listens: there is no socket, or the one that made it is dead."""


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of `path` that fits a socket address (108 bytes) however deep the data root is.

    A descriptor of the folder stands for its path; it must stay open while the name is used.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


# --- the daemon's side ---


async def serve_control(
    path: Path, handlers: Mapping[str, Handler], *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Answer commands at `path` until cancelled; then running commands are cancelled and the file is removed.

    Only the process that holds the manifest's lock may call it, and it must end before the lock is given
    up: a socket that exists is therefore a dead daemon's, and is replaced. One that somebody removes is made
    again. Reports `started` when clients can connect. Raises `ControlError` when the socket cannot be made at
    first (no permission, a file system without sockets).
    """
    slots = anyio.CapacityLimiter(CLIENTS_MAX)
    has_listened = False
    async with anyio.create_task_group() as clients:
        while True:
            try:
                async with _listening(path) as (listener, made), anyio.create_task_group() as accepting:
                    accepting.start_soon(_accept, listener, clients, handlers, slots)
                    _log.info("control_listening", path=str(path))
                    if not has_listened:
                        task_status.started()
                    has_listened = True
                    while _is_ours(path, made):
                        await anyio.sleep(LOOK_SECONDS)
                    _log.warning("control_socket_lost", path=str(path))
                    accepting.cancel_scope.cancel()
            except ControlError:
                if not has_listened:
                    raise
                await anyio.sleep(LOOK_SECONDS)  # its folder is gone: the writer knows, and says so


async def _accept(
    listener: SocketListener, clients: TaskGroup, handlers: Mapping[str, Handler], slots: anyio.CapacityLimiter
) -> None:
    while True:
        try:
            stream = await listener.accept()
        except anyio.BrokenResourceError as error:
            # Out of file descriptors, most likely. The client waits in the queue; do not spin on it.
            _log.warning("control_accept_failed", error=str(error.__cause__ or error))
            await anyio.sleep(_ACCEPT_PAUSE_SECONDS)
            continue
        clients.start_soon(_serve_client, stream, handlers, slots)


@asynccontextmanager
async def _listening(path: Path) -> AsyncIterator[tuple[SocketListener, os.stat_result]]:
    """A listener at `path` that others could not open, not for an instant, and its file, which goes at the end.

    `bind` makes the file with the mode that the umask leaves, and the umask belongs to all threads:
    narrowing it here would narrow files that others make meanwhile. So the socket is made in a folder that
    only we can enter, and moved into place once it has its mode and listens; the move also replaces a dead
    daemon's socket. If we die before the move, the folder stays, and the next start uses it again.
    """
    private = path.parent / f".{path.name}.new"
    try:
        private.mkdir(mode=0o700, exist_ok=True)
        private.chmod(0o700)
        with _short(private / path.name) as name:
            listener = await anyio.create_unix_listener(name, mode=0o600)
    except OSError as error:
        raise _cannot_listen(path, error) from error
    try:
        try:
            (private / path.name).replace(path)
            private.rmdir()
        except OSError as error:
            raise _cannot_listen(path, error) from error
        made = path.stat()
        try:
            yield listener, made
        finally:
            _remove(path, made)
    finally:
        with anyio.CancelScope(shield=True):
            await listener.aclose()


def _remove(path: Path, made: os.stat_result) -> None:
    """Remove our socket; one that someone else put there since is left alone."""
    with contextlib.suppress(OSError):  # a mount that is gone took it along
        if _is_ours(path, made):
            path.unlink()


def _is_ours(path: Path, made: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), made)
    except OSError:
        return False


def _cannot_listen(path: Path, error: OSError) -> ControlError:
    return ControlError(
        f"cannot make the control socket {path}: {error.strerror or error}",
        hint="Its folder must be writable, on a file system that can hold sockets."
        " PIPER_PATHS__STATE_ROOT can name a local folder.",
    )


class _Client:
    """The answering half of a connection. A client that went away, or takes no bytes, is written off."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._gone = False

    async def send(self, answer: Mapping[str, Any]) -> None:
        if self._gone:
            return
        line = orjson.dumps(answer, default=str, option=orjson.OPT_APPEND_NEWLINE)
        try:
            with anyio.fail_after(CLIENT_SECONDS):
                await self._stream.send(line)
        except (TimeoutError, anyio.BrokenResourceError) as error:
            self._gone = True
            _log.info("control_client_gone", error=str(error) or type(error).__name__)

    async def progress(self, news: Mapping[str, Any]) -> None:
        await self.send({"progress": news})

    async def refuse(self, error: PiperError) -> None:
        _log.warning("control_refused", message=error.message)
        await self.send({"error": {"message": error.message, "hint": error.hint}})


async def _serve_client(stream: SocketStream, handlers: Mapping[str, Handler], slots: anyio.CapacityLimiter) -> None:
    async with stream:
        client = _Client(stream)
        try:
            slots.acquire_nowait()
        except anyio.WouldBlock:
            await client.refuse(ControlError(f"piperd serves {CLIENTS_MAX} commands already", hint="Try again later."))
            return
        try:
            command, args = await _receive_request(stream)
            await _run(client, command, args, handlers)
        except PiperError as error:
            await client.refuse(error)
        except (anyio.IncompleteRead, anyio.BrokenResourceError):
            _log.debug("control_client_gone", error="it left before it had asked")
        finally:
            slots.release()


async def _receive_request(stream: SocketStream) -> tuple[str, dict[str, Any]]:
    """The command and its args. Raises `ControlError` for what is not a request."""
    try:
        with anyio.fail_after(CLIENT_SECONDS):
            line = await BufferedByteReceiveStream(stream).receive_until(b"\n", REQUEST_BYTES_MAX)
    except TimeoutError:
        raise ControlError(f"no request came within {CLIENT_SECONDS:g} seconds") from None
    except anyio.DelimiterNotFound:
        raise ControlError(f"the request is longer than {REQUEST_BYTES_MAX} bytes") from None
    try:
        request = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ControlError(f"the request is not JSON: {error}") from None
    match request:
        case {"command": str(command), **rest} if isinstance(args := rest.get("args", {}), dict):
            return command, args
    raise ControlError('the request must be {"command": "...", "args": {...}}')


async def _run(client: _Client, command: str, args: dict[str, Any], handlers: Mapping[str, Handler]) -> None:
    handler = handlers.get(command)
    if handler is None:
        raise ControlError(
            f"this piperd does not know the command {command!r}, only {', '.join(sorted(handlers))}",
            hint="If piper was upgraded, restart piperd so that both are of one version.",
        )
    _log.info("control_command", command=command, args=args)
    try:
        result = await handler(args, client.progress)
    except PiperError:
        raise
    except anyio.get_cancelled_exc_class():
        with anyio.move_on_after(_FAREWELL_SECONDS, shield=True):
            await client.refuse(
                ControlError(f"piperd stopped before {command!r} was done", hint="Start piperd, then ask again.")
            )
        raise
    except Exception as error:
        message = f"{command!r} failed inside piperd: {type(error).__name__}: {error}"
        await client.refuse(ControlError(message, hint="The daemon's log says where: journalctl -u piperd."))
        raise
    await client.send({"result": result})
    _log.info("control_command_done", command=command)


# --- the command's side ---


def ask(
    path: Path,
    command: str,
    args: Mapping[str, Any] | None = None,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    *,
    timeout_seconds: float | None = 60.0,
) -> dict[str, Any]:
    """Have the daemon that listens at `path` run `command`; returns its result.

    `timeout_seconds` is the longest silence to bear, between one line and the next (None: any); the command
    goes on in the daemon after it. Raises `DaemonNotRunningError` when nobody listens, `ControlError` for
    all else.
    """
    request = orjson.dumps({"command": command, "args": args or {}}, option=orjson.OPT_APPEND_NEWLINE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_seconds)
        _connect(connection, path)
        # A daemon that refuses may hang up before it reads: what it said is still there to be read. One that
        # takes no bytes sends none either, which the first read tells.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
            connection.sendall(request)
        with connection.makefile("rb") as lines:
            while True:
                answer = _next_answer(lines, command, timeout_seconds)
                if "result" in answer:
                    return dict(answer["result"])
                if "error" in answer:
                    raise ControlError(answer["error"]["message"], hint=answer["error"]["hint"])
                if on_progress is not None:
                    on_progress(answer["progress"])


def _connect(connection: socket.socket, path: Path) -> None:
    try:
        with _short(path) as name:
            connection.connect(name)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise DaemonNotRunningError(
            f"piperd is not running: nobody listens on {path}",
            hint="Start it with `systemctl start piperd`, or run `piperd`.",
        ) from error
    except OSError as error:
        raise ControlError(
            f"cannot connect to piperd at {path}: {error.strerror or error}",
            hint="Run the command as the user that piperd runs as.",
        ) from error


def _next_answer(lines: BinaryIO, command: str, timeout_seconds: float | None) -> dict[str, Any]:
    try:
        line = lines.readline(ANSWER_BYTES_MAX)
    except TimeoutError:
        raise ControlError(
            f"piperd was silent for {timeout_seconds:g} seconds after it was asked for {command!r}",
            hint="It may still be at work: see its log (journalctl -u piperd).",
        ) from None
    except ConnectionResetError:
        line = b""
    if not line:
        raise ControlError(
            f"piperd ended before it had answered {command!r}",
            hint="See its log (journalctl -u piperd), then ask again.",
        )
    try:
        answer = orjson.loads(line)
    except orjson.JSONDecodeError:
        answer = None
    if not (isinstance(answer, dict) and answer.keys() & {"progress", "result", "error"}):
        raise ControlError(
            f"piperd answered {command!r} with something that piper does not understand",
            hint="Restart piperd so that both are of one version.",
        )
    return answer
