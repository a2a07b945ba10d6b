from __future__ import annotations

import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

import piper
from piper.ops.health import Health
from piper.ops.metric_list import METRICS
from piper.ops.metrics import Metrics

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
NOW = 1_760_000_000.0


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(clock=lambda: NOW)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def families(metrics: Metrics) -> dict[str, str]:
    """Type by name, as Prometheus sees them in the text format."""
    text = generate_latest(metrics.registry).decode()
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, flags=re.MULTILINE))


def documented() -> dict[str, tuple[str, str, str, str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in DOCS.read_text().splitlines()]
    table = [row for row in rows if len(row) == 5 and row[0].startswith("`")]
    names = [row[0].strip("`") for row in table]
    assert len(names) == len(set(names)), "a metric is documented twice"
    return {name: (row[1], row[2], row[3], row[4]) for name, row in zip(names, table, strict=True)}


def test_every_metric_that_exists_is_documented_and_nothing_else_is(metrics: Metrics) -> None:
    assert {name: row[0] for name, row in documented().items()} == families(metrics)


def test_the_documentation_says_what_the_list_of_metrics_says() -> None:
    for metric in METRICS:
        labels = "<br>".join(
            f"`{name}`: {', '.join(values)}" if values else f"`{name}`" for name, values in metric.labels.items()
        )
        assert documented()[metric.name] == (metric.kind, labels or "–", metric.unit, metric.meaning)


def test_every_series_of_a_closed_set_exists_as_zero_before_anything_happened(metrics: Metrics) -> None:
    samples = [
        sample
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        for sample in family.samples
        if family.name.startswith("piper_") and family.name != "piper_build_info"
    ]
    assert {sample.value for sample in samples} == {0.0}
    for metric in METRICS:
        expected = int(np.prod([len(values) for values in metric.labels.values()]))
        suffix = "_count" if metric.kind == "histogram" else ""
        assert sum(sample.name == metric.name + suffix for sample in samples) == expected, metric.name


def test_no_metric_has_a_label_that_people_on_the_spool_could_choose() -> None:
    names = {name for metric in METRICS for name in metric.labels}
    assert names <= {
        "kind", "group", "reason", "stage", "model", "result", "dataset", "duty", "errno",
        "version", "duckdb_version", "python_version",
    }  # fmt: skip


@pytest.mark.parametrize(
    "misuse",
    [
        lambda x: x.file_event("/spool/host/user/a.jsonl"),
        lambda x: x.lines_quarantined("bad"),
        lambda x: x.commit_failed("ENOSPC"),
        lambda x: x.batch_committed({"lighting": 1}, 0.1),
        lambda x: x.gold_refreshed("gold_new", 0.1, True),
        lambda x: x.chunk_sealed("gold", 1, 1),
        lambda x: x.storage({"warehouse": 1}),
        lambda x: x.last_event("unheard.of", 1.0),
    ],
)
def test_a_label_value_outside_its_closed_set_is_refused_and_makes_no_series(
    metrics: Metrics, misuse: Callable[[Metrics], None]
) -> None:
    before = generate_latest(metrics.registry).count(b"\npiper_")
    with pytest.raises(ValueError, match="has no series"):
        misuse(metrics)
    assert generate_latest(metrics.registry).count(b"\npiper_") == before


CONTRACT = """
piper_build_info{version,duckdb_version,python_version} piper_files_tracked piper_files_discovered_total
piper_file_events_total{kind} piper_bytes_read_total piper_lines_read_total piper_events_ingested_total{group}
piper_lines_quarantined_total{reason} piper_events_duplicate_total piper_lost_bytes_total piper_backlog_bytes
piper_backlog_files piper_oldest_unread_age_seconds piper_ingest_lag_seconds piper_last_scan_timestamp_seconds
piper_last_commit_timestamp_seconds piper_last_publish_timestamp_seconds
piper_last_event_timestamp_seconds{group}
piper_stage_duration_seconds{stage} piper_batch_events piper_commit_errors_total{kind}
piper_gold_refresh_duration_seconds{model} piper_gold_refreshes_total{model,result}
piper_gold_last_success_timestamp_seconds{model} piper_chunks{dataset} piper_storage_bytes{kind}
piper_disk_free_bytes piper_disk_size_bytes
"""


def test_the_names_and_labels_that_dashboards_and_rules_use_are_there() -> None:
    there = {metric.name + ("{" + ",".join(metric.labels) + "}" if metric.labels else "") for metric in METRICS}
    assert set(CONTRACT.split()) <= there


def test_two_daemons_in_one_process_do_not_share_their_numbers() -> None:
    first, second = Metrics(), Metrics()
    first.lost_bytes(10)
    assert (value(first, "piper_lost_bytes_total"), value(second, "piper_lost_bytes_total")) == (10, 0)


def test_build_info_names_the_versions_that_run(metrics: Metrics) -> None:
    [sample] = [s for f in metrics.registry.collect() if f.name == "piper_build_info" for s in f.samples]
    assert sample.value == 1
    assert sample.labels["version"] == piper.__version__
    assert re.match(r"\d+\.\d+", sample.labels["duckdb_version"])


def test_a_batch_counts_its_events_by_group_and_its_duplicates(metrics: Metrics) -> None:
    metrics.batch_read(4096, 12, 0.002)
    metrics.batch_parsed(11, 1, 0.003)
    with capture_logs() as logs:
        metrics.batch_committed({"publish": 7, "render": 2}, 0.004, duplicates=2, unknown_types=1)
    assert value(metrics, "piper_bytes_read_total") == 4096
    assert value(metrics, "piper_lines_read_total") == 12
    assert value(metrics, "piper_events_ingested_total", group="publish") == 7
    assert value(metrics, "piper_events_ingested_total", group="render") == 2
    assert value(metrics, "piper_events_duplicate_total") == 2
    assert value(metrics, "piper_unknown_type_events_total") == 1
    assert value(metrics, "piper_batch_events_bucket", le="10.0") == 1
    assert value(metrics, "piper_batch_events_sum") == 9
    assert value(metrics, "piper_last_commit_timestamp_seconds") == NOW
    for stage in ("read", "parse", "commit"):
        assert value(metrics, "piper_stage_duration_seconds_count", stage=stage) == 1
    assert logs == [
        {
            "component": "silver", "event": "batch_committed", "log_level": "debug", "events": 9,
            "seconds": 0.004, "duplicates": 2, "unknown_types": 1,
        }
    ]  # fmt: skip


def test_what_costs_data_is_counted_and_logged_together(metrics: Metrics) -> None:
    with capture_logs() as logs:
        metrics.lines_quarantined("invalid_utf8", 3)
        metrics.lines_quarantined("clock_skew", 0)
        metrics.file_event("truncated", path="/spool/h/u/a.jsonl")
        metrics.file_event("vanished", 5)
        metrics.lost_bytes(17, path="/spool/h/u/a.jsonl")
        metrics.commit_failed("disk_full", error="No space left on device")
    assert value(metrics, "piper_lines_quarantined_total", reason="invalid_utf8") == 3
    assert value(metrics, "piper_file_events_total", kind="vanished") == 5
    assert value(metrics, "piper_lost_bytes_total") == 17
    assert value(metrics, "piper_commit_errors_total", kind="disk_full") == 1
    assert [(entry["event"], entry["log_level"], entry.get("path")) for entry in logs] == [
        ("lines_quarantined", "warning", None),
        ("file_event", "warning", "/spool/h/u/a.jsonl"),
        ("file_event", "info", None),
        ("bytes_lost", "error", "/spool/h/u/a.jsonl"),
        ("commit_failed", "error", None),
    ]


def test_a_failed_refresh_leaves_the_time_of_the_last_success(metrics: Metrics) -> None:
    model = "gold_farm_pressure_daily"
    metrics.gold_refreshed(model, 0.2, True)
    metrics.gold_refreshed(model, 9.0, False, error="out of memory")
    assert value(metrics, "piper_gold_refreshes_total", model=model, result="ok") == 1
    assert value(metrics, "piper_gold_refreshes_total", model=model, result="error") == 1
    assert value(metrics, "piper_gold_last_success_timestamp_seconds", model=model) == NOW
    assert value(metrics, "piper_gold_refresh_duration_seconds_sum", model=model) == pytest.approx(9.2)


def test_gold_is_current_at_every_look_and_not_only_when_something_was_refreshed(metrics: Metrics) -> None:
    metrics.gold_current(["gold_farm_pressure_daily"])
    name = "piper_gold_current_timestamp_seconds"
    assert value(metrics, name, model="gold_farm_pressure_daily") == NOW
    assert value(metrics, name, model="gold_render_health_daily") == 0
    assert value(metrics, "piper_gold_last_success_timestamp_seconds", model="gold_farm_pressure_daily") == 0


def test_gauges_show_the_state_that_was_reported_last(metrics: Metrics) -> None:
    metrics.scan_finished(40, 0.01, discovered=40)
    metrics.scan_finished(38, 0.01)
    metrics.backlog(10_000, 3, 2.5)
    metrics.chunks_counted({"events": 4})
    metrics.chunk_sealed("events", 100, 5000)
    metrics.seal_finished(1, 100, 0.05, sealed_through=77)
    metrics.published(0.02, tail_rows=12)
    metrics.storage({"silver": 5000, "tail": 800})
    metrics.disk(10, 100)
    metrics.state_disk(5, 50)
    expected = {
        "piper_files_tracked": 38, "piper_files_discovered_total": 40,
        "piper_last_scan_timestamp_seconds": NOW,
        "piper_backlog_bytes": 10_000, "piper_backlog_files": 3, "piper_oldest_unread_age_seconds": 2.5,
        "piper_sealed_through": 77, "piper_tail_rows": 12, "piper_last_publish_timestamp_seconds": NOW,
        "piper_disk_free_bytes": 10, "piper_disk_size_bytes": 100,
        "piper_state_disk_free_bytes": 5, "piper_state_disk_size_bytes": 50,
    }  # fmt: skip
    assert {name: value(metrics, name) for name in expected} == expected
    assert value(metrics, "piper_chunks", dataset="events") == 5
    assert value(metrics, "piper_storage_bytes", kind="silver") == 5000


def test_an_older_event_does_not_turn_the_last_event_back(metrics: Metrics) -> None:
    metrics.last_event("farm", NOW)
    metrics.last_event("farm", NOW - 86_400)
    assert value(metrics, "piper_last_event_timestamp_seconds", group="farm") == NOW


def test_lags_fall_into_the_buckets_that_one_observation_at_a_time_would_choose(metrics: Metrics) -> None:
    [metric] = [metric for metric in METRICS if metric.name == "piper_ingest_lag_seconds"]
    lags = np.concatenate([np.random.default_rng(7).exponential(100.0, 3000), metric.buckets, [0.0, 9e6]])
    registry = CollectorRegistry()
    reference = Histogram(metric.name, metric.meaning, buckets=metric.buckets, registry=registry)
    for lag in lags.tolist():
        reference.observe(lag)
    metrics.ingest_lag(lags[:1000])
    metrics.ingest_lag(lags[1000:])
    metrics.ingest_lag(np.array([]))

    def buckets(of: CollectorRegistry) -> dict[str, float]:
        [family] = [family for family in of.collect() if family.name == metric.name]
        return {s.name + s.labels.get("le", ""): s.value for s in family.samples if not s.name.endswith("_created")}

    assert buckets(metrics.registry) == pytest.approx(buckets(registry))


def test_a_lag_of_a_host_whose_clock_is_ahead_counts_as_none(metrics: Metrics) -> None:
    metrics.ingest_lag([-3600.0, float("nan"), 1.0])
    assert value(metrics, "piper_ingest_lag_seconds_sum") == 1.0
    assert value(metrics, "piper_ingest_lag_seconds_bucket", le="0.25") == 2


def test_observations_of_many_threads_are_all_counted(metrics: Metrics) -> None:
    def work() -> None:
        for _ in range(200):
            metrics.ingest_lag([0.1, 5.0])
            metrics.batch_committed({"tool": 1}, 0.001)

    with capture_logs():
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert value(metrics, "piper_ingest_lag_seconds_count") == 1600
    assert value(metrics, "piper_events_ingested_total", group="tool") == 800


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def utc(self) -> datetime:
        return datetime.fromtimestamp(self.now, UTC)


def test_a_loop_is_stale_when_it_is_silent_for_longer_than_its_own_limit() -> None:
    clock = Clock()
    health = Health(limits={"ingest": 60, "gold": 600}, monotonic=clock)
    assert health.is_alive() == (True, [])
    health.beat("ingest")
    health.beat("gold")
    clock.now += 60
    assert health.is_alive()[0]
    clock.now += 1
    ok, loops = health.is_alive()
    assert not ok
    assert [(loop["loop"], loop["ok"], loop["silent_seconds"]) for loop in loops] == [
        ("gold", True, 61.0),
        ("ingest", False, 61.0),
    ]
    health.beat("ingest")
    assert health.is_alive()[0]


def test_a_loop_that_ended_on_purpose_is_not_taken_for_hung() -> None:
    clock = Clock()
    health = Health(monotonic=clock)
    health.beat("ingest")
    health.ended("ingest")
    clock.now += 3600
    assert health.is_alive() == (True, [])


def test_it_is_ready_when_all_conditions_hold_and_tells_which_do_not_since_when(metrics: Metrics) -> None:
    clock = Clock()
    health = Health(conditions=("first_scan", "spool"), utc_now=clock.utc)
    metrics.show_health(health)
    assert value(metrics, "piper_ready") == 0
    assert [row["condition"] for row in health.readiness()[1]] == ["first_scan", "spool"]
    health.set_ready("first_scan")
    health.set_ready("spool")
    assert health.readiness() == (True, [])
    assert value(metrics, "piper_ready") == 1
    clock.now = 200.0
    health.set_not_ready("spool", "the mount is gone")
    clock.now = 300.0
    health.set_not_ready("spool", "EIO")
    assert health.readiness() == (
        False,
        [{"condition": "spool", "reason": "EIO", "since_utc": "1970-01-01T00:03:20+00:00"}],
    )


def test_a_mistyped_loop_or_condition_is_an_error_and_not_an_unwatched_one() -> None:
    health = Health()
    with pytest.raises(ValueError, match="ingets"):
        health.beat("ingets")
    with pytest.raises(ValueError, match="spol"):
        health.set_ready("spol")
    with pytest.raises(ValueError, match="spol"):
        health.set_not_ready("spol", "")
