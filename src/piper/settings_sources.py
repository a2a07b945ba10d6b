"""Where settings come from, and how they become `Settings`.

Highest first: command line, environment `PIPER_<SECTION>__<KEY>`, `.env` in the current directory, the TOML
file named by `PIPER_CONFIG_FILE`, the shipped `conf/settings.toml`. All sources are checked for unknown keys, so a
misspelt setting is never silent; of the values only those in force are checked. They are taken as written: neither
`$NAME` nor `${NAME}` is expanded, only a leading `~` in paths.
"""

from __future__ import annotations

import difflib
import io
import os
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from dotenv.parser import parse_stream
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from piper.errors import ConfigError
from piper.settings import SETTING_KEYS, SETTING_TYPES, Settings

CONFIG_FILE_VARIABLE = "PIPER_CONFIG_FILE"
_PREFIX = "PIPER_"
_NOT_SETTINGS = ("PIPER_TEST_", "PIPER_FAILPOINT")
"""Variables that tests and fault injection use; they share the prefix and are left alone."""
_HINT = "docs/settings.md lists every setting with its limits."


def variable_name(key: str) -> str:
    """The environment variable of a setting: `watch.mode` is `PIPER_WATCH__MODE`."""
    return _PREFIX + key.replace(".", "__").upper()


_KEY_OF_VARIABLE: Mapping[str, str] = MappingProxyType({variable_name(key): key for key in SETTING_KEYS})


class _Given(NamedTuple):
    """A value as one source gave it. `name` is how that source spells the key."""

    key: str
    name: str
    value: object
    source: str


class SettingRow(NamedTuple):
    """One line of `piper config show`; `value` is a JSON scalar."""

    key: str
    value: str | int | float | bool
    source: str


@dataclass(frozen=True)
class LoadedSettings:
    """Settings, and where each is from: `sources['watch.mode']` is `environment PIPER_WATCH__MODE`, say."""

    settings: Settings
    sources: Mapping[str, str]


def setting_rows(loaded: LoadedSettings) -> list[SettingRow]:
    """Every setting in force, in the order of the shipped file; `row._asdict()` is ready for JSON."""
    values = loaded.settings.model_dump(mode="json")
    rows = []
    for key in SETTING_KEYS:
        section, name = key.split(".")
        rows.append(SettingRow(key, values[section][name], loaded.sources[key]))
    return rows


