"""The ground the files stand on: what is no file, what cannot be read, what is known and must not cost anything."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.spool import Spool, numbered, texts

from piper.spool.discover import DEPTH_MAX, is_spool_path, scan_spool
from piper.spool.identity import GUARD_BYTES, HEAD_BYTES, Source, fingerprint
from piper.spool.tail import Tailer
from piper.spool.track import HOT_SECONDS

A, B = "host/user/a.jsonl", "host/user/b.jsonl"
_opened: list[Path] | None = None


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "raw")


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], str | bytes):
        _opened.append(Path(os.fsdecode(arguments[0])))


@contextmanager
def opened_files() -> Iterator[list[Path]]:
    """Names of *.jsonl files that Python opens meanwhile, as they are opened: within their directory."""
    global _opened
    if _opened is None and not getattr(_audit, "is_hooked", False):
        sys.addaudithook(_audit)  # for ever: there is no way to remove one
        _audit.is_hooked = True  # type: ignore[attr-defined]
    _opened, found = [], []
    try:
        yield found
    finally:
        found += [path for path in _opened if path.suffix == ".jsonl"]
        _opened = None


# ---- what is no regular file ---------------------------------------------------------------------------------------


def test_what_is_no_regular_file_is_reported_once_and_never_opened(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.append(A, numbered(0, 1))
    user = spool.root / "host/user"
    outside = tmp_path / "outside"
    (outside / "user").mkdir(parents=True)
    (outside / "user/secret.jsonl").write_bytes(b'{"secret": 1}\n')
    os.mkfifo(user / "pipe.jsonl")
    monkeypatch.chdir(user)  # the name of a socket is at most 108 bytes long
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jsonl")
    (user / "directory.jsonl").mkdir()
    (user / "directory.jsonl/inner.jsonl").write_bytes(b"{}\n")
    (user / "link.jsonl").symlink_to(outside / "user/secret.jsonl")
    (user / "loop.jsonl").symlink_to("loop.jsonl")
    (spool.root / "linked").symlink_to(outside)
    (spool.root / "host/linked").symlink_to(outside / "user")
    (spool.root / "host/stray.jsonl").write_bytes(b"{}\n")
    specials = {
        "host/user/pipe.jsonl", "host/user/socket.jsonl", "host/user/directory.jsonl", "host/user/link.jsonl",
        "host/user/loop.jsonl", "linked", "host/linked", "host/stray.jsonl",
    }  # fmt: skip
    assert {os.fsdecode(path) for path in spool.scan().special} == specials
    with opened_files() as opened:
        spool.scan()
        for path in [*specials, "linked/user/secret.jsonl", "host/linked/secret.jsonl"]:
            spool.tailer.look(path.encode())
        spool.tailer.look(b"host/user/directory.jsonl/inner.jsonl")
        spool.tailer.look(b"host/user/../user/a.jsonl")
        spool.tailer.look(b"host/user/\0.jsonl")
        assert spool.ingest() == texts(0, 1)
    assert opened == [Path("a.jsonl")]
    assert spool.events == {"special": len(specials)}
    assert len(spool.tailer) == 1


def test_a_file_that_becomes_a_link_or_a_pipe_between_two_looks_is_left_alone(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b'{"secret": 1}\n')
    for name in (A, B):
        spool.append(name, numbered(0, 1))
    spool.scan()
    for name in (A, B):
        spool.delete(name)
    spool.path(A).symlink_to(tmp_path / "secret")
    os.mkfifo(spool.path(B))
    assert spool.ingest() == []
    spool.scan()
    assert spool.events == {"special": 2}
    for name in (A, B):
        spool.delete(name)
    spool.append(A, numbered(5, 6))
    assert spool.pass_through() == texts(5, 6)


def test_a_directory_that_becomes_a_link_hides_its_files_and_shows_no_others(spool: Spool, tmp_path: Path) -> None:
    spool.append(A, numbered(0, 1))
    spool.append("other/user/b.jsonl", b"\n")
    spool.pass_through()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/a.jsonl").write_bytes(b'{"secret": 1}\n')
    (spool.root / "host/user").rename(tmp_path / "away")
    (spool.root / "host/user").symlink_to(tmp_path / "outside")
    spool.tailer.look(A.encode())
    spool.tailer.poll()
    assert spool.believe() == []
    assert spool.texts == [*texts(0, 1), b""]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"host/user/a.jsonl", True),
        (b"host.jsonl/user.jsonl/a.jsonl", True),
        (b"host/user/" + b"d/" * (DEPTH_MAX - 2) + b"a.jsonl", True),
        (b"host/user/" + b"d/" * (DEPTH_MAX - 1) + b"a.jsonl", False),
        (b"host/user/x.jsonl/a.jsonl", False),
        (b"host/a.jsonl", False),
        (b"host/user/a.json", False),
        (b"/host/user/a.jsonl", False),
    ],
)
def test_hints_and_scans_agree_on_what_is_input(tmp_path: Path, path: bytes, expected: bool) -> None:
    file = tmp_path / os.fsdecode(path).lstrip("/")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"\n")
    assert is_spool_path(path) is expected
    assert (path in scan_spool(str(tmp_path)).files) is expected


# ---- what cannot be read -------------------------------------------------------------------------------------------

AS_NOBODY = """
import os, sys
from pathlib import Path
from tests.support.spool import Spool, numbered, texts
root = Path(sys.argv[1])
if os.geteuid() == 0:  # for whom every mode is readable
    os.chown(root.parent, 65534, 65534)
    os.setgid(65534); os.setuid(65534)
