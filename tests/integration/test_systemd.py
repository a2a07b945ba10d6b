"""What piperd tells systemd, and units that systemd finds sound. `test_systemd_boot.py` runs them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
from tests.conftest import MakePiperd
from tests.support.commands import Place
from tests.support.event_lines import append_events, ids
from tests.support.polling import wait_until

from piper.ops import units
from piper.ops.control import ask
from piper.ops.health import Health
from piper.ops.systemd import Notifier, pulse
from piper.settings_sources import load_settings

REPOSITORY = Path(__file__).parents[2]
UNITS = REPOSITORY / "systemd"
SERVICES = ("piperd.service", "piper-backfill@.service", "piper-doctor.service")
EXPOSURE_MAX = 1.5


class Manager:
    """The receiving end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1))
        self._socket.setblocking(False)
        self.messages: list[dict[str, str]] = []

    def heard(self, name: str) -> list[dict[str, str]]:
        """Every message so far that holds `name`."""
        while True:
            try:
                text = self._socket.recv(65536).decode()
            except BlockingIOError:
                break
            self.messages.append(dict(line.split("=", 1) for line in text.splitlines()))
        return [message for message in self.messages if name in message]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Manager]:
    """This process's children are started by a service manager with a watchdog of a second."""
    address = f"@piper-test-{os.getpid()}-{tmp_path.name}"
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    manager = Manager(address)
    yield manager
    manager.close()


# ---- notifications ---------------------------------------------------------------------------------------------------


def test_piperd_tells_systemd_when_it_is_ready_how_it_is_and_when_it_stops(
    manager: Manager, make_piperd: MakePiperd, raw_root: Path
) -> None:
    append_events(raw_root, ids("a", 10))
    piperd = make_piperd().start()
    wait_until(lambda: manager.heard("READY"), what=piperd.log_text)
    assert ask(piperd.data_root / "state" / "control.sock", "status")["pid"] == piperd.process.pid
    wait_until(lambda: len(manager.heard("WATCHDOG")) > 2)
    wait_until(lambda: any(message["STATUS"] == "Up to date with 1 files" for message in manager.heard("STATUS")))

    before = len(manager.messages)
    earliest = time.monotonic_ns() // 1000
    piperd.signal(signal.SIGHUP)
    wait_until(lambda: len(manager.heard("READY")) == 2, what=piperd.log_text)
    reload = [message for message in manager.messages[before:] if {"RELOADING", "READY"} & set(message)]
    assert [sorted(message) for message in reload] == [["MONOTONIC_USEC", "RELOADING"], ["READY"]]
    assert earliest <= int(reload[0]["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000

    piperd.stop()
    (stopping,) = manager.heard("STOPPING")
    assert int(stopping["EXTEND_TIMEOUT_USEC"]) == 30_000_000, "piperd promises to be gone by then"
    after = manager.messages[manager.messages.index(stopping) :]
    assert not [message for message in after if {"READY", "RELOADING"} & set(message)]


def test_a_silent_loop_starves_the_watchdog_until_it_turns_again(tmp_path: Path) -> None:
    address = f"@piper-test-{os.getpid()}-{tmp_path.name}"
    manager = Manager(address)
    now = [0.0]
    health = Health(limits={"ingest": 60.0, "gold": 600.0}, monotonic=lambda: now[0])
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "40000", "WATCHDOG_PID": str(os.getpid())})

    async def until(condition: Callable[[], object]) -> None:
        with anyio.fail_after(60):
            while not condition():
                await anyio.sleep(0.005)

    async def story() -> None:
        async with anyio.create_task_group() as tasks:
            health.beat("ingest")
            tasks.start_soon(pulse, notifier, health, lambda: "fine")
            await until(lambda: len(manager.heard("WATCHDOG")) > 3)
            now[0] = 61.0
            await until(lambda: any("ingest 61 s" in message["STATUS"] for message in manager.heard("STATUS")))
            now[0] = 70.0
            await until(lambda: any("ingest 70 s" in message["STATUS"] for message in manager.heard("STATUS")))
            health.beat("ingest")
            await until(lambda: manager.heard("STATUS")[-1]["STATUS"] == "fine")
            tasks.cancel_scope.cancel()

    anyio.run(story)
    told = ["WATCHDOG" if "WATCHDOG" in message else message["STATUS"] for message in manager.messages]
    hung = [index for index, text in enumerate(told) if text.startswith("Hangs")]
    assert "WATCHDOG" not in told[hung[0] : hung[-1]]
    assert told[hung[-1] + 1 :][:2] == ["WATCHDOG", "fine"]
    manager.close()


