"""What the Docker files say: both profiles are valid and hardened, and Grafana gets no more than it needs.

`test_docker_engine.py` builds and runs them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.docker_engine import REPOSITORY, compose_command
from tests.support.dockerfile_lint import Instruction, instructions, lint

DATA_ROOT = "/groups/show/.telemetry"
ENV = {"PIPER_PATHS__DATA_ROOT": DATA_ROOT, "PIPER_PATHS__RAW_ROOT": f"{DATA_ROOT}/raw", "RUN_AS_GID": "4711"}
PROFILES = {
    "demo": {"demo-spool", "demo-piperd", "demo-prometheus", "demo-grafana"},
    "production": {"piperd", "prometheus", "grafana"},
}
DOCKERFILES = [REPOSITORY / "Dockerfile", REPOSITORY / "conf" / "grafana" / "Dockerfile"]


def services(profile: str) -> dict[str, dict[str, Any]]:
    """The services of a profile as Compose understands them."""
    command = compose_command()
    if command is None:
        pytest.skip("Docker Compose is not installed (docker-compose)")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PIPER_")}
    done = subprocess.run(
        [*command, "--profile", profile, "config"],
        cwd=REPOSITORY,
        env=inherited | ENV,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)["services"]
    return {name: service for name, service in found.items() if profile in service["profiles"]}


def mounts(service: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Where what is mounted, and whether it can be written; either spelling of Compose."""
    found = {}
    for volume in service.get("volumes", []):
        if isinstance(volume, str):
            source, target, *mode = volume.split(":")
            found[target] = (source, mode != ["ro"])
        else:
            found[volume["target"]] = (volume["source"], not volume.get("read_only", False))
    return found


def published(service: dict[str, Any]) -> list[str]:
    """Host addresses of the ports."""
    ports = service.get("ports", [])
    return [port["host_ip"] if isinstance(port, dict) else port.rpartition(":")[0].rpartition(":")[0] for port in ports]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_is_valid_and_every_container_of_it_is_hardened(profile: str) -> None:
    found = services(profile)
    assert set(found) == PROFILES[profile]
    for name, service in found.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert set(published(service)) <= {"127.0.0.1"}, name
        assert not {"privileged", "network_mode", "pid", "ipc", "cap_add", "devices"} & set(service), name
        assert not any("docker.sock" in source for source, _ in mounts(service).values()), name
        if service["image"].startswith("piper-telemetry"):
            assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", service["user"]), name
    assert all(published(found[name]) for name in found if name != "demo-spool")


@pytest.mark.parametrize("profile", PROFILES)
def test_grafana_gets_the_warehouse_and_silver_read_only_at_their_own_paths(profile: str) -> None:
    found = services(profile)
    prefix = "demo-" if profile == "demo" else ""
    piperd, grafana = found[f"{prefix}piperd"], found[f"{prefix}grafana"]
    root = piperd["environment"]["PIPER_PATHS__DATA_ROOT"]
    assert grafana["environment"]["PIPER_PATHS__DATA_ROOT"] == root

    data = {target: mount for target, mount in mounts(grafana).items() if not target.startswith(("/etc/", "/var/lib/"))}
    assert set(data) == {f"{root}/warehouse", f"{root}/silver", "/var/piper"}
    assert not any(writable for _, writable in data.values())
    assert data["/var/piper"] == data[f"{root}/warehouse"]
    written = mounts(piperd)
    assert written[root][1] is True
    assert written[piperd["environment"]["PIPER_PATHS__RAW_ROOT"]][1] is False, "piperd only reads the spool"
    # The group of piperd's files, which are not for everyone.
    assert grafana["group_add"] == [piperd["user"].partition(":")[2]]


def test_production_mounts_the_studios_directories_and_nothing_else_of_the_data_root_for_grafana() -> None:
    found = services("production")
    assert mounts(found["piperd"])[DATA_ROOT] == (DATA_ROOT, True)
    assert mounts(found["grafana"])[f"{DATA_ROOT}/silver"] == (f"{DATA_ROOT}/silver", False)
    assert mounts(found["grafana"])["/var/piper"] == (f"{DATA_ROOT}/warehouse", False)
    state = found["piperd"]["environment"]["PIPER_PATHS__STATE_ROOT"]
    assert mounts(found["piperd"])[state] == (state, True)


