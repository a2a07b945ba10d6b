"""The units on a real systemd: start, sandbox, reload, watchdog, stop. Needs root; skips elsewhere and says why."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.support.event_lines import append_events, ids
from tests.support.machine import CommandFailed, Machine, base_tree, booted, why_not
from tests.support.polling import wait_until

pytestmark = pytest.mark.timeout(900)

RAW, DATA = "/srv/telemetry/raw", "/srv/telemetry/data"
UNIT = "piperd.service"
SETTINGS_FILE = "etc/piper/settings.toml"

COUNT = f"""
import duckdb, json
with duckdb.connect("{DATA}/warehouse/telemetry.duckdb", read_only=True) as con:
    print(json.dumps(con.execute("SELECT count(*), count(DISTINCT event_id) FROM silver_events").fetchone()))
"""

PROBE = f"""
import ctypes, errno, json, mmap, os, socket
import duckdb
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, SCHED_FIFO = 0x20000, 1

def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)

attempts = {{
    "write /usr": lambda: open("/usr/probe", "w"),
    "write /etc/piper": lambda: open("/etc/piper/probe", "w"),
    "write the spool": lambda: open("{RAW}/probe", "w"),
    "write the data root": lambda: open("{DATA}/probe", "w"),
    "write the state": lambda: open("/var/lib/piper/probe", "w"),
    "read the spool": lambda: os.listdir("{RAW}"),
    "read /home": lambda: os.listdir("/home"),
    "see PID 1": lambda: os.stat("/proc/1"),
    "open a disk": lambda: open("/dev/mem"),
    "code in data": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
    "a namespace": lambda: call("unshare", CLONE_NEWNS),
    "a mount": lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "real time": lambda: os.sched_setscheduler(0, SCHED_FIFO, os.sched_param(1)),
    "set-user-id": lambda: os.chmod("{DATA}/probe", 0o4755),
    "DuckDB": lambda: duckdb.sql("SELECT sum(hash(i) % 7) FROM range(3000000) t(i) GROUP BY i % 1000").fetchall(),
}}
found = {{}}
for name, attempt in attempts.items():
    try:
        attempt()
        found[name] = "allowed"
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
with open("/proc/self/status") as status:
    found |= dict(line.split(":\\t", 1) for line in status.read().splitlines() if line.startswith(("NoNew", "CapBnd")))
os.unlink("{DATA}/probe")
os.unlink("/var/lib/piper/probe")
print("PROBE " + json.dumps(found))
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Booted, the user and the data root made as `piper install-units --write` tells, piperd not started."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    try:
        base_tree()
    except CommandFailed as error:
        if "CI" in os.environ:
            raise
        pytest.skip(f"no Debian can be made here, perhaps for want of a network: {error}")
    settings = {"PIPER_PATHS__RAW_ROOT": RAW, "PIPER_PATHS__DATA_ROOT": DATA}
    with booted(tmp_path_factory.mktemp("machine"), settings) as machine:
        machine.run("systemd-sysusers")
        machine.run("systemd-tmpfiles", "--create")
        machine.run("mkdir", "-p", RAW)
        machine.run("install", "-d", "-o", "piper", "-g", "piper", DATA)
        yield machine


@pytest.fixture
def piperd(machine: Machine) -> Machine:
    """The machine with piperd started."""
    machine.run("systemctl", "start", UNIT)
    return machine


def raw(machine: Machine) -> Path:
    return machine.root / RAW.removeprefix("/")


def has_events(machine: Machine, number: int) -> bool:
    """Whether readers see so many events, each once."""
    return bool(machine.python(COUNT) == [number, number])


def wait_for_events(machine: Machine, number: int) -> None:
    wait_until(lambda: has_events(machine, number), what=lambda: machine.journal(UNIT), pause_seconds=0.3)


def total(machine: Machine) -> int:
    """Events written to the spool so far by the tests of this module."""
    return sum(path.read_bytes().count(b"\n") for path in raw(machine).rglob("*.jsonl"))


