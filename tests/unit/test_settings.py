"""Where settings come from, which are refused, and that their four descriptions agree."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import duckdb
import pytest

from piper.errors import EX_CONFIG, ConfigError
from piper.settings import SETTING_KEYS
from piper.settings_sources import LoadedSettings, load_settings, setting_rows, shipped_settings_path, variable_name

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / ".env.example"
DOCS = REPOSITORY / "docs" / "settings.md"


def load(cwd: Path, env: Mapping[str, str] | None = None, **overrides: object) -> LoadedSettings:
    flags = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_settings(flags, env=env or {}, cwd=cwd)


def refusal(cwd: Path, env: Mapping[str, str] | None = None, **overrides: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(cwd, env, **overrides)
    assert caught.value.exit_code == EX_CONFIG == 78
    return caught.value.message


def config_file(folder: Path, text: str) -> dict[str, str]:
    path = folder / "piper.toml"
    path.write_text(text)
    return {"PIPER_CONFIG_FILE": str(path)}


def as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def shipped_defaults() -> dict[str, str]:
    tables = tomllib.loads(shipped_settings_path().read_text())
    return {f"{section}.{key}": as_text(value) for section, table in tables.items() for key, value in table.items()}


# Where a value comes from


def test_every_source_yields_to_the_one_above_it(tmp_path: Path) -> None:
    env = config_file(tmp_path, "[watch]\npoll_seconds = 2\n")
    file = f"file {tmp_path}/piper.toml"
    seen = []

    def look(**overrides: object) -> None:
        loaded = load(tmp_path, env, **overrides)
        seen.append((loaded.settings.watch.poll_seconds, loaded.sources["watch.poll_seconds"]))

    assert load(tmp_path).sources["watch.poll_seconds"] == "default"
    look()
    (tmp_path / ".env").write_text("PIPER_WATCH__POLL_SECONDS=3\n")
    look()
    env["PIPER_WATCH__POLL_SECONDS"] = "4"
    look()
    look(watch__poll_seconds=5.0)
    look(watch__poll_seconds=None)
    assert seen == [
        (2.0, file),
        (3.0, f".env ({tmp_path}/.env)"),
        (4.0, "environment PIPER_WATCH__POLL_SECONDS"),
        (5.0, "command line"),
        (4.0, "environment PIPER_WATCH__POLL_SECONDS"),
    ]


def test_the_dotenv_file_may_name_the_config_file_and_the_environment_another(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text("[metrics]\nport = 1\n")
    (tmp_path / "two.toml").write_text("[metrics]\nport = 2\n")
    (tmp_path / ".env").write_text("PIPER_CONFIG_FILE=one.toml\n")
    assert load(tmp_path).settings.metrics.port == 1
    assert load(tmp_path, {"PIPER_CONFIG_FILE": "two.toml"}).settings.metrics.port == 2
    assert load(tmp_path, {"PIPER_CONFIG_FILE": ""}).settings.metrics.port == 9464


def test_a_dotenv_file_may_be_quoted_exported_and_shared_with_other_programs(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "\ufeff# a comment\nexport PIPER_PATHS__RAW_ROOT='/spool of ours' # why\n"
        'GF_ADMIN="x\nCOMPOSE_PROJECT\nPIPER_DUCKDB__THREADS = 3\nPIPER_DUCKDB__THREADS=4\n'
    )
    settings = load(tmp_path).settings
    assert settings.paths.raw_root == Path("/spool of ours")
    assert settings.duckdb.threads == 4


def test_a_dotenv_directory_is_somebodys_virtual_environment(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    assert load(tmp_path).settings.watch.mode == "auto"


def test_variables_for_tests_and_of_other_programs_are_not_settings(tmp_path: Path) -> None:
    env = {
        "PIPER_TEST_ROOT": "x",
        "PIPER_FAILPOINT": "x",
        "PIPER_FAILPOINTS_SEED": "1",
        "PIPERS": "x",
        "HOME": "/",
    }
    assert set(load(tmp_path, env).sources.values()) == {"default"}


def test_text_of_variables_becomes_what_the_setting_is(tmp_path: Path) -> None:
    env = {
        "PIPER_PRIVACY__MASK_USERS": "yes",
        "PIPER_METRICS__PORT": " 0 ",
        "PIPER_GOLD__REFRESH_SECONDS": "3",
    }
    settings = load(tmp_path, env).settings
    assert (settings.privacy.mask_users, settings.metrics.port, settings.gold.refresh_seconds) == (
        True,
        0,
        3.0,
    )


def test_rows_show_every_key_with_value_and_source(tmp_path: Path) -> None:
    rows = setting_rows(load(tmp_path, {"PIPER_METRICS__PORT": "0"}))
    assert [row.key for row in rows] == list(SETTING_KEYS)
    by_key = {row.key: row._asdict() for row in rows}
    assert by_key["metrics.port"] == {
        "key": "metrics.port",
        "value": 0,
        "source": "environment PIPER_METRICS__PORT",
    }
    assert by_key["paths.state_root"]["value"] == "/groups/sandwich/05_production/.telemetry/state"


# Paths


def test_the_state_root_follows_the_data_root_until_it_is_set(tmp_path: Path) -> None:
    assert load(tmp_path, paths__data_root="/d").settings.paths.state_root == Path("/d/state")
    assert load(tmp_path, {"PIPER_PATHS__STATE_ROOT": "/s"}).settings.paths.state_root == Path("/s")


def test_paths_are_made_absolute_and_links_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/kim")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    paths = load(
        tmp_path, paths__raw_root="~/raw", paths__data_root="link", paths__state_root="real/../s"
    ).settings.paths
    assert (paths.raw_root, paths.data_root, paths.state_root) == (
        Path("/home/kim/raw"),
        tmp_path / "link",
        tmp_path / "s",
    )


@pytest.mark.parametrize("data_root", ["spool", "spool/host", "link/out"])
def test_output_inside_the_spool_is_refused(tmp_path: Path, data_root: str) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "link").symlink_to("spool")
    message = refusal(tmp_path, paths__raw_root="spool", paths__data_root=data_root)
    assert message == (
        f"paths.data_root = {data_root!r} (command line): is inside paths.raw_root ({tmp_path}/spool): "
        "piper would tail its own output"
    )


def test_state_in_the_spool_and_a_spool_in_the_output_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, paths__raw_root="/r", paths__state_root="/r/s").startswith("paths.state_root = '/r/s'")
    quarantine = "/d/quarantine/invalid_jsonl"
    message = refusal(tmp_path, paths__raw_root=quarantine, paths__data_root="/d")
    assert message.startswith(f"paths.raw_root = '{quarantine}' (command line): is inside /d/quarantine")


@pytest.mark.parametrize("path", ["", " ", "/d\0", "/d\udcff", "/d/[a]", "~nobody-of-that-name/d", 3])
def test_a_path_that_cannot_be_used_is_refused(tmp_path: Path, path: object) -> None:
    assert refusal(tmp_path, paths__data_root=path).startswith(f"paths.data_root = {path!r} (command line): ")


# What is refused


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("watch.mode", ["", "Auto", "inotify"]),
        ("watch.poll_seconds", ["0", "-1", "nan", "inf", "soon"]),
        ("ingest.batch_events_max", ["0", "1.5", ""]),
        ("ingest.line_bytes_max", ["1023", "1 MB"]),
        ("ingest.flush_seconds", ["-0.1", "61"]),
        ("compaction.hours", ["", "8-20", "20:00-25:00", "24:30-06:00", "06:00-06:00", "at night"]),
        ("compaction.ingest_seconds", ["-1", "3601"]),
        ("retention.silver_days", ["-1", "13", "0.5"]),
        ("retention.source_days", ["7"]),
        ("metrics.port", ["-1", "65536", "true"]),
        ("metrics.host", ["", "http://x", "a b"]),
        ("privacy.mask_users", ["maybe", "2"]),
        ("duckdb.threads", ["-1"]),
        ("duckdb.memory_limit", ["512", "80%", "lots", "1MB", "-1GB"]),
    ],
)
def test_a_bad_value_is_named_with_its_key_and_source(tmp_path: Path, key: str, bad: list[str]) -> None:
    variable = variable_name(key)
    for value in bad:
        message = refusal(tmp_path, {variable: value})
        shown = message.removeprefix(f"{key} = ").split(f" (environment {variable}): ")[0]
        assert shown in (repr(value), value, f"{value}.0")
        assert "\n" not in message


def test_the_message_says_what_would_be_right(tmp_path: Path) -> None:
    assert refusal(tmp_path, {"PIPER_WATCH__MODE": "evnets"}) == (
        "watch.mode = 'evnets' (environment PIPER_WATCH__MODE): must be 'auto', 'events' or 'poll'"
    )


@pytest.mark.parametrize(
    "line",
    [
        "[metrics]\nport = true",
        "[metrics]\nport = 1.0",
        "[privacy]\nmask_users = 1",
        "[watch]\nmode = ['poll']",
    ],
)
def test_toml_types_are_taken_seriously(tmp_path: Path, line: str) -> None:
    assert f"(file {tmp_path}/piper.toml): must be" in refusal(tmp_path, config_file(tmp_path, line))


@pytest.mark.parametrize("size", ["64MB", "512mb", "1.5GiB", "1.5 GB", "65000KB", "1TiB"])
def test_duckdb_takes_every_memory_limit_that_is_accepted(tmp_path: Path, size: str) -> None:
    limit = load(tmp_path, duckdb__memory_limit=size).settings.duckdb.memory_limit
    with duckdb.connect(config={"memory_limit": limit}) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[watch]\nmod = 'poll'", "unknown setting watch.mod = 'poll' ({}); did you mean watch.mode?"),
        ("[wach]\nmode = 'poll'", "unknown setting wach.mode = 'poll' ({}); did you mean watch.mode?"),
        ("[weather]\nsun = 1", "unknown setting weather.sun = 1 ({})"),
        ("[weather]", "unknown setting weather = {{}} ({})"),
        ("watch = 'poll'", "watch = 'poll' ({}): must be a table, [watch]"),
    ],
)
def test_an_unknown_key_in_the_file_is_refused_with_a_suggestion(tmp_path: Path, toml: str, message: str) -> None:
    assert refusal(tmp_path, config_file(tmp_path, toml)) == message.format(f"file {tmp_path}/piper.toml")


@pytest.mark.parametrize("name", ["PIPER_WATCH__MOD", "PIPER_WATCH_MODE", "PIPER_watch__mode"])
def test_an_unknown_variable_is_refused_with_a_suggestion(tmp_path: Path, name: str) -> None:
    told = "unknown setting {} = 'poll' ({}); did you mean PIPER_WATCH__MODE?"
    assert refusal(tmp_path, {name: "poll"}) == told.format(name, f"environment {name}")
    (tmp_path / ".env").write_text(f"{name}=poll\n")
    assert refusal(tmp_path) == told.format(name, f".env ({tmp_path}/.env)")


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    env = {"PIPER_COLOUR": "red", "PIPER_METRICS__PORT": "x", "PIPER_DUCKDB__THREADS": "-1"}
    lines = refusal(tmp_path, env).splitlines()
    assert lines[0] == "3 settings are wrong:"
    assert [line.split(" = ")[0].strip() for line in lines[1:]] == [
        "unknown setting PIPER_COLOUR",
        "metrics.port",
        "duckdb.threads",
    ]


def test_a_settings_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "piper.toml"
    env = {"PIPER_CONFIG_FILE": str(path)}
    assert refusal(tmp_path, env) == f"settings file {path} cannot be read: No such file or directory"
    path.write_text("watch:\n  mode: poll\n")
    assert refusal(tmp_path, env).startswith(f"settings file {path} is not TOML: ")
    path.write_bytes(b"\xff")
    assert refusal(tmp_path, env).startswith(f"settings file {path} cannot be read: 'utf-8'")
    path.unlink()
    path.mkdir()
    assert refusal(tmp_path, env) == f"settings file {path} cannot be read: Is a directory"


@pytest.mark.parametrize("line", ["PIPER_WATCH__MODE", "PIPER_WATCH__MODE='poll", "PIPER_WATCH__MODE: poll"])
def test_a_cut_line_of_ours_in_the_dotenv_file_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / ".env").write_text(f"OTHER=1\n{line}\n")
    assert refusal(tmp_path).startswith(f".env ({tmp_path}/.env), line 2, is not NAME=value: ")


# One truth


def test_the_shipped_file_holds_every_key_and_no_other() -> None:
    assert tuple(shipped_defaults()) == SETTING_KEYS


def test_every_shipped_key_has_a_comment() -> None:
    lines = shipped_settings_path().read_text().splitlines()
    keys = [number for number, line in enumerate(lines) if re.match(r"\w+ = ", line)]
    assert len(keys) == len(SETTING_KEYS)
    assert all(lines[number - 1].startswith("# ") for number in keys)


def test_the_example_dotenv_file_holds_every_key_with_its_default(tmp_path: Path) -> None:
    assignments = re.findall(r"^# (PIPER_\w+)=(.*)$", EXAMPLE.read_text(), re.MULTILINE)
    assert assignments.pop(0)[0] == "PIPER_CONFIG_FILE"
    assert assignments == [(variable_name(key), value) for key, value in shipped_defaults().items()]
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in assignments))
    copied = load(tmp_path)
    assert set(copied.sources.values()) == {f".env ({tmp_path}/.env)"}
    assert copied.settings == load(tmp_path.parent).settings


def test_the_documentation_holds_every_key_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+\.\w+)` \| `(\w+)` \| `(.*?)` \| [^|]+ \| [^|]+ \|$", DOCS.read_text(), re.MULTILINE)
    assert rows == [(key, variable_name(key), value) for key, value in shipped_defaults().items()]


def test_the_wheel_carries_the_shipped_file() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    forced = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert forced["conf/settings.toml"] == "piper/settings_defaults.toml"