def load_settings(
    overrides: Mapping[str, object] | None = None,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> LoadedSettings:
    """Read all sources, lowest first, and validate what is in force at the end.

    `overrides` are command-line flags (`{'paths.data_root': …}`); None means that the flag was not given.
    `env` and `cwd` default to the process's own. Raises one `ConfigError`, naming key, value and source of
    all that is wrong. Nothing is created or changed on disk.
    """
    env = os.environ if env is None else env
    cwd = _current_directory() if cwd is None else cwd
    dotenv_path = cwd / ".env"
    dotenv = _read_dotenv(dotenv_path)
    config_file = env.get(CONFIG_FILE_VARIABLE, dotenv.get(CONFIG_FILE_VARIABLE, ""))
    given = [*_from_toml(shipped_settings_path(), "default")]
    if config_file:
        path = _config_file_path(config_file, cwd)
        given += _from_toml(path, f"file {path}")
    given += _from_variables(dotenv, lambda _name: f".env ({dotenv_path})")
    given += _from_variables(env, lambda name: f"environment {name}")
    given += (
        _Given(key, key, _converted(key, value), "command line")
        for key, value in (overrides or {}).items()
        if value is not None
    )
    return _validated(given, cwd)


def shipped_settings_path() -> Path:
    """The file of defaults: beside this module in a wheel, else `conf/settings.toml` of the checkout."""
    in_wheel = Path(__file__).with_name("settings_defaults.toml")
    return in_wheel if in_wheel.exists() else Path(__file__).parents[2] / "conf" / "settings.toml"


def _current_directory() -> Path:
    try:
        return Path.cwd()
    except OSError as error:
        message = f"the current directory cannot be read: {error.strerror}"
        raise ConfigError(message, hint="Start piper in a directory that exists.") from error


def _config_file_path(value: str, cwd: Path) -> Path:
    try:
        return cwd / Path(value).expanduser()
    except RuntimeError as error:
        message = f"{CONFIG_FILE_VARIABLE} = {_shown(value)}: {error}"
        raise ConfigError(message, hint="Write the path in full.") from error


def _read_text(path: Path, what: str, hint: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        message = f"{what} cannot be read: {error.strerror}"
    except ValueError as error:  # not UTF-8, or a NUL in the path
        message = f"{what} cannot be read: {error}"
    raise ConfigError(message, hint=hint)


def _read_dotenv(path: Path) -> dict[str, str]:
    """The PIPER_ variables of a `.env`. A directory of that name is a virtual environment, and holds none."""
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            return {}
    except OSError:  # there is none, or this is a directory of somebody else's where none of ours would be
        return {}
    found: dict[str, str] = {}
    text = _read_text(path, f".env ({path})", "Make it a readable UTF-8 file, or start piper elsewhere.")
    for binding in parse_stream(io.StringIO(text)):
        ours = binding.key is not None and binding.key.startswith(_PREFIX)
        if ours and binding.key is not None and binding.value is not None:
            found[binding.key] = binding.value
        elif ours or (binding.error and _PREFIX in binding.original.string):
            line = binding.original.string.strip()
            message = f".env ({path}), line {binding.original.line}, is not NAME=value: {_shown(line)}"
            raise ConfigError(message, hint="Write NAME=value; close quotes, or leave them out.")
    return found


def _from_toml(path: Path, source: str) -> Iterator[_Given]:
    what = f"settings file {path}"
    hint = f"Make it a readable UTF-8 file, or correct {CONFIG_FILE_VARIABLE}."
    if source == "default":
        hint = "It is part of piper: install piper again."
    try:
        tables = tomllib.loads(_read_text(path, what, hint))
    except tomllib.TOMLDecodeError as error:
        message = f"{what} is not TOML: {error}"
        raise ConfigError(message, hint='Correct that place; text needs quotes: mode = "poll".') from error
    for section, table in tables.items():
        if not isinstance(table, dict) or not table:
            if table != {} or section not in Settings.model_fields:
                yield _Given(section, section, table, source)
            continue
        for name, value in table.items():
            yield _Given(f"{section}.{name}", f"{section}.{name}", value, source)


def _from_variables(variables: Mapping[str, str], source_of: Callable[[str], str]) -> Iterator[_Given]:
    for name, text in variables.items():
        if not name.startswith(_PREFIX) or name == CONFIG_FILE_VARIABLE or name.startswith(_NOT_SETTINGS):
            continue
        key = _KEY_OF_VARIABLE.get(name, name)
        yield _Given(key, name, _converted(key, text), source_of(name))


def _converted(key: str, value: object) -> object:
    """Text as the number or boolean that its setting is; text that is none stays, and validation names it."""
    kind = SETTING_TYPES.get(key)
    if isinstance(value, str) and kind in (bool, int, float):
        try:
            return TypeAdapter(kind).validate_strings(value.strip())
        except ValidationError:
            return value
    return value


def _validated(given: Iterable[_Given], cwd: Path) -> LoadedSettings:
    problems: list[str] = []
    chosen: dict[str, _Given] = {}
    for one in given:
        if one.key in SETTING_TYPES:
            chosen[one.key] = one
        else:
            problems.append(_unknown(one))
    nested: dict[str, dict[str, object]] = {section: {} for section in Settings.model_fields}
    for key, one in chosen.items():
        section, name = key.split(".")
        nested[section][name] = one.value
    try:
        settings = Settings.model_validate(nested, context={"cwd": cwd})
    except ValidationError as error:
        raise _refused([*problems, *(_bad_value(detail, chosen) for detail in error.errors())]) from None
    if problems:
        raise _refused(problems)
    return LoadedSettings(settings, MappingProxyType({key: chosen[key].source for key in SETTING_KEYS}))


def _refused(problems: list[str]) -> ConfigError:
    if len(problems) == 1:
        return ConfigError(problems[0], hint=_HINT)
    return ConfigError("\n  ".join([f"{len(problems)} settings are wrong:", *problems]), hint=_HINT)


def _bad_value(detail: ErrorDetails, chosen: Mapping[str, _Given]) -> str:
    key = ".".join(str(part) for part in detail["loc"][:2])
    if "." not in key:  # found by a section's own validator, which says whose fault it is
        key = f"{key}.{detail['ctx']['key']}"
    what = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if key not in chosen:
        return f"{key}: the shipped {shipped_settings_path()} does not hold it; install piper again"
    one = chosen[key]
    return f"{key} = {_shown(one.value)} ({one.source}): {what}"


def _unknown(one: _Given) -> str:
    if one.key in Settings.model_fields:
        return f"{one.key} = {_shown(one.value)} ({one.source}): must be a table, [{one.key}]"
    names = _KEY_OF_VARIABLE if one.name.startswith(_PREFIX) else SETTING_KEYS
    near = difflib.get_close_matches(one.name, names, n=1, cutoff=0.75)
    if not near and one.name.startswith(_PREFIX):
        near = difflib.get_close_matches(one.name.upper(), names, n=1, cutoff=0.75)
    advice = f"; did you mean {near[0]}?" if near else ""
    return f"unknown setting {one.name} = {_shown(one.value)} ({one.source}){advice}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