def test_it_starts_says_that_it_is_ready_and_does_its_work_in_the_sandbox(piperd: Machine) -> None:
    append_events(raw(piperd), ids("boot", 500))
    state = piperd.show(UNIT, "ActiveState", "SubState", "NRestarts", "User", "Type", "WatchdogUSec")
    assert state == {
        "ActiveState": "active",
        "SubState": "running",
        "NRestarts": "0",
        "User": "piper",
        "Type": "notify",
        "WatchdogUSec": "2min",
    }
    wait_for_events(piperd, total(piperd))
    wait_until(lambda: piperd.show(UNIT, "StatusText")["StatusText"].startswith("Up to date"), pause_seconds=0.3)
    owners = {path.owner() if path.owner() == "root" else "piper" for path in (piperd.root / DATA[1:]).rglob("*")}
    assert owners == {"piper"}


def test_the_sandbox_refuses_what_piperd_does_not_need_and_lets_duckdb_work(piperd: Machine) -> None:
    unit = (piperd.root / "etc/systemd/system" / UNIT).read_text()
    own = "\n[Service]\nType=oneshot\nWatchdogSec=0\nRestart=no\nExecReload=\nExecStart=\n"
    (piperd.root / "etc/piper/probe.py").write_text(PROBE)
    (piperd.root / "etc/systemd/system/piper-probe.service").write_text(
        f"{unit}{own}ExecStart=/opt/piper/bin/python /etc/piper/probe.py\n"
    )
    piperd.run("systemctl", "daemon-reload")
    piperd.run("systemctl", "start", "piper-probe.service", check=False)
    said = re.search(r"^PROBE (.*)$", piperd.journal("piper-probe.service"), re.MULTILINE)
    assert said, piperd.journal("piper-probe.service")
    assert json.loads(said[1]) == {
        "write /usr": "EROFS",
        "write /etc/piper": "EACCES",
        "write the spool": "EROFS",
        "write the data root": "allowed",
        "write the state": "allowed",
        "read the spool": "allowed",
        "read /home": "EACCES",
        "see PID 1": "ENOENT",
        "open a disk": "ENOENT",
        "code in data": "EPERM",
        "a namespace": "EPERM",
        "a mount": "EPERM",
        "netlink": "EAFNOSUPPORT",
        "real time": "EPERM",
        "set-user-id": "EPERM",
        "DuckDB": "allowed",
        "NoNewPrivs": "1",
        "CapBnd": "0000000000000000",
    }


def test_a_reload_takes_over_what_it_can_and_a_wrong_file_fails_it_and_changes_nothing(piperd: Machine) -> None:
    settings_file = piperd.root / SETTINGS_FILE
    before = settings_file.read_text()
    pid = piperd.show(UNIT, "MainPID")
    try:
        settings_file.write_text(f"{before}[gold]\nrefresh_seconds = 3.0\n[metrics]\nport = 9999\n")
        piperd.run("systemctl", "reload", UNIT)
        said = piperd.journal(UNIT)
        assert "gold.refresh_seconds: 10.0 is now 3.0" in said
        assert "metrics.port: still 9464; 9999" in said

        settings_file.write_text(f"{before}[gold]\nrefresh_seconds = -3\n")
        piperd.run("systemctl", "kill", "--signal=HUP", "--kill-whom=main", UNIT)
        wait_until(lambda: '"reload_refused"' in piperd.journal(UNIT), pause_seconds=0.3)
        assert "failed" in piperd.run("systemctl", "reload", UNIT, check=False)
        assert "gold.refresh_seconds = -3" in piperd.journal(UNIT)
    finally:
        settings_file.write_text(before)
    wait_until(lambda: piperd.show(UNIT, "SubState")["SubState"] == "running", pause_seconds=0.3)
    assert piperd.show(UNIT, "MainPID") == pid
    append_events(raw(piperd), ids("reloaded", 50), name="telemetry-2.jsonl")
    wait_for_events(piperd, total(piperd))


