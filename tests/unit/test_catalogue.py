"""The catalogue tells all that there is to query, from the headers alone."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from piper.cli import app
from piper.exits import UsageError
from piper.gold.models import UNITS, load_models
from piper.ops.catalogue import find_entry, list_entries
from piper.ops.metric_list import METRICS
from piper.silver.datasets import DATASETS


def shown(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["catalog", *arguments], env={"COLUMNS": "200"}, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_every_model_view_and_metric_is_listed_and_can_be_shown() -> None:
    names = {
        "models": [model.name for model in load_models()],
        "views": [dataset.view for dataset in DATASETS.values()],
        "metrics": [metric.name for metric in METRICS],
    }
    entries = list_entries()
    assert {group: [entry["name"] for entry in found] for group, found in entries.items()} == names
    listed = shown()
    for name in (name for group in names.values() for name in group):
        assert find_entry(name)["description"]
        assert name in listed
        assert name in shown("show", name)


def test_a_model_is_shown_with_what_its_header_says() -> None:
    entry = json.loads(shown("show", "gold_activity_live", "--json"))
    assert (entry["kind"], entry["period"], entry["grain"]) == ("gold", "live", ["bucket_start", "event_group"])
    assert (entry["bucket_seconds"], entry["window_seconds"]) == (300, 48 * 3600)
    assert entry["columns"][2] == {"name": "events", "unit": "count", "type": "BIGINT", "meaning": "accepted events"}
    text = shown("show", "gold_activity_live")
    for word in (entry["description"], "bucket 5 min", "TIMESTAMP", "accepted events with status error"):
        assert word in text


def test_a_view_is_shown_with_the_columns_and_types_that_readers_find() -> None:
    entry = find_entry("silver_tractor_farm_snapshot")
    assert (entry["grain"], entry["event_types"]) == (["event_id"], "tractor.farm.snapshot")
    columns = {column["name"]: (column["type"], column["unit"]) for column in entry["columns"]}
    assert list(columns) == [name for name, _ in DATASETS["tractor_farm_snapshot"].columns]
    assert columns["snapshot_duration_ms"] == ("BIGINT", "ms")
    assert columns["busy_slots"] == ("BIGINT", "count")
    assert columns["occurred_at_utc"] == ("TIMESTAMP", "time")
    units = {column["unit"] for view in list_entries()["views"] for column in view["columns"]}
    assert units <= UNITS | {None}


def test_json_may_stand_on_either_side_of_the_command() -> None:
    assert json.loads(shown("--json")) == json.loads(shown("list", "--json")) == list_entries()
    assert json.loads(shown("--json", "show", "piper_ready")) == find_entry("piper_ready")


@pytest.mark.parametrize(
    ("name", "suggested"),
    [("gold_farm_presure_daily", "gold_farm_pressure_daily"), ("tractor", "silver_tractor_job_spool"), ("xyzzy", "")],
)
def test_a_name_that_does_not_exist_is_answered_with_those_that_look_like_it(name: str, suggested: str) -> None:
    with pytest.raises(UsageError, match="nothing in the catalogue") as refusal:
        find_entry(name)
    assert suggested in refusal.value.hint
    assert "piper catalog" in refusal.value.hint