def test_a_rest_on_purpose_is_no_hang() -> None:
    now = [0.0]
    health = Health(limits={"ingest": 60.0}, monotonic=lambda: now[0])
    health.beat("ingest", rest_seconds=100)
    answers = {}
    for now[0] in (50.0, 159.0, 161.0):
        answers[now[0]] = health.is_alive()[0]
    assert answers == {50.0: True, 159.0: True, 161.0: False}


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "120000000"}, 120.0),
        ({"WATCHDOG_USEC": "120000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_a_watchdog_that_is_not_meant_for_this_process_is_ignored(
    environment: dict[str, str], seconds: float | None
) -> None:
    assert Notifier(environment).watchdog_seconds == seconds


def test_nobody_who_listens_is_no_reason_to_fail(tmp_path: Path) -> None:
    Notifier({}).ready()
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready()


# ---- units -----------------------------------------------------------------------------------------------------------


def default_installation() -> units.Installation:
    return units.Installation(units.for_service(load_settings(env={}, cwd=Path("/"))).settings)


def directives(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^([A-Z]\w*)=(.*)$", text, re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def test_the_shipped_units_are_those_of_the_default_settings() -> None:
    rendered = {
        target.name: text
        for target, text in units.render(default_installation()).items()
        if "systemd/system" in str(target)
    }
    assert rendered == {path.name: path.read_text() for path in UNITS.iterdir() if path.is_file()}
    forced = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert forced["force-include"]["systemd"] == "piper/units"


def test_all_services_share_one_sandbox() -> None:
    from_here = "ProtectHome="
    sandboxes = {name: (UNITS / name).read_text().partition(from_here)[2].partition("\n[")[0] for name in SERVICES}
    for name, text in sandboxes.items():
        own = "PrivateNetwork=yes\nRestrictAddressFamilies=AF_UNIX\n"
        shared = (
            text
            if name == "piperd.service"
            else text.replace(own, "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6\n")
        )
        assert sandboxes["piperd.service"].startswith(shared)


@pytest.fixture
def analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("systemd-analyze is not installed (package systemd)")
    return found


def test_systemd_finds_nothing_wrong_with_the_units(analyze: str, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("piper", "piperd"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    installation = units.Installation(default_installation().settings, bin_directory=programs)
    written = [path for path, _ in units.write(units.render(installation), tmp_path)]
    names = [str(path) for path in written if path.parent.name == "system"]
    done = subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=no", *names], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", SERVICES)
def test_the_services_are_hardly_exposed(analyze: str, name: str) -> None:
    done = subprocess.run(
        [
            analyze,
            "security",
            "--offline=true",
            "--no-pager",
            f"--threshold={EXPOSURE_MAX * 10:.0f}",
            str(UNITS / name),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    level = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", done.stdout)
    assert level, done.stdout + done.stderr
    assert float(level[1]) <= EXPOSURE_MAX, done.stdout
    assert done.returncode == 0


def test_an_instance_of_the_backfill_unit_names_its_first_and_last_day(tmp_path: Path) -> None:
    echo = tmp_path / "piper"
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    installation = units.Installation(default_installation().settings, bin_directory=tmp_path)
    unit = next(text for path, text in units.render(installation).items() if "backfill" in path.name)
    (command,) = directives(unit)["ExecStart"]
    for instance, days in (("2026-01-01:2026-01-31", ["2026-01-01", "2026-01-31"]), ("2026-01-05", ["2026-01-05"] * 2)):
        _, _, script, *arguments = shlex.split(command.replace("%%", "%").replace("$$", "$"))
        run = ["/bin/sh", "-c", script, *(instance if argument == "%i" else argument for argument in arguments)]
        said = subprocess.run(run, capture_output=True, text=True, check=True).stdout
        assert said.split() == ["backfill", "--start", days[0], "--end", days[1]]


# ---- piper install-units ---------------------------------------------------------------------------------------------


WRITE = ("install-units", "--write", "--root")


def installed(place: Place) -> dict[str, list[str]]:
    """The directives of piperd.service as installed below `place.root` for its settings."""
    report = place.json(*WRITE, str(place.root))
    assert report["next"][-1] == "systemctl enable --now piperd.service piper-doctor.timer"
    return directives((place.root / "etc/systemd/system/piperd.service").read_text())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_units_name_what_the_settings_name(place: Place) -> None:
    (place.root / "piper.toml").write_text(
        '[paths]\nraw_root = "/mnt/spool 100%"\ndata_root = "/mnt/lake"\nstate_root = "/ssd/piper"\n'
        '[metrics]\nhost = "0.0.0.0"\n'
    )
    environment = {name: value for name, value in place.env.items() if not name.startswith("PIPER_")}
    command = place.command("--config", str(place.root / "piper.toml"), "install-units", "--print", "--json")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd="/")
    files = {file["path"]: file["content"] for file in json.loads(done.stdout)["files"]}
    assert str(place.root / "piper.toml") not in files, "a settings file that exists is left alone"
    found = directives(files["/etc/systemd/system/piperd.service"])
    assert found["RequiresMountsFor"] == ['"/mnt/spool 100%%" /mnt/lake /ssd/piper']
    assert found["ReadWritePaths"] == ["-/mnt/lake -/ssd/piper"]
    assert found["ReadOnlyPaths"] == ['"-/mnt/spool 100%%"']
    assert found["Environment"] == [f"PIPER_CONFIG_FILE={place.root / 'piper.toml'}"]
    assert found["IPAddressAllow"] == ["any"]
    assert found["ProtectHome"] == ["yes"]
    assert "/opt/piper" not in "".join(found["ExecStart"] + found["ExecReload"])
    doctor = directives(files["/etc/systemd/system/piper-doctor.service"])
    assert doctor["ReadWritePaths"] == ["-/mnt/lake -/ssd/piper -/var/lib/prometheus/node-exporter"]


def test_a_fresh_installation_gets_a_settings_file_of_what_is_set_now(place: Place) -> None:
    found = installed(place)
    settings_file = place.root / "etc/piper/settings.toml"
    written = load_settings(env={"PIPER_CONFIG_FILE": str(settings_file)}, cwd=Path("/"))
    paths = written.settings.paths
    assert (paths.raw_root, paths.data_root, paths.state_root) == (place.raw, place.data, units.STATE_DIRECTORY)
    assert found["RequiresMountsFor"] == [f"{place.raw} {place.data} /var/lib/piper"]


def test_a_manifest_that_exists_stays_where_it_is(place: Place) -> None:
    place.raw.mkdir()
    place.json("init")
    assert installed(place)["RequiresMountsFor"] == [f"{place.raw} {place.data} {place.data / 'state'}"]


def test_settings_that_the_service_would_not_see_are_refused(place: Place) -> None:
    settings_file = place.root / "etc/piper/settings.toml"
    settings_file.parent.mkdir(parents=True)
    settings_file.write_text('[paths]\ndata_root = "/srv/lake"\n')
    done = place.piper(*WRITE, str(place.root))
    assert done.returncode == 1
    assert "PIPER_PATHS__DATA_ROOT" in done.stderr
    assert "'/srv/lake'" in done.stderr
    assert not (place.root / "etc/systemd").exists()


def test_writing_twice_changes_nothing_and_an_altered_unit_is_written_anew(place: Place) -> None:
    installed(place)
    unit = place.root / "etc/systemd/system/piperd.service"
    text = unit.read_text()
    unit.write_text("altered")
    results = {file["path"]: file["result"] for file in place.json(*WRITE, str(place.root))["files"]}
    assert [path for path, result in results.items() if result == "written"] == [str(unit)]
    assert unit.read_text() == text
