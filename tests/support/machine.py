"""A Debian with systemd as PID 1 and piper installed, booted in a container: where units run for real.

The tree is made by debootstrap from the mirror that this machine uses, and kept in `.cache/`; a boot gets a throw-away
layer over it with the wheel of this checkout in /opt/piper. Needs root. What is missing is told by `why_not`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.polling import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / ".cache" / "machine"
TOOLS = ("debootstrap", "systemd-nspawn", "nsenter", "mount", "chroot")
PACKAGES = "systemd,systemd-sysv,dbus,python3"
PREFIX = "opt/piper"
NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd", "--")
SECONDS = 120.0
"""No command in a machine takes so long."""
SCRIPT = "#!/opt/piper/bin/python\nfrom piper.cli import {function}\n{function}()\n"
SOURCE_LINE = re.compile(r"^deb\s+(?:\[[^]]*\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.*)$", re.MULTILINE)


class CommandFailed(AssertionError):  # noqa: N818 - it fails a test, it is no error of piper's
    """A command that prepares the machine did not work."""


def why_not() -> str:
    """Why no machine can be booted here; empty when one can."""
    if os.geteuid() != 0:
        return "booting systemd in a container needs root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (debootstrap and systemd-container)"
    if _debian() is None:
        return "this is no Debian with an apt source that debootstrap could use"
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
        return "pip is missing, which installs piper into the machine"
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with _layer(Path(scratch), Path("/etc")):
                return ""
        except CommandFailed as error:
            return f"no overlay can be mounted: {error}"


def _debian() -> tuple[str, str] | None:
    """Codename and mirror of this Debian, from its apt sources."""
    release = dict(line.split("=", 1) for line in _text(Path("/etc/os-release")).splitlines() if "=" in line)
    codename = release.get("VERSION_CODENAME", "").strip('"')
    if release.get("ID") != "debian" or not codename:
        return None
    folder = Path("/etc/apt/sources.list.d")
    for path in [Path("/etc/apt/sources.list"), *sorted(folder.glob("*.list"))]:
        for found in SOURCE_LINE.finditer(_text(path)):
            if found["suite"] == codename and "main" in found["components"].split():
                return codename, found["uri"]
    for path in sorted(folder.glob("*.sources")):
        for stanza in _text(path).split("\n\n"):
            fields = dict(re.findall(r"^(\w[\w-]*):\s*(.*)$", stanza, re.MULTILINE))
            if codename in fields.get("Suites", "").split() and "main" in fields.get("Components", "").split():
                return codename, fields["URIs"].split()[0]
    return None


def _text(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.is_file() else ""


def _run(*command: str | Path, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise CommandFailed(f"{command[0]} ended with {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


# ---- the tree --------------------------------------------------------------------------------------------------------


def base_tree() -> Path:
    """A minimal Debian with piper's dependencies in a virtual environment at /opt/piper; made once, then cached."""
    found = _debian()
    assert found is not None
    codename, mirror = found
    dependencies = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    key = hashlib.sha256(json.dumps([codename, PACKAGES, dependencies]).encode()).hexdigest()[:12]
    tree = CACHE / f"{codename}-{key}"
    if not tree.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="making-") as making:
            root = Path(making) / "root"
            _run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", codename, root, mirror)
            _run("chroot", root, "/usr/bin/python3", "-m", "venv", "--without-pip", f"/{PREFIX}")
            _pip_install(root, "--python-version", _python(root), "--only-binary=:all:", *dependencies)
            root.rename(tree)
    return tree


def _python(root: Path) -> str:
    return next((root / PREFIX / "lib").glob("python3.*")).name.removeprefix("python")