def test_doctor_leaves_a_textfile_that_node_exporter_can_read(piperd: Machine) -> None:
    append_events(raw(piperd), ids("doctor", 10), name="telemetry-3.jsonl")
    wait_for_events(piperd, total(piperd))
    piperd.run("systemctl", "start", "piper-doctor.service")
    textfile = piperd.root / "var/lib/prometheus/node-exporter/piper.prom"
    assert stat.S_IMODE(textfile.stat().st_mode) == 0o644
    assert [path.name for path in textfile.parent.iterdir()] == ["piper.prom"]
    samples = {
        (sample.name, sample.labels.get("check")): sample.value
        for family in text_string_to_metric_families(textfile.read_text())
        for sample in family.samples
    }
    told = {"spool", "data_root", "state", "writer", "catalog"}
    assert {check: samples["piper_doctor_check_level", check] for check in told} == dict.fromkeys(told, 0)


def test_a_loop_that_hangs_is_killed_by_the_watchdog_and_piperd_goes_on_where_it_was(machine: Machine) -> None:
    hang = (
        "[Service]\nEnvironment=PIPER_FAILPOINT=daemon.turn:1:hang\nWatchdogSec=3s\nTimeoutAbortSec=5s\nRestartSec=1s\n"
    )
    machine.run("systemctl", "stop", UNIT)
    machine.drop_in(UNIT, "hang", hang)
    append_events(raw(machine), ids("hung", 100), name="telemetry-4.jsonl")
    machine.run("systemctl", "start", UNIT)
    try:
        # The event loop and the control socket live: only the silence of the ingest loop can tell.
        wait_until(lambda: '"loop_hangs"' in machine.journal(UNIT), 120, pause_seconds=1)
    finally:
        machine.drop_in(UNIT, "hang", None)
    wait_until(lambda: machine.show(UNIT, "NRestarts")["NRestarts"] == "1", pause_seconds=0.5)
    said = machine.journal(UNIT)
    assert "Watchdog timeout" in said
    assert "Fatal Python error: Aborted" in said, "the stacks of all threads"
    assert "in _turn" in said
    wait_for_events(machine, total(machine))
    wait_until(lambda: machine.show(UNIT, "ActiveState")["ActiveState"] == "active", pause_seconds=0.3)
    assert machine.show(UNIT, "NRestarts") == {"NRestarts": "1"}


def test_a_stop_drains_publishes_and_is_over_in_time(piperd: Machine) -> None:
    append_events(raw(piperd), ids("last", 2000), name="telemetry-5.jsonl")
    piperd.run("systemctl", "stop", UNIT)
    ended = piperd.show(UNIT, "ActiveState", "Result", "ExecMainStatus")
    assert ended == {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0"}, piperd.journal(UNIT)
    assert has_events(piperd, total(piperd))


def test_a_backfill_is_done_by_its_unit_or_handed_to_piperd(machine: Machine) -> None:
    today = datetime.now(UTC).date()
    unit = f"piper-backfill@{today - timedelta(days=1)}:{today}.service"
    machine.run("systemctl", "stop", UNIT)
    append_events(raw(machine), ids("alone", 20), name="telemetry-6.jsonl")

    machine.run("systemctl", "start", unit, check=False)

    assert machine.show(unit, "Result") == {"Result": "success"}, machine.journal(unit)
    machine.run("systemctl", "start", UNIT)
    wait_for_events(machine, total(machine))
    before = machine.journal(UNIT)
    machine.run("systemctl", "start", unit, check=False)
    assert machine.show(unit, "Result") == {"Result": "success"}, machine.journal(unit)
    assert '"backfill_finished"' in machine.journal(UNIT).removeprefix(before)
    assert has_events(machine, total(machine))
    assert {path.owner() if path.owner() == "root" else "piper" for path in (machine.root / DATA[1:]).rglob("*")} == {
        "piper"
    }


def test_wrong_settings_end_it_for_good_and_say_why(machine: Machine) -> None:
    settings_file = machine.root / SETTINGS_FILE
    before = settings_file.read_text()
    machine.run("systemctl", "stop", UNIT)
    settings_file.write_text(f"{before}[wach]\nmode = 'poll'\n")
    try:
        machine.run("systemctl", "start", UNIT, check=False)
        ended = machine.show(UNIT, "ActiveState", "Result", "ExecMainStatus", "NRestarts")
    finally:
        settings_file.write_text(before)
    assert ended == {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "78", "NRestarts": "0"}
    assert "did you mean watch.mode?" in machine.journal(UNIT)