spool = Spool(root)
a, b, c = "host/user/a.jsonl", "host/locked/b.jsonl", "host/user/c.jsonl"
spool.append(a, numbered(0, 1)); spool.append(b, numbered(0, 2)); spool.append(c, b"cut")
os.chmod(spool.path(a), 0)
assert spool.pass_through() == texts(0, 2)
for _ in range(5):
    spool.tailer.poll(); spool.ingest(); spool.pass_through()
assert spool.events == {"io_error": 1}, spool.events
os.chmod(spool.path(a), 0o600)
assert spool.pass_through() == texts(0, 1)
spool.append(b, numbered(2, 4))
spool.rename(c, "host/user/d"); spool.append(c, b"\\n")     # c is displaced, and may be in the locked directory now
os.chmod(spool.path("host/locked"), 0)
for _ in range(10):
    assert spool.believe() in ([], [b""])
    assert spool.tailer.spool_error == ""
    spool.restart()
assert "vanished" not in spool.events and spool.skips == []
os.chmod(spool.path("host/locked"), 0o700)
assert spool.pass_through() == texts(2, 4)
os.chmod(root, 0)
spool.scan()
assert "Permission denied" in spool.tailer.spool_error
os.chmod(root, 0o700)
spool.believe()
assert spool.rejected() == [("truncated_line", 0, 3, b"cut")]
"""


def test_what_may_not_be_read_is_reported_once_and_keeps_its_state() -> None:
    """In a process of its own, which gives up root's rights, and in a directory that is not below one of root's."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-c", AS_NOBODY, f"{directory}/raw"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr


# ---- what costs nothing --------------------------------------------------------------------------------------------


def test_files_that_are_known_and_unchanged_are_not_opened(spool: Spool) -> None:
    for number in range(500):
        spool.append(f"host/user{number % 5}/{number}.jsonl", numbered(0, 3))
    spool.pass_through()
    spool.restart()
    spool.append("host/user0/0.jsonl", numbered(3, 4))
    with opened_files() as opened:
        assert spool.pass_through() == texts(3, 4)
        spool.tailer.poll()
        assert spool.ingest() == []
    assert set(opened) == {Path("0.jsonl")}


def test_a_hundred_thousand_known_files_are_taken_up_without_opening_one(tmp_path: Path) -> None:
    """None of them is on this disk: taking up the manifest's states asks the file system nothing."""
    (tmp_path / "host/user").mkdir(parents=True)
    (tmp_path / "host/user/a.jsonl").write_bytes(b"\n")
    guard = fingerprint(b"x" * GUARD_BYTES)
    known = [
        Source(
            b"host/user/%d.jsonl" % number, 1, number, number, offset=5000, lines=9, size=5000, mtime_ns=1,
            head_bytes=HEAD_BYTES, head=guard, guard_bytes=GUARD_BYTES, guard=guard,
        )
        for number in range(1, 100_001)
    ]  # fmt: skip
    with opened_files() as opened:
        tailer = Tailer(tmp_path, Spool(tmp_path).limits, monotonic=lambda: 1.0, utc=lambda: 1.8e9, sources=known)
        tailer.poll()
    assert opened == []
    assert not tailer.ready
    assert len(tailer) == 100_000


def test_polls_look_at_hot_files_only_and_scans_find_the_others(spool: Spool) -> None:
    spool.append(A, numbered(0, 1))
    spool.append(B, numbered(0, 1))
    os.utime(spool.path(B), (1.0, 1.0))
    spool.clock.utc_now = spool.path(A).stat().st_mtime
    spool.pass_through()
    with opened_files() as opened:
        spool.tailer.poll()
    assert opened == [Path("a.jsonl")]
    spool.append(A, numbered(1, 2))
    spool.append(B, numbered(1, 2))
    spool.tailer.poll()
    spool.ingest()
    assert [line.path for line in spool.lines[2:]] == [A]
    spool.pass_through()
    assert [line.path for line in spool.lines[2:]] == [A, B]
    spool.clock.pass_seconds(HOT_SECONDS + 1)
    with opened_files() as opened:
        spool.tailer.poll()
    assert opened == []


def test_an_idle_spool_writes_nothing(spool: Spool) -> None:
    spool.append(A, numbered(0, 3) + b"cut")
    spool.pass_through()
    for _ in range(5):
        spool.scan()
        spool.tailer.poll()
        spool.tailer.look(A.encode())
        assert not spool.gather()
        spool.clock.pass_seconds(60)
    spool.restart()
    spool.scan()
    batch = spool.gather()
    assert not batch, "the cut line was looked at again, and is no news"
    assert batch.bytes == 0, "and a batch cannot be full of such lines"


def test_a_hint_of_a_new_file_needs_no_scan(spool: Spool) -> None:
    spool.append("host/user/deep/er/a.jsonl", numbered(0, 3))
    spool.tailer.look(b"host/user/deep/er/a.jsonl")
    assert spool.ingest() == texts(0, 3)
    assert spool.pass_through() == []
