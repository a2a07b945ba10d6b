"""The model files keep the contract with dashboards, and a file that contradicts its header is refused."""

from __future__ import annotations

import pytest

from piper.gold.inputs import OWN_COLUMNS
from piper.gold.models import OUTPUT_TYPES, GoldModelError, load_models, parse_model
from piper.gold.own import in_turn
from piper.ops.metric_list import GOLD_MODELS

CONTRACT = """
gold_activity_daily: event_date event_type | events errors last_event_at last_ingested_at
gold_activity_live: bucket_start event_group | events errors
gold_as_of: model | refreshed_at last_event_at last_ingested_at
gold_data_quality_daily: event_date | total_events error_events error_rate_pct active_users active_hosts
    active_event_types unknown_type_events contract_violations quarantined_lines duplicate_events
    p95_ingest_lag_s max_clock_skew_s
gold_farm_pressure_daily: event_date | snapshot_count error_snapshot_count avg_active_jobs peak_active_jobs
    avg_waiting_jobs peak_waiting_jobs avg_active_blades peak_active_blades total_blades
    avg_slot_utilisation_pct peak_slot_utilisation_pct peak_errored_jobs
gold_farm_pressure_live: bucket_start | snapshot_count error_snapshot_count avg_active_jobs avg_waiting_jobs
    peak_waiting_jobs avg_active_blades total_blades avg_slot_utilisation_pct peak_errored_jobs
gold_host_activity_daily: event_date host | events errors last_event_at last_event_lag_s last_ingested_at
gold_ingest_live: host | last_event_at last_ingested_at lag_s files bytes_behind as_of
gold_publish_health_daily: event_date show sequence event_type | total_publishes success_count error_count
    success_rate_pct avg_duration_ms p50_duration_ms p95_duration_ms total_output_bytes
gold_render_health_daily: event_date show sequence | total_jobs success_count error_count success_rate_pct
    total_frames total_failed_frames frame_success_rate_pct avg_render_time_s p90_frame_time_s
    total_cpu_hours peak_memory_gb avg_queue_wait_s total_retries
gold_storage_growth_weekly: week_start bucket scope_type scope_code root_path | scan_count latest_size_bytes
    latest_file_count latest_dir_count growth_bytes
gold_tool_reliability_daily: event_date event_type | total_invocations success_count error_count
    success_rate_pct avg_duration_ms p95_duration_ms active_users
"""

DOCUMENTED = "-- column publishes: publishes of any\n--   status; unit count\n"
SOUND = f"""-- description: Publishes a day.
-- grain: event_date
-- inputs: silver_publish_usd
-- period: day
-- column event_date: day; unit date
{DOCUMENTED}SELECT event_date, COUNT(*) AS publishes FROM silver_publish_usd GROUP BY event_date;
"""


def test_the_models_have_the_grain_and_the_columns_of_the_contract() -> None:
    words: list[str] = []
    for model in load_models():
        columns = [column.name for column in model.columns]
        assert columns[: len(model.grain)] == list(model.grain)
        words += [f"{model.name}:", *model.grain, "|", *columns[len(model.grain) :]]
    assert words == CONTRACT.split()


def test_every_column_has_a_type_that_dashboards_read_and_rates_are_percentages() -> None:
    columns = [column for model in load_models() for column in model.columns]
    assert {column.type for column in columns} <= OUTPUT_TYPES
    suffixes = {"_pct": "percent", "_ms": "ms", "_s": "s", "_bytes": "bytes", "_gb": "GB", "_hours": "h"}
    for column in columns:
        for suffix, unit in suffixes.items():
            if column.name.endswith(suffix):
                assert column.unit == unit, column


def test_the_metrics_have_a_series_for_every_model() -> None:
    assert sorted(GOLD_MODELS) == [model.name for model in load_models()]


def test_what_models_read_of_each_other_is_there_in_these_types() -> None:
    for model in load_models():
        read = OWN_COLUMNS.get(model.name, {})
        assert read.items() <= {column.name: column.type for column in model.columns}.items(), model.name


def test_models_are_computed_after_those_that_they_read() -> None:
    names = [model.name for model in in_turn(load_models())]
    assert names[-1] == "gold_as_of"
    for model in load_models():
        for name in set(model.inputs) & set(names):
            assert names.index(name) < names.index(model.name)


def test_models_are_sorted_and_loaded_once() -> None:
    names = [model.name for model in load_models()]
    assert names == sorted(names)
    assert load_models() is load_models()


def test_a_header_is_read_with_its_continuation_lines() -> None:
    model = parse_model("m", SOUND)
    assert (model.description, model.grain, model.inputs, model.period) == (
        "Publishes a day.",
        ("event_date",),
        ("silver_publish_usd",),
        "day",
    )
    assert [(column.name, column.unit, column.meaning, column.type) for column in model.columns] == [
        ("event_date", "date", "day", "DATE"),
        ("publishes", "count", "publishes of any status", "BIGINT"),
    ]
    assert model.sql.startswith("SELECT")
    assert model.sql.endswith("event_date")


def test_the_definition_changes_with_the_statement_and_not_with_the_prose() -> None:
    model = parse_model("m", SOUND)
    assert parse_model("m", SOUND.replace("Publishes a day", "Daily")).definition == model.definition
    assert parse_model("m", SOUND.replace("COUNT(*)", "COUNT(status)")).definition != model.definition


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            "-- column publishes: publishes of any\n--   status; unit count\n",
            "",
            "without a header line: publishes",
        ),
        ("SELECT event_date,", "SELECT event_date, 1::BIGINT AS extra,", "without a header line: extra"),
        ("-- period: day", "-- period: day\n-- column gone: x; unit text", "SELECT lacks: gone"),
        ("-- grain: event_date\n", "", "header lacks grain"),
        ("-- period: day", "-- period: month", "'month', not day, week, live, now"),
        ("-- period: day", "-- period: day\n-- window: 48 h", "period day takes no span of time"),
        ("-- period: day", "-- period: live\n-- window: 48 h", "period live takes bucket, window"),
        ("-- period: day", "-- period: live\n-- window: 2 d\n-- bucket: 5 m", "window is '2 d'"),
        ("-- period: day", "-- period: live\n-- window: 48 h\n-- bucket: 7 m", "does not divide a day"),
        ("-- period: day", "-- period: day\n-- merge: publishes mean", "'publishes mean' is not"),
        ("-- period: day", "-- period: day\n-- merge: event_date max", "every column beside the grain"),
        ("; unit count", "; unit furlongs", "needs '; unit"),
        ("; unit count", "", "needs '; unit"),
        ("-- period: day", "-- period: day\n-- period: week", "unknown or repeated"),
        ("-- period: day", "-- period: day\n-- owner: me", "unknown or repeated"),
        ("-- period: day", "-- period: day\nhm", "does not bind"),
        ("-- column event_date: day; unit date\n", "-- column event_date: day; unit date\n" * 2, "twice"),
        ("-- inputs: silver_publish_usd", "-- inputs: silver_secrets", "unknown inputs silver_secrets"),
        ("-- inputs: silver_publish_usd", "-- inputs: silver_events", "does not bind"),
        ("-- grain: event_date", "-- grain: publishes", "not in the order"),
        ("COUNT(*)", "SUM(duration_ms)", "publishes HUGEINT"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(old: str, new: str, complaint: str) -> None:
    assert old in SOUND
    with pytest.raises(GoldModelError, match="gold model broken_daily") as refusal:
        parse_model("broken_daily", SOUND.replace(old, new))
    assert complaint in refusal.value.message
