"""The systemd units, with the paths of the settings in force filled in.

`systemd/` holds them for the shipped settings, ready to copy. Rendering replaces what depends on an installation: where
the programs are, which settings file they read, which paths they may touch, who may reach the metrics. Everything else,
and every comment, stays as it is there.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shlex
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from piper.errors import PiperError
from piper.files import make_directory, write_atomic
from piper.settings import Settings
from piper.settings_sources import LoadedSettings, load_settings, setting_rows

SETTINGS_FILE: Final = Path("/etc/piper/settings.toml")
"""What the units name when nobody named another file."""
STATE_DIRECTORY: Final = Path("/var/lib/piper")
"""Made by StateDirectory= of the units; a local disk, so the best place for the manifest."""
PUBLIC_MODE: Final = 0o644

_BIN: Final = "/opt/piper/bin/"
_HOMES: Final = (Path("/home"), Path("/root"), Path("/run/user"))
TARGETS: Final[Mapping[str, Path]] = {
    "piperd.service": Path("/etc/systemd/system/piperd.service"),
    "piper-backfill@.service": Path("/etc/systemd/system/piper-backfill@.service"),
    "piper-doctor.service": Path("/etc/systemd/system/piper-doctor.service"),
    "piper-doctor.timer": Path("/etc/systemd/system/piper-doctor.timer"),
    "sysusers.d/piper.conf": Path("/etc/sysusers.d/piper.conf"),
    "tmpfiles.d/piper.conf": Path("/etc/tmpfiles.d/piper.conf"),
}
"""Where each shipped file goes."""


@dataclass(frozen=True, slots=True)
class Installation:
    """What units depend on."""

    settings: Settings
    settings_file: Path = SETTINGS_FILE
    bin_directory: Path = Path(_BIN)

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        """Raw root, data root, state root."""
        paths = self.settings.paths
        return paths.raw_root, paths.data_root, paths.state_root


def next_steps(installation: Installation) -> list[str]:
    """What the administrator runs after the files are in place."""
    _, data_root, _ = installation.paths
    make_data_root = [] if data_root.exists() else [f"install -d -o piper -g piper {shlex.quote(str(data_root))}"]
    return [
        "systemd-sysusers",
        "systemd-tmpfiles --create",
        *make_data_root,
        "systemctl daemon-reload",
        "systemctl enable --now piperd.service piper-doctor.timer",
    ]


def own_bin_directory() -> Path:
    """Where `piper` and `piperd` of this very installation are."""
    return Path(sysconfig.get_path("scripts"))


def shipped(name: str) -> str:
    """A file of `systemd/`: beside this package in a wheel, else in the checkout."""
    in_wheel = Path(__file__).parents[1] / "units"
    return ((in_wheel if in_wheel.is_dir() else Path(__file__).parents[3] / "systemd") / name).read_text("utf-8")


def render(installation: Installation) -> dict[Path, str]:
    """Every file to install, by its target."""
    return {target: _filled(shipped(name), installation) for name, target in TARGETS.items()}


def for_service(settings: LoadedSettings) -> LoadedSettings:
    """`settings` for a fresh service: the manifest goes to the state directory unless it is elsewhere already.

    Only where nobody chose a place and no manifest exists: one that is left behind would be missed.
    """
    paths = settings.settings.paths
    chosen = settings.sources["paths.state_root"] != "default"
    if chosen or (paths.state_root / "ingest_manifest.duckdb").exists():
        return settings
    moved = settings.settings.model_copy(update={"paths": paths.model_copy(update={"state_root": STATE_DIRECTORY})})
    return LoadedSettings(moved, {**settings.sources, "paths.state_root": "StateDirectory= of the units"})


def settings_text(settings: LoadedSettings) -> str:
    """A settings file of what differs from the defaults."""
    lines = ["# piper's settings where they differ from the defaults; docs/settings.md has all of them."]
    section = ""
    for key, value, source in setting_rows(settings):
        if source == "default":
            continue
        table, name = key.split(".")
        if table != section:
            section = table
            lines += ["", f"[{table}]"]
        lines.append(f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def check_service_sees(settings: LoadedSettings, settings_file: Path) -> None:
    """Raise PiperError unless `settings_file` alone gives what is in force here: the service has no other source."""
    seen = {row.key: row.value for row in setting_rows(load_settings(env=_only(settings_file), cwd=Path("/")))}
    differ = [row for row in setting_rows(settings) if row.value != seen[row.key]]
    if differ:
        told = "; ".join(f"{row.key} = {row.value!r} ({row.source}), there {seen[row.key]!r}" for row in differ)
        raise PiperError(
            f"the service reads {settings_file} and nothing else, which says otherwise: {told}",
            hint="Write it into that file, or run this without that option or variable.",
        )


def write(files: Mapping[Path, str], root: Path) -> list[tuple[Path, str]]:
    """Put `files` below `root`; returns each path with `written` or `unchanged`. Raises OSError."""
    done = []
    for target, text in files.items():
        path = root / target.relative_to("/")
        if path.is_file() and path.read_text("utf-8", "replace") == text:
            done.append((path, "unchanged"))
            continue
        make_directory(path.parent)
        write_atomic(path, text.encode(), mode=PUBLIC_MODE)
        done.append((path, "written"))
    return done


# ---- inside ----------------------------------------------------------------------------------------------------------


def _only(settings_file: Path) -> dict[str, str]:
    return {"PIPER_CONFIG_FILE": str(settings_file)}


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):  # JSON's escapes are TOML's; of control characters JSON leaves only this one alone
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)


def _filled(text: str, installation: Installation) -> str:
    """Directives that depend on the installation, replaced line by line."""
    raw, data, state = installation.paths
    writable = [path for path in dict.fromkeys((data, state)) if path != STATE_DIRECTORY]
    values: dict[str, Callable[[str], str]] = {
        "RequiresMountsFor": lambda _: " ".join(map(unit_word, dict.fromkeys((raw, data, state)))),
        "ReadWritePaths": lambda old: " ".join([*(unit_word(path, "-") for path in writable), *_beyond(old)]),
        "ReadOnlyPaths": lambda _: unit_word(raw, "-"),
        "ProtectHome": lambda old: old if not _at_home(installation) else "read-only",
        "IPAddressAllow": lambda _: "localhost" if _is_local(installation.settings.metrics.host) else "any",
        "Environment": lambda _: unit_word(f"PIPER_CONFIG_FILE={installation.settings_file}"),
    }
    directory = str(installation.bin_directory).rstrip("/") + "/"

    def replaced(line: re.Match[str]) -> str:
        name, old = line["name"], line["value"]
        if name in values:
            return f"{name}={values[name](old)}"
        return f"{name}={old.replace(_BIN, _literal(directory))}"

    return re.sub(r"^(?P<name>[A-Z]\w*)=(?P<value>.*)$", replaced, text, flags=re.MULTILINE)


def _beyond(value: str) -> list[str]:
    """Paths of a shipped ReadWritePaths= that are no part of the settings."""
    return value.split()[1:]


def _literal(text: str) -> str:
    if re.search(r"[\s\"'\\$;]", text):
        raise PiperError(f"systemd units cannot start programs from {text!r}", hint="Install piper in a plain path.")
    return text.replace("%", "%%")


def unit_word(path: Path | str, prefix: str = "") -> str:
    """One word of a unit file: specifiers are doubled, and what would end it is quoted. Raises PiperError."""
    text = f"{prefix}{path}".replace("%", "%%")
    if not text.isprintable():
        raise PiperError(f"systemd units cannot name {text!r}", hint="Use a path without control characters.")
    if re.search(r"[\s\"'\\]", text):
        return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
    return text


def _at_home(installation: Installation) -> bool:
    """Whether something that the service needs lies where ProtectHome=yes hides it."""
    needed = (*installation.paths, installation.bin_directory, installation.settings_file)
    return any(path.is_relative_to(home) for path in needed for home in _HOMES)


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
