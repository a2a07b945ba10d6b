"""A real Prometheus, with the rules of conf/prometheus, over a real piperd that ingests a small spool.

Both run once for the whole module, until everything has been scraped `SCRAPES` times, a second apart. The environment
variable PROMETHEUS_SCRAPES makes that longer: .ci/run watches for a minute.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support import dashboards
from tests.support.piperd import Piperd
from tests.support.polling import wait_until
from tests.support.prometheus import Prometheus, promtool, rules
from tests.support.promql import metric_names

from piper.demo.simulate import SimulateOptions, simulate
from piper.ops.metric_list import METRICS

SCRAPES = int(os.environ.get("PROMETHEUS_SCRAPES", "5"))
DEADLINE_SECONDS = 60.0
EVENTS, BAD_LINES = 300, 150
WEEK = 7 * 86_400
MACRO = re.compile(r"\$__(rate_interval|range|interval)\b")
WINDOW = "5m"
"""What Grafana would put for each of these: all that happened here is within."""
GROUP = "tool"

pytestmark = [
    pytest.mark.skipif(
        not shutil.which("prometheus") or not shutil.which("promtool"), reason="prometheus is not on PATH"
    ),
    pytest.mark.timeout(400),
]


@dataclass(frozen=True)
class Site:
    """What runs."""

    root: Path
    raw_root: Path
    piperd: Piperd
    prometheus: Prometheus


def habit(target: str) -> str:
    """What piperd at `target` would have told in the two weeks before: forty tool events in two hours of each."""
    now = int(time.time())
    name = "piper_events_ingested"
    samples = [
        f'{name}_total{{job="piper",instance="{target}",group="{GROUP}"}} {count} {now - weeks * WEEK + seconds}'
        for weeks, before in ((2, 0), (1, 40))
        for count, seconds in ((before + step, (step - 40) * 180) for step in range(41))
    ]
    return "\n".join([f"# TYPE {name} counter", *samples, "# EOF\n"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("prometheus-site")
    raw_root = root / "raw"
    simulate(SimulateOptions(raw_root, hosts=3, users=2, events=EVENTS, rate=0.0, malformed_ratio=0.0))
    with Piperd(raw_root, root / "data", root / "logs") as piperd:
        piperd.start_ready()
        target = f"127.0.0.1:{piperd.url_port}"
        with Prometheus(root / "prometheus", target, habit(target)) as prometheus:
            watch(raw_root, piperd, prometheus)
            yield Site(root, raw_root, piperd, prometheus)


def watch(raw_root: Path, piperd: Piperd, prometheus: Prometheus) -> None:
    """Until everything is scraped and evaluated: first good lines, then bad ones, so that an alert is on its way."""

    def told(expr: str) -> None:
        wait_until(lambda: prometheus.value(expr), DEADLINE_SECONDS, what=lambda: f"{expr}\n{prometheus.log_text()}")

    told(f"sum(piper_events_ingested_total) >= {EVENTS}")
    file = next(raw_root.glob("*/*/*.jsonl"))
    with file.open("ab") as stream:
        stream.write(b"no JSON\n" * BAD_LINES)
    told(f"sum(piper_lines_quarantined_total) >= {BAD_LINES}")
    told('count(ALERTS{alertname="PiperQuarantineRateVeryHigh", alertstate="pending"})')
    told(f'count_over_time(up{{job="piper"}}[1d]) >= {SCRAPES}')
    assert piperd.is_running


def test_every_metric_that_a_rule_or_a_dashboard_names_exists(site: Site) -> None:
    existing = site.prometheus.names()
    named = {
        name: f"rule {rule.get('alert', rule.get('record'))}" for rule in rules() for name in metric_names(rule["expr"])
    }
    named |= {name: f"dashboard {uid}" for uid, expr in dashboards.promql_targets() for name in metric_names(expr)}
    assert {name: where for name, where in named.items() if name not in existing} == {}
    assert {metric.name for metric in METRICS if metric.kind != "histogram"} <= existing


def test_all_rules_are_loaded_and_evaluate_without_an_error(site: Site) -> None:
    def evaluated() -> list[dict[str, str]]:
        groups = site.prometheus.api("rules")["groups"]
        found = [rule for group in groups for rule in group["rules"]]
        return found if all(rule["health"] != "unknown" for rule in found) else []

    found = wait_until(evaluated, DEADLINE_SECONDS)
    assert {rule["name"] for rule in found} == {rule.get("alert", rule.get("record")) for rule in rules()}
    assert [(rule["name"], rule.get("lastError")) for rule in found if rule["health"] != "ok"] == []


def test_no_scrape_failed(site: Site) -> None:
    [target] = site.prometheus.api("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert site.prometheus.value('min_over_time(up{job="piper"}[1d])') == 1


def test_a_healthy_daemon_raises_no_alert_but_the_one_that_was_provoked(site: Site) -> None:
    active = {found["labels"]["alertname"] for found in site.prometheus.query("ALERTS")}
    assert active == {"PiperQuarantineRateHigh", "PiperQuarantineRateVeryHigh"}


def test_the_habit_of_a_group_is_taken_from_the_weeks_before(site: Site) -> None:
    usual = site.prometheus.value(f'piper:events_usual:min2w{{group="{GROUP}"}}')
    assert usual == pytest.approx(10, abs=1.5)  # one every three minutes, for half an hour


def test_gold_is_current_again_and_again_although_nothing_is_new(site: Site) -> None:
    model = '{model="gold_publish_health_daily"}'

    def gold(name: str) -> float:
        return site.prometheus.value(f"piper_gold_{name}_timestamp_seconds{model}")

    wait_until(lambda: gold("current") > gold("last_success") + 1, DEADLINE_SECONDS)
    before = gold("last_success"), gold("current")
    wait_until(lambda: gold("current") > before[1], DEADLINE_SECONDS)
    assert gold("last_success") == before[0]


@pytest.mark.parametrize("uid", sorted({uid for uid, _ in dashboards.promql_targets()}))
def test_every_panel_of_a_dashboard_shows_something(site: Site, uid: str) -> None:
    answers: dict[str, int] = {}
    for panel in dashboards.committed()[uid]["panels"]:
        exprs = [target["expr"] for target in panel["targets"] if "expr" in target]
        found = [site.prometheus.query(MACRO.sub(WINDOW, expr)) for expr in exprs]
        if exprs:
            answers[panel["title"]] = sum(map(len, found))
    assert {title for title, found in answers.items() if not found} == set()


def test_no_label_has_a_value_that_anyone_on_the_spool_could_choose(site: Site) -> None:
    closed = {name: set[str]() for metric in METRICS for name in metric.labels}
    for metric in METRICS:
        for name, values in metric.labels.items():
            closed[name] |= set(values)
    patterns = {
        **{name: "|".join(map(re.escape, sorted(values))) for name, values in closed.items() if values},
        "job": "piper",
        "instance": re.escape(site.prometheus.target),
        "le": r"\d+\.\d+|\d+e\+\d+|\+Inf",
        "disk": "data|state",
        "version|duckdb_version|python_version": r"\d[\w.+-]*",
        "implementation|major|minor|patchlevel": r"CPython|\d+",
        "alertname": "Piper[A-Za-z]+",
        "severity": "critical|warning",
        "alertstate": "pending|firing",
        "__name__": r"[a-zA-Z_:][\w:]*",
    }
    places = {folder.name for folder in (*site.raw_root.glob("*"), *site.raw_root.glob("*/*"))}
    assert places
    found = {pair for each in site.prometheus.api("series", **{"match[]": '{job="piper"}'}) for pair in each.items()}
    for label, value in sorted(found):
        allowed = [pattern for names, pattern in patterns.items() if label in names.split("|")]
        assert any(re.fullmatch(pattern, value) for pattern in allowed), f"{label}={value!r}"
        assert "/" not in value
        assert not any(place in value for place in places), f"{label}={value!r}"


def test_promtool_has_nothing_to_say_against_what_piperd_exposes(site: Site) -> None:
    checked = promtool("check", "metrics", text=site.piperd.get("/metrics")[1])
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