def _pip_install(root: Path, *what: str) -> None:
    packages = root / PREFIX / "lib" / f"python{_python(root)}" / "site-packages"
    _run(sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", packages, *what)


@contextmanager
def _layer(scratch: Path, lower: Path) -> Iterator[Path]:
    """`lower`, writable: what is written goes to memory, and away at the end."""
    with ExitStack() as stack:
        _run("mount", "-t", "tmpfs", "-o", "size=2g,mode=755", "piper-machine", scratch)
        stack.callback(_run, "umount", "--lazy", scratch)
        upper, work, root = (scratch / name for name in ("upper", "work", "root"))
        for directory in (upper, work, root):
            directory.mkdir()
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        _run("mount", "-t", "overlay", "-o", options, "overlay", root)
        stack.callback(_run, "umount", "--lazy", root)
        yield root


def _install_piper(root: Path, settings: Mapping[str, str]) -> None:
    """The wheel of this checkout, its commands, and the units as `piper install-units` writes them."""
    with tempfile.TemporaryDirectory() as wheels:
        _run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", wheels, REPOSITORY)
        _pip_install(root, "--no-deps", "--upgrade", *map(str, Path(wheels).glob("*.whl")))
    for name, function in (("piper", "main"), ("piperd", "main_daemon")):
        script = root / PREFIX / "bin" / name
        script.write_text(SCRIPT.format(function=function))
        script.chmod(0o755)
    environment = {"PATH": "/usr/sbin:/usr/bin", "LANG": "C.UTF-8", **settings}
    _run("chroot", root, f"/{PREFIX}/bin/piper", "install-units", "--write", env=environment)


# ---- the machine -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """A booted container. `root` is its file system as seen from here, `leader` its PID 1."""

    root: Path
    leader: int
    log: Path

    def run(self, *command: str, check: bool = True) -> str:
        """Output of a command as root in the machine, both streams; fails the test if it fails and `check`."""
        enter = ("nsenter", f"--target={self.leader}", *NAMESPACES)
        done = subprocess.run(
            [*enter, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{command} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit."""
        text = self.run("systemctl", "show", unit, *(f"--property={name}" for name in names))
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def journal(self, unit: str) -> str:
        """All that a unit and systemd said about it."""
        return self.run("journalctl", "--no-pager", "--output=cat", "--unit", unit)

    def python(self, program: str) -> Any:
        """What a program of piper's environment prints, from JSON."""
        return json.loads(self.run(f"/{PREFIX}/bin/python", "-c", program))

    def drop_in(self, unit: str, name: str, text: str | None) -> None:
        """Add a drop-in, or remove it (None)."""
        path = self.root / "etc/systemd/system" / f"{unit}.d" / f"{name}.conf"
        if text is None:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        self.run("systemctl", "daemon-reload")


@contextmanager
def booted(scratch: Path, settings: Mapping[str, str]) -> Iterator[Machine]:
    """A machine with piper installed by `settings` (variables) and not started. `scratch`: an empty folder."""
    layer, log = scratch / "layer", scratch / "console.log"
    layer.mkdir()
    with _layer(layer, base_tree()) as root:
        _install_piper(root, settings)
        with log.open("wb") as console:
            process = subprocess.Popen(
                [
                    *("systemd-nspawn", "--quiet", "--directory", root, "--boot", "--register=no", "--keep-unit"),
                    *("--console=read-only", "--private-network", "--link-journal=no", "--resolv-conf=off"),
                    *("--timezone=off", f"--machine=piper-test-{os.getpid()}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        try:
            machine = Machine(root, wait_until(lambda: _leader(process, log), what=lambda: _text(log)), log)
            wait_until(lambda: _is_up(machine), what=lambda: _text(log), pause_seconds=0.2)
            yield machine
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(30)


def _leader(process: subprocess.Popen[bytes], log: Path) -> int:
    """The container's PID 1 as seen from here: 0 until it is there."""
    assert process.poll() is None, f"systemd-nspawn ended with {process.returncode}\n{_text(log)}"
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(re.findall(r"^(Name|PPid|NSpid):\s*(.*)$", status.read_text(), re.MULTILINE))
        except OSError:  # it has ended meanwhile
            continue
        is_first = fields["NSpid"].split()[-1] == "1" and fields["Name"] == "systemd"
        if fields["PPid"] == str(process.pid) and is_first:
            return int(status.parent.name)
    return 0


def _is_up(machine: Machine) -> bool:
    return machine.run("systemctl", "is-system-running", check=False).strip() in {"running", "degraded"}
