"""The rules of conf/prometheus as promtool sees them, and the runbook that they link to."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.prometheus import CONF, promtool, rules
from tests.support.promql import metric_names

from piper.settings_sources import load_settings

ROOT = Path(__file__).resolve().parents[2]
RUNBOOK = ROOT / "docs" / "alerts.md"
RULE_FILES = sorted((CONF / "rules").glob("*.yml"))
TEST_FILES = sorted((CONF / "tests").glob("*.yml"))
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for rule in rules() if "alert" in rule}

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on PATH")


@needs_promtool
def test_promtool_accepts_the_configuration_and_every_rule() -> None:
    for arguments in (("config", CONF / "prometheus.yml"), ("rules", "--lint=all", "--lint-fatal", *RULE_FILES)):
        checked = promtool("check", *arguments)
        assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_promtool
@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.stem)
def test_every_case_of_the_rules_holds(path: Path) -> None:
    tested = promtool("test", "rules", path)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def cases() -> Iterator[tuple[str, str, bool]]:
    """(kind of case, alert, whether it is to fire) of every expectation; the kinds are words in the tests' names."""
    for path in TEST_FILES:
        for test in yaml.safe_load(path.read_text("utf-8"))["tests"]:
            for expected in test["alert_rule_test"]:
                for kind in re.findall(r"\b(firing|quiet|idle)\b", test["name"]):
                    yield kind, expected["alertname"], bool(expected.get("exp_alerts"))


@pytest.mark.parametrize("alert", ALERTS)
@pytest.mark.parametrize("case", [("firing", True), ("quiet", False), ("idle", False)], ids=lambda case: case[0])
def test_every_alert_has_a_firing_a_quiet_and_an_idle_case(alert: str, case: tuple[str, bool]) -> None:
    kind, fires = case
    assert (kind, alert, fires) in set(cases())


def test_the_idle_night_is_one_for_every_alert() -> None:
    [night] = yaml.safe_load((CONF / "tests" / "idle_overnight.yml").read_text("utf-8"))["tests"]
    assert [expected["alertname"] for expected in night["alert_rule_test"]] == list(ALERTS)
    told = {name for series in night["input_series"] for name in metric_names(series["series"])}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    asked = {name for rule in rules() for name in metric_names(rule["expr"])}
    # The studio of that night keeps its state where its data is.
    state_disk = {"piper_state_disk_free_bytes", "piper_state_disk_size_bytes"}
    assert asked - recorded - state_disk <= told


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_bad_it_is_what_it_means_and_where_to_read_on(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"] in ({"severity": "critical"}, {"severity": "warning"})
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert "$labels.instance" in rule["annotations"]["description"]
    assert rule["annotations"]["runbook_url"] == f"docs/alerts.md#{alert.lower()}"


def sections() -> dict[str, str]:
    """The runbook's section of each alert."""
    headings = re.split(r"^### (\w+)$", RUNBOOK.read_text("utf-8"), flags=re.MULTILINE)[1:]
    return dict(zip(headings[::2], headings[1::2], strict=True))


def test_the_runbook_has_a_section_for_every_alert_and_for_nothing_else() -> None:
    assert list(sections()) == list(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_a_section_of_the_runbook_gives_severity_meaning_causes_checks_and_remedy(alert: str) -> None:
    section = sections()[alert]
    assert f"*{ALERTS[alert]['labels']['severity']}*" in section
    _, *parts = re.split(r"^\*\*(\w+):\*\*", section, flags=re.MULTILINE)
    assert parts[::2] == ["Means", "Causes", "Check", "Remedy"]
    assert "`" in parts[parts.index("Check") + 1], "no command to check with"


def test_the_runbook_looks_for_log_events_that_exist() -> None:
    source = "".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))
    patterns = re.findall(r"--grep '?([\w| ]+)", RUNBOOK.read_text("utf-8"))
    events = {event for pattern in patterns for event in pattern.strip().split("|") if "_" in event}
    assert "commit_failed" in events
    assert {event for event in events if f'"{event}"' not in source} == set()


def test_prometheus_scrapes_where_piperd_listens_by_default(tmp_path: Path) -> None:
    [job] = yaml.safe_load((CONF / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    metrics = load_settings(env={}, cwd=tmp_path).settings.metrics
    assert job["static_configs"] == [{"targets": [f"{metrics.host}:{metrics.port}"]}]


@pytest.mark.parametrize(
    ("expr", "names"),
    [
        ('up{job="piper"} == 0 or absent(up{job="a}b"})', {"up"}),
        ("sum by (le) (rate(x_bucket[5m] offset 1w45m)) / on (job) group_left () y > bool 1e9", {"x_bucket", "y"}),
        ("a:b:c unless -z * 2^30 # not d\n and label_replace(e, 'f', '$1', \"g\", 'h')", {"a:b:c", "z", "e"}),
        ("histogram_quantile(0.5, sum without (le) (rate(k_bucket[$__rate_interval])))", {"k_bucket"}),
    ],
)
def test_names_of_metrics_are_found_in_expressions(expr: str, names: set[str]) -> None:
    assert metric_names(expr) == names
