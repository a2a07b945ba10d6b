from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from piper.errors import ControlError, DataRootError
from piper.ops import control
from piper.ops.control import DaemonNotRunningError, Handler, Progress, ask, serve_control

DEADLINE_SECONDS = 20.0


async def echo(args: dict[str, Any], progress: Progress) -> Mapping[str, Any]:
    return {"args": args}


async def count(args: dict[str, Any], progress: Progress) -> Mapping[str, Any]:
    for n in range(args["to"]):
        await progress({"n": n, "at": Path("2026-01-01")})
    return {"counted": args["to"]}


async def refuse(args: dict[str, Any], progress: Progress) -> Mapping[str, Any]:
    raise DataRootError("the disk is full", hint="Make room.")


HANDLERS: dict[str, Handler] = {"echo": echo, "count": count, "refuse": refuse}


@contextlib.contextmanager
def daemon(path: Path, handlers: Mapping[str, Handler] = HANDLERS) -> Iterator[Callable[[], None]]:
    """A control channel in an event loop of its own; gives what stops it."""
    with start_blocking_portal() as portal:

        async def serve(*, task_status: anyio.abc.TaskStatus[anyio.CancelScope]) -> None:
            async with anyio.create_task_group() as group:
                await group.start(serve_control, path, handlers)
                task_status.started(group.cancel_scope)

        future, scope = portal.start_task(serve)

        def stop() -> None:
            portal.call(scope.cancel)
            future.result(DEADLINE_SECONDS)

        try:
            yield stop
        finally:
            portal.call(scope.cancel)
        future.result(DEADLINE_SECONDS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


def raw(path: Path, sent: bytes) -> list[dict[str, Any]]:
    """What a client gets that sends `sent` and nothing more."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(DEADLINE_SECONDS)
        connection.connect(str(path))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
        answers: list[dict[str, Any]] = []
        # The end is a reset instead of an end of file where the daemon left bytes unread.
        with connection.makefile("rb") as lines, contextlib.suppress(ConnectionResetError):
            answers.extend(json.loads(line) for line in lines)
        return answers


def test_a_command_gets_its_args_and_gives_its_result(path: Path) -> None:
    with daemon(path):
        assert ask(path, "echo", {"start": "2026-01-01", "ü": [1, None]}) == {
            "args": {"start": "2026-01-01", "ü": [1, None]}
        }
        assert ask(path, "echo") == {"args": {}}


def test_progress_arrives_in_order_and_before_the_result(path: Path) -> None:
    seen: list[dict[str, Any]] = []
    with daemon(path):
        assert ask(path, "count", {"to": 500}, seen.append) == {"counted": 500}
        assert ask(path, "count", {"to": 3}) == {"counted": 3}
    assert [news["n"] for news in seen] == list(range(500))


def test_what_the_daemon_refuses_is_told_with_its_hint(path: Path) -> None:
    with daemon(path):
        with pytest.raises(ControlError) as caught:
            ask(path, "refuse")
        assert (caught.value.message, caught.value.hint) == ("the disk is full", "Make room.")
        assert not isinstance(caught.value, DaemonNotRunningError)
        with pytest.raises(ControlError, match="'explode', only count, echo, refuse"):
            ask(path, "explode")
        assert ask(path, "echo") == {"args": {}}


def test_it_works_where_the_path_is_longer_than_a_socket_address(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 100) / ("e" * 100) / "control.sock"
    path.parent.mkdir(parents=True)
    assert len(str(path)) > 200
    with daemon(path):
        assert ask(path, "echo", {"a": 1}) == {"args": {"a": 1}}
    assert list(path.parent.iterdir()) == []


def test_only_the_owner_may_open_the_socket_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        with daemon(path):
            mode = path.lstat().st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
            assert [entry.name for entry in path.parent.iterdir()] == ["control.sock"]
    finally:
        os.umask(before)


def test_nobody_listening_is_told_apart_from_a_refusal(path: Path) -> None:
    with pytest.raises(DaemonNotRunningError, match=r"piperd is not running.*control\.sock"):
        ask(path, "echo")
    with pytest.raises(DaemonNotRunningError):
        ask(path.parent / "no" / "such" / "folder.sock", "echo")


def test_the_socket_of_a_dead_daemon_is_not_running_and_is_replaced_by_the_next(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    leftover = path.parent / ".control.sock.new"
    leftover.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(leftover / path.name))
    with pytest.raises(DaemonNotRunningError):
        ask(path, "echo")
    with daemon(path):
        assert ask(path, "echo") == {"args": {}}
        assert not leftover.exists()


def test_the_file_is_removed_at_the_end_and_the_channel_can_be_opened_again(path: Path) -> None:
    for _ in range(2):
        with daemon(path):
            assert ask(path, "echo") == {"args": {}}
        assert not path.exists()
        with pytest.raises(DaemonNotRunningError):
            ask(path, "echo")


def test_a_daemon_that_stops_says_so_to_the_client_of_a_running_command(path: Path) -> None:
    begun = threading.Event()

    async def hang(args: dict[str, Any], progress: Progress) -> Mapping[str, Any]:
        await progress({"begun": True})
        await anyio.sleep_forever()
        return {}

    with daemon(path, {"hang": hang}) as stop:
        failures: list[ControlError] = []

        def client() -> None:
            try:
                ask(path, "hang", on_progress=lambda _: begun.set(), timeout_seconds=DEADLINE_SECONDS)
            except ControlError as error:
                failures.append(error)

        thread = threading.Thread(target=client)
        thread.start()
        assert begun.wait(DEADLINE_SECONDS)
        stop()
        thread.join(DEADLINE_SECONDS)
    assert [failure.message for failure in failures] == ["piperd stopped before 'hang' was done"]


def test_a_command_goes_on_when_its_client_goes_away(path: Path) -> None:
    gone, done = threading.Event(), threading.Event()

    async def work(args: dict[str, Any], progress: Progress) -> Mapping[str, Any]:
        await progress({"begun": True})
        await anyio.to_thread.run_sync(gone.wait, DEADLINE_SECONDS)
        for n in range(100):
            await progress({"n": n})
        done.set()
        return {}

    def leave(news: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with daemon(path, {"work": work, "echo": echo}):
        with pytest.raises(KeyboardInterrupt):
            ask(path, "work", on_progress=leave)
        gone.set()
        assert done.wait(DEADLINE_SECONDS)
        assert ask(path, "echo") == {"args": {}}


def test_a_silent_daemon_is_not_waited_for_for_ever(path: Path) -> None:
    release = threading.Event()

    async def brood(args: dict[str, Any], progress: Progress) -> Mapping[str, Any]:
        await anyio.to_thread.run_sync(release.wait, DEADLINE_SECONDS)
        return {}

    with daemon(path, {"brood": brood}):
        with pytest.raises(ControlError, match=r"silent for 0\.05 seconds"):
            ask(path, "brood", timeout_seconds=0.05)
        release.set()


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (b"backfill please\n", "is not JSON"),
        (b"[1, 2]\n", "the request must be"),
        (b'{"command": 7}\n', "the request must be"),
        (b'{"command": "echo", "args": []}\n', "the request must be"),
        (b"x" * (control.REQUEST_BYTES_MAX + 10), "longer than 65536 bytes"),
    ],
)
def test_what_is_not_a_request_is_answered_with_why(path: Path, sent: bytes, says: str) -> None:
    with daemon(path):
        [answer] = raw(path, sent)
        assert says in answer["error"]["message"]
        assert ask(path, "echo") == {"args": {}}


def test_a_client_that_leaves_without_asking_harms_nobody(path: Path) -> None:
    with daemon(path):
        assert raw(path, b"") == []
        assert raw(path, b'{"command": "ec') == []
        assert ask(path, "echo") == {"args": {}}


def test_more_clients_than_the_bound_are_refused_and_room_comes_back(path: Path) -> None:
    with daemon(path):
        holders = [socket.socket(socket.AF_UNIX) for _ in range(control.CLIENTS_MAX)]
        try:
            for holder in holders:
                holder.connect(str(path))
            with pytest.raises(ControlError, match="serves 8 commands already"):
                ask(path, "echo")
            holders[0].settimeout(DEADLINE_SECONDS)
            holders[0].sendall(b'{"command": "echo"}\n')
            with holders[0].makefile("rb") as lines:
                assert [json.loads(line) for line in lines] == [{"result": {"args": {}}}]
            assert ask(path, "echo") == {"args": {}}
        finally:
            for holder in holders:
                holder.close()


def test_a_bug_in_a_command_is_told_to_its_client_and_ends_the_channel(path: Path) -> None:
    async def buggy(args: dict[str, Any], progress: Progress) -> Mapping[str, Any]:
        return {"never": args["missing"]}

    with (
        pytest.raises(ExceptionGroup) as ended,
        daemon(path, {"buggy": buggy}),
        pytest.raises(ControlError, match="'buggy' failed inside piperd: KeyError"),
    ):
        ask(path, "buggy")
    assert ended.group_contains(KeyError)
    assert not path.exists()


def test_a_folder_that_is_not_there_is_an_error_that_names_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "control.sock"
    with pytest.raises(ExceptionGroup) as failed, daemon(path):
        pass
    assert failed.group_contains(ControlError, match=r"cannot make the control socket .*control\.sock")
