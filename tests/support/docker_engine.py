"""A Docker engine of the tests' own, and an image to build on, where a machine has what that takes and no registry.

The engine is Debian's dockerd with its data in a temporary directory and hands off the machine's firewall. The image
is a minimal Debian with Python, made by debootstrap from the mirror that this machine uses, kept in `.cache/`, and
imported under the name that the Dockerfile's FROM asks for. Needs root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.dockerfile_lint import instructions
from tests.support.polling import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / ".cache" / "docker"
TOOLS = ("docker", "dockerd", "containerd", "runc", "debootstrap")
PACKAGES = "python3,python3-venv,ca-certificates,curl"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
SECONDS = 300.0
START_SECONDS = 60.0


class EngineUnavailable(Exception):  # noqa: N818 - a state of the world, not a fault
    """No engine can be started here. The text says why."""


def compose_command() -> list[str] | None:
    """Docker Compose, as a plugin or as a program of its own; None where there is none."""
    if shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


@dataclass(frozen=True)
class Engine:
    """A running engine."""

    socket: Path

    @property
    def env(self) -> dict[str, str]:
        """The environment of its clients. The classic builder takes images that are there, and asks nobody."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("PIPER_", "DOCKER_"))}
        return ours | {"DOCKER_HOST": f"unix://{self.socket}", "DOCKER_BUILDKIT": "0"}

    @property
    def is_up(self) -> bool:
        """Whether it answers."""
        return subprocess.run(["docker", "ps"], env=self.env, capture_output=True, check=False).returncode == 0

    def docker(self, *arguments: str | Path, check: bool = True) -> str:
        """What `docker …` prints; fails the test when it fails."""
        return self.run("docker", *arguments, check=check)

    def compose(self, *arguments: str | Path, env: Mapping[str, str], check: bool = True) -> str:
        """What `docker compose …` prints, in the repository."""
        command = compose_command()
        assert command is not None
        return self.run(*command, *arguments, env=env, check=check)

    def run(self, *command: str | Path, env: Mapping[str, str] | None = None, check: bool = True) -> str:
        done = subprocess.run(
            command,
            env={**self.env, **(env or {})},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout.strip()

    def build(self, tag: str, context: Path, **arguments: str) -> None:
        """Build an image without asking a registry for its base; RUN has this machine's network."""
        options = [option for name, value in arguments.items() for option in ("--build-arg", f"{name}={value}")]
        self.docker("build", "--network=host", "--pull=false", "--force-rm", *options, "--tag", tag, context)


@contextmanager
def engine() -> Iterator[Engine]:
    """A running engine with the base image in it, gone at the end with all that ran. Raises EngineUnavailable."""
    if os.geteuid() != 0:
        raise EngineUnavailable("a Docker engine needs root")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise EngineUnavailable(f"not installed: {', '.join(missing)} (docker.io and debootstrap)")
    tree = _base_tree()
    with _scratch() as scratch:
        found = Engine(scratch / "docker.sock")
        with _dockerd(scratch, found):
            _import(found, tree)
            try:
                yield found
            finally:
                containers = found.docker("ps", "--all", "--quiet", check=False).split()
                found.docker("rm", "--force", *containers, check=False)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A directory in memory: on a busy disk, removing thousands of files of images takes longer than the tests.

    Its name is short, as sockets below it must fit an address of 108 bytes.
    """
    with tempfile.TemporaryDirectory(prefix="piper-docker-", dir="/tmp", ignore_cleanup_errors=True) as path:
        command = ["mount", "-t", "tmpfs", "-o", "size=6g,mode=700", "piper-docker", path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EngineUnavailable(f"no file system can be mounted: {done.stderr.strip()}")
        try:
            yield Path(path)
        finally:
            subprocess.run(["umount", "--lazy", path], check=True)


@contextmanager
def _dockerd(scratch: Path, client: Engine) -> Iterator[None]:
    log = scratch / "log"
    options = ["--iptables=false", "--ip6tables=false", "--bridge=none", f"--host=unix://{client.socket}"]
    options += [f"--{name}={scratch / name}" for name in ("data-root", "exec-root", "pidfile")]
    with log.open("wb") as stream, subprocess.Popen(["dockerd", *options], stdout=stream, stderr=stream) as process:
        try:
            with suppress(AssertionError):
                wait_until(lambda: process.poll() is not None or client.is_up, START_SECONDS)
            if process.poll() is not None or not client.is_up:
                raise EngineUnavailable(f"dockerd did not start: {_last_line(log)}")
            if client.docker("info", "--format", "{{.Driver}}") == "vfs":
                raise EngineUnavailable("dockerd has no overlay file system here: every layer would be a whole copy")
            yield
        finally:
            process.terminate()
            process.wait(START_SECONDS)


def _last_line(log: Path) -> str:
    return (log.read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"])[-1]


# ---- the image to build on -------------------------------------------------------------------------------------------


def base_image() -> str:
    """The name that the Dockerfile builds on."""
    arguments = (each.value for each in instructions((REPOSITORY / "Dockerfile").read_text()) if each.name == "ARG")
    return next(value.removeprefix("PYTHON_IMAGE=") for value in arguments if value.startswith("PYTHON_IMAGE="))


def _base_tree() -> Path:
    codename, mirror = _debian()
    tree = CACHE / f"{codename}-{PACKAGES.replace(',', '-')}"
    if not tree.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        # Under another name first: a tree that is there is complete.
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="making-") as making:
            root = Path(making) / "root"
            command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", codename, str(root), mirror]
            done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
            if done.returncode:
                raise EngineUnavailable(f"debootstrap: {(done.stdout + done.stderr).strip().splitlines()[-1]}")
            root.rename(tree)
    return tree


def _debian() -> tuple[str, str]:
    """Codename and mirror of this Debian, as apt has them."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    codename = release.get("VERSION_CODENAME", "").strip('"')
    command = ["apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)", "Identifier: Packages"]
    if release.get("ID") == "debian" and shutil.which("apt-get"):
        listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        for name, component, mirror in (line.split(" ", 2) for line in listed.splitlines() if line.count(" ") == 2):
            if (name, component) == (codename, "main"):
                return codename, mirror
    raise EngineUnavailable("this is no Debian with an apt source that debootstrap could use")


def _import(client: Engine, tree: Path) -> None:
    """The tree as the base image, trusting whom this machine trusts, so that pip reaches what it reaches here."""
    if AUTHORITIES.is_file():
        shutil.copyfile(AUTHORITIES, tree / AUTHORITIES.relative_to("/"))
    command = ["docker", "import", "--change", f"ENV PIP_CERT={AUTHORITIES}", "-", base_image()]
    with subprocess.Popen(["tar", "--directory", str(tree), "--create", "."], stdout=subprocess.PIPE) as archive:
        done = subprocess.run(
            command, env=client.env, stdin=archive.stdout, capture_output=True, text=True, check=False
        )
    assert (archive.returncode, done.returncode) == (0, 0), done.stderr
