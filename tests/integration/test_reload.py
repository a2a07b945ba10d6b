"""SIGHUP and `piper reload` on a running piperd: what changes at once, what is named, what a wrong file does."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import MakePiperd
from tests.support.commands import Place
from tests.support.event_lines import append_events, ids
from tests.support.piperd import Piperd
from tests.support.polling import wait_until
from tests.support.warehouse import catalog, event_count

from piper.errors import ControlError
from piper.ops.control import ask
from piper.reload import RELOADABLE, merge
from piper.settings import SETTING_KEYS
from piper.settings_sources import load_settings

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    path = tmp_path / "piper.toml"
    path.write_text("")
    return path


@pytest.fixture
def piperd(make_piperd: MakePiperd, raw_root: Path, settings_file: Path) -> Piperd:
    """Not started; reads `settings_file` for all that a reload can change."""
    raw_root.mkdir()
    piperd = make_piperd({"CONFIG_FILE": settings_file})
    for variable in ("PUBLISH__SECONDS", "GOLD__REFRESH_SECONDS", "WATCH__POLL_SECONDS"):
        del piperd.settings[variable]
    return piperd


def events_named(piperd: Piperd, name: str) -> list[dict[str, Any]]:
    return [line for line in piperd.log_events() if line["event"] == name]


def reload(piperd: Piperd) -> dict[str, Any]:
    """Reload by signal; returns the line that tells how it ended."""
    before = len(_outcomes(piperd))
    piperd.signal(signal.SIGHUP)
    return wait_until(lambda: _outcomes(piperd)[before:], what=piperd.log_text)[0]


def _outcomes(piperd: Piperd) -> list[dict[str, Any]]:
    return [line for line in piperd.log_events() if line["event"] in {"reloaded", "reload_refused"}]


def watched_loops(piperd: Piperd) -> set[str]:
    status, body = piperd.get("/healthz")
    return {loop["loop"] for loop in json.loads(body)["loops"]} if status == 200 else set()


def gold_total(data_root: Path) -> int:
    with catalog(data_root) as con:
        row = con.execute("SELECT coalesce(sum(total_events), 0)::BIGINT FROM gold_data_quality_daily").fetchone()
    return int(row[0]) if row else 0


def test_intervals_and_limits_change_at_once_even_where_piperd_sleeps_by_the_old_ones(
    piperd: Piperd, settings_file: Path, raw_root: Path, data_root: Path
) -> None:
    slow = "[watch]\nmode = 'poll'\npoll_seconds = 3600\n[gold]\nrefresh_seconds = 86400\n[publish]\nseconds = 3600\n"
    settings_file.write_text(slow)
    append_events(raw_root, ids("first", 10))
    piperd.start_ready()
    wait_until(lambda: gold_total(data_root) == 10, what=piperd.log_text)
    wait_until(lambda: watched_loops(piperd) == {"ingest", "publish"}, what="gold rests for a day, which is no hang")
    append_events(raw_root, ids("second", 200))

    settings_file.write_text(
        "[watch]\nmode = 'poll'\npoll_seconds = 0.1\n[gold]\nrefresh_seconds = 0.2\n[publish]\nseconds = 0.1\n"
        "[ingest]\nseal_events_max = 100\n[duckdb]\nmemory_limit = '300MB'\n[logging]\nlevel = 'debug'\n"
    )
    assert reload(piperd)["event"] == "reloaded"
    changed = {line["key"]: (line["old"], line["new"]) for line in events_named(piperd, "setting_changed")}
    assert changed == {
        "watch.poll_seconds": (3600.0, 0.1),
        "ingest.seal_events_max": (20000, 100),
        "publish.seconds": (3600.0, 0.1),
        "gold.refresh_seconds": (86400.0, 0.2),
        "logging.level": ("info", "debug"),
        "duckdb.memory_limit": ("512MB", "300MB"),
    }
    wait_until(lambda: event_count(data_root) == 210, what=piperd.log_text)
    wait_until(lambda: gold_total(data_root) == 210, what=piperd.log_text)
    wait_until(lambda: list((data_root / "silver" / "events").rglob("event_date=*/**/*.parquet")))
    wait_until(lambda: any(line["level"] == "debug" for line in piperd.log_events()))
    piperd.stop()


def test_what_needs_a_restart_is_named_until_it_is_done(
    piperd: Piperd, settings_file: Path, data_root: Path, tmp_path: Path
) -> None:
    piperd.start_ready()
    settings_file.write_text(
        f"[paths]\nstate_root = '{tmp_path}/elsewhere'\n[ingest]\nline_bytes_max = 4096\nseal_seconds = 60\n"
    )
    for _ in range(2):
        outcome = reload(piperd)
    assert (outcome["applied"], outcome["needs_restart"]) == (0, 2), "the second time seal_seconds is in force"
    named = [(line["key"], line["level"], line["hint"]) for line in events_named(piperd, "setting_needs_restart")]
    hint = "Restart piperd to put it in force."
    assert named == [("paths.state_root", "warning", hint), ("ingest.line_bytes_max", "warning", hint)] * 2
    assert ask(data_root / "state" / "control.sock", "status")["state"] == "running"
    piperd.stop()


@pytest.mark.parametrize("wrong", ["[gold]\nrefresh_seconds = -1\n[publish]\nseconds = 9\n", "[gold\n", None])
def test_a_wrong_settings_file_changes_nothing_and_says_why(
    piperd: Piperd, settings_file: Path, raw_root: Path, data_root: Path, wrong: str | None
) -> None:
    piperd.start_ready()
    settings_file.unlink() if wrong is None else settings_file.write_text(wrong)
    refused = reload(piperd)
    assert (refused["event"], refused["level"]) == ("reload_refused", "error")
    assert str(settings_file) in refused["error"]
    assert refused["hint"]
    with pytest.raises(ControlError, match=re.escape(str(settings_file))):
        ask(data_root / "state" / "control.sock", "reload")
    assert not events_named(piperd, "setting_changed")

    append_events(raw_root, ids("after", 5))
    wait_until(lambda: event_count(data_root) == 5, what=piperd.log_text)
    settings_file.write_text("[publish]\nseconds = 0.7\n")
    assert reload(piperd)["applied"] == 1
    piperd.stop()


def test_piper_reload_says_what_is_in_force_and_what_is_not(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.raw.mkdir()
    (tmp_path / ".env").write_text("")
    with place.piperd():
        assert place.json("reload") == {"applied": [], "needs_restart": []}
        (tmp_path / ".env").write_text("PIPER_GOLD__REFRESH_SECONDS=2\nPIPER_WATCH__MODE=poll\n")
        source = f".env ({tmp_path}/.env)"
        answer = place.json("reload")
        assert answer == {
            "applied": [{"key": "gold.refresh_seconds", "old": 10.0, "new": 2.0, "source": source}],
            "needs_restart": [{"key": "watch.mode", "old": "auto", "new": "poll", "source": source}],
        }
        again = place.piper("reload")
        assert again.stdout == f"watch.mode: still auto; poll ({source}) needs a restart of piperd\n"
    done = place.piper("reload")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_every_setting_is_either_taken_over_or_named(tmp_path: Path) -> None:
    other = {
        "watch.mode": "poll",
        "logging.level": "debug",
        "logging.format": "text",
        "metrics.host": "localhost",
        "compaction.hours": "always",
        "retention.silver_days": 30,
        "privacy.mask_users": True,
        "duckdb.memory_limit": "256MB",
        "paths.raw_root": "/elsewhere/raw",
        "paths.data_root": "/elsewhere/data",
        "paths.state_root": "/elsewhere/state",
    }
    running = load_settings(env={}, cwd=tmp_path)
    changed: dict[str, object] = dict(other)
    for key in set(SETTING_KEYS) - set(other):
        section, name = key.split(".")
        value = getattr(getattr(running.settings, section), name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            changed[key] = value + 1
    merged, outcome = merge(running.settings, wanted := load_settings(changed, env={}, cwd=tmp_path))
    assert {change.key for change in outcome.applied} == set(RELOADABLE)
    assert {change.key for change in outcome.needs_restart} == set(changed) - set(RELOADABLE)
    again, rest = merge(merged, wanted)
    assert (again, rest.applied, rest.needs_restart) == (merged, [], outcome.needs_restart)


def test_the_documentation_names_exactly_what_can_be_reloaded() -> None:
    section = DOCS.read_text("utf-8").split("## Reload")[1].split("\n## ")[0]
    assert re.findall(r"`(\w+\.\w+)`", section.split("\n\n")[2]) == list(RELOADABLE)