@pytest.mark.parametrize("profile", PROFILES)
def test_services_start_after_the_health_of_what_they_need(profile: str) -> None:
    found = services(profile)
    prefix = "demo-" if profile == "demo" else ""
    healthy = {"condition": "service_healthy"}
    for name, needs in (("prometheus", ["piperd"]), ("grafana", ["piperd", "prometheus"])):
        depends = found[prefix + name]["depends_on"]
        assert set(depends) == {prefix + need for need in needs}
        assert all(healthy.items() <= condition.items() for condition in depends.values())
    assert all("healthcheck" in found[f"{prefix}{name}"] for name in ("prometheus", "grafana"))


def test_the_default_password_is_the_demos_alone() -> None:
    document = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
    demo = document["secrets"]["demo_grafana_admin_password"]["file"]
    assert (REPOSITORY / demo).read_text() == "piper"
    assert demo not in document["secrets"]["grafana_admin_password"]["file"]
    for profile, secret in (("demo", "demo_grafana_admin_password"), ("production", "grafana_admin_password")):
        found = services(profile)
        grafana = found["demo-grafana" if profile == "demo" else "grafana"]
        assert [each if isinstance(each, str) else each["source"] for each in grafana["secrets"]] == [secret]
        assert grafana["environment"]["GF_SECURITY_ADMIN_PASSWORD__FILE"] == "/run/secrets/grafana_admin_password"
        assert "GF_SECURITY_ADMIN_PASSWORD" not in grafana["environment"]
        assert grafana["environment"]["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


# ---- Dockerfiles -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_dockerfile_breaks_no_rule(path: Path) -> None:
    assert lint(path.read_text()) == set()
    if shutil.which("hadolint"):
        subprocess.run(["hadolint", path], check=True)


GOOD = 'FROM debian:12\nWORKDIR /a\nRUN pip install --no-cache-dir .\nUSER 10001\nENTRYPOINT ["a"]\n'


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (("debian:12", "debian"), "DL3006"),
        (("debian:12", "debian:latest"), "DL3007"),
        (("FROM", "ARG I=debian\nFROM ${I}\nFROM"), "DL3006"),
        (("FROM", "RUN a\nFROM"), "DL3061"),
        (("USER 10001", "USER root"), "DL3002"),
        (("USER 10001", "USER 0:0"), "DL3002"),
        (('["a"]', "a"), "DL3025"),
        (("USER", "HEALTHCHECK --interval=1s CMD a\nUSER"), "DL3025"),
        (("ENTRYPOINT", 'CMD ["a"]\nCMD ["b"]\nENTRYPOINT'), "DL4003"),
        (("WORKDIR /a", "WORKDIR a"), "DL3000"),
        (("WORKDIR", "ADD a b\nWORKDIR"), "DL3020"),
        (("--no-cache-dir ", ""), "DL3042"),
        (("RUN", "RUN a\nRUN"), "DL3059"),
        (("RUN", "RUN sudo a &&"), "DL3004"),
        (("RUN", "RUN apt-get install --no-install-recommends -y a &&"), "DL3009"),
        (("RUN", "RUN a \\\n | b &&"), "DL4006"),
        (("USER", "MAINTAINER a\nUSER"), "DL4000"),
    ],
)
def test_the_linter_finds_what_breaks_a_rule(change: tuple[str, str], rule: str) -> None:
    assert lint(GOOD) == set()
    assert lint(GOOD.replace(*change, 1)) == {rule}


def test_piperd_runs_in_the_image_as_a_fixed_user_without_a_shell_around_it() -> None:
    found = instructions((REPOSITORY / "Dockerfile").read_text())
    assert Instruction("USER", "10001:10001") in found
    assert Instruction("ENTRYPOINT", '["piperd"]') in found
    assert [each.value.partition("CMD ")[2] for each in found if each.name == "HEALTHCHECK"] == [
        '["piper", "healthcheck"]'
    ]
    assert sum(each.name == "FROM" for each in found) == 2


def test_the_build_context_is_a_list_of_what_is_needed() -> None:
    lines = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    assert not {"!.git", "!.env", "!.", "!*"} & set(lines)


# ---- Prometheus ------------------------------------------------------------------------------------------------------


def test_prometheus_in_compose_differs_from_the_other_by_host_names_only() -> None:
    folder = REPOSITORY / "conf" / "prometheus"
    compose = yaml.safe_load((folder / "compose.yml").read_text())
    assert compose["scrape_configs"][0]["static_configs"] == [{"targets": ["piperd:9464"]}]
    compose["scrape_configs"][0]["static_configs"] = [{"targets": ["127.0.0.1:9464"]}]
    assert compose == yaml.safe_load((folder / "prometheus.yml").read_text())
