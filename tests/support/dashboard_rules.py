"""What every dashboard must keep to: the rules of Grafana's dashboard-linter that apply here, and our own.

A rule takes a dashboard's JSON and yields what is wrong with it, in words. Left out of the linter's are those for
variables named datasource, job and instance (our datasources have fixed uids, piperd is one instance a site) and LogQL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations, pairwise
from typing import Any

from tests.support.dashboards import UIDS

Json = Mapping[str, Any]
Rule = Callable[[Json], Iterator[str]]

RULES: list[Rule] = []
PANELS_MAX = 10
GRID_COLUMNS = 24
DATASOURCES = {"piper-duckdb": "motherduck-duckdb-datasource", "piper-prometheus": "prometheus"}
REFRESH = {"piper-farm-pressure": "1m", "piper-storage-growth": "1h"}
"""All others: 5m."""
UNITS = frozenset(
    (
        *("none", "string", "short", "locale", "percent", "percentunit", "bool_yes_no", "bool_on_off"),
        *("bytes", "decbytes", "gbytes", "decgbytes", "Bps", "binBps"),
        *("ns", "µs", "ms", "s", "m", "h", "d", "dtdurations", "dtdurationms"),
        *("dateTimeAsIso", "dateTimeAsIsoNoDateIfToday", "dateTimeFromNow"),
        *("cps", "ops", "reqps", "rps", "wps", "iops", "cpm", "opm"),
    )
)
"""Of Grafana's units those that make sense here; one that begins with `suffix:` is our own."""
PROMQL_WINDOWS = {"$__rate_interval", "$__range", "$__interval"}
BUILTIN = re.compile(r"__\w+")
VARIABLE = re.compile(r"\$\{?(\w+)(?::\w+)?\}?")


def rule(check: Rule) -> Rule:
    RULES.append(check)
    return check


def text_of(target: Json) -> str:
    return str(target.get("rawSql") or target.get("expr") or "")


def is_sql(panel: Json) -> bool:
    return any("rawSql" in target for target in panel["targets"])


def queries_of(panel: Json) -> str:
    return "\n".join(text_of(target) for target in panel["targets"])


def links_of(panel: Json) -> list[Json]:
    config = panel["fieldConfig"]
    of_fields = [p["value"] for o in config["overrides"] for p in o["properties"] if p["id"] == "links"]
    return [*config["defaults"].get("links", []), *(link for links in of_fields for link in links)]


def all_thresholds(panel: Json) -> list[Json]:
    config = panel["fieldConfig"]
    of_fields = [p["value"] for o in config["overrides"] for p in o["properties"] if p["id"] == "thresholds"]
    return [config["defaults"]["thresholds"], *of_fields]


# ---- the frame


@rule
def has_a_stable_identity(board: Json) -> Iterator[str]:
    if board["uid"] not in UIDS:
        yield f"unknown uid {board['uid']}"
    if board["id"] is not None:
        yield "the id is the database's business"
    if board["schemaVersion"] != 42:
        yield f"schemaVersion {board['schemaVersion']}"
    if not board["title"] or not board["description"]:
        yield "no title or description"


@rule
def is_not_editable(board: Json) -> Iterator[str]:
    if board["editable"] is not False:
        yield "editable: what someone saves is lost at the next deployment"


@rule
def opens_on_a_relative_range_and_refreshes(board: Json) -> Iterator[str]:
    if not re.fullmatch(r"now-\d+[hdw](/d)?", board["time"]["from"]) or board["time"]["to"] != "now":
        yield f"range {board['time']}"
    if board["refresh"] != REFRESH.get(board["uid"], "5m"):
        yield f"refresh {board['refresh']}"
    if board["timezone"] != "utc":
        yield f"time zone {board['timezone']}: days are UTC days"
    if board["graphTooltip"] != 1:
        yield "no shared crosshair"


@rule
def is_linked_to_the_others(board: Json) -> Iterator[str]:
    if board["tags"] != ["piper"]:
        yield f"tags {board['tags']}"
    bars = [link for link in board["links"] if link["type"] == "dashboards" and link["tags"] == ["piper"]]
    if len(bars) != 1 or not bars[0]["keepTime"] or not bars[0]["includeVars"]:
        yield "no link bar that keeps time and variables"


@rule
def has_few_panels_with_ids_of_their_own(board: Json) -> Iterator[str]:
    ids = [panel["id"] for panel in board["panels"]]
    if not 1 <= len(ids) <= PANELS_MAX:
        yield f"{len(ids)} panels"
    if len(set(ids)) != len(ids):
        yield f"ids {ids}"


@rule
def panels_do_not_overlap(board: Json) -> Iterator[str]:
    places = [(panel["title"], panel["gridPos"]) for panel in board["panels"]]
    for title, place in places:
        if place["x"] < 0 or place["y"] < 0 or place["w"] < 1 or place["h"] < 1:
            yield f"{title}: {place}"
        if place["x"] + place["w"] > GRID_COLUMNS:
            yield f"{title} ends beyond column {GRID_COLUMNS}"
    for (title, one), (other_title, other) in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        if not beside and not below:
            yield f"{title} and {other_title} overlap"


@rule
def says_first_how_fresh_the_data_is(board: Json) -> Iterator[str]:
    first = min(board["panels"], key=lambda panel: (panel["gridPos"]["y"], panel["gridPos"]["x"]))
    if first["type"] != "stat" or (is_sql(first) and "gold_as_of" not in queries_of(first)):
        yield f"the first panel is {first['title']}"


# ---- variables


@rule
def variables_are_complete(board: Json) -> Iterator[str]:
    for variable in board["templating"]["list"]:
        name = variable["name"]
        if not variable.get("label") or not variable.get("description"):
            yield f"{name} has no label or description"
        if variable["refresh"] != 2:
            yield f"{name} is not asked again when the range changes"
        if variable["datasource"]["uid"] not in DATASOURCES:
            yield f"{name} asks {variable['datasource']}"
        if not variable["multi"] or not variable["includeAll"] or "allValue" in variable:
            yield f"{name} is not a choice of several or all"
        if "rawSql" not in variable and "'(none)'" not in variable["query"] and is_duckdb(variable):
            yield f"{name} can be an empty list, which is no SQL"


def is_duckdb(variable: Json) -> bool:
    return bool(variable["datasource"]["uid"] == "piper-duckdb")


@rule
def variables_and_queries_agree(board: Json) -> Iterator[str]:
    defined = {variable["name"] for variable in board["templating"]["list"]}
    used = {
        name for panel in board["panels"] for name in VARIABLE.findall(queries_of(panel)) if not BUILTIN.fullmatch(name)
    }
    if used - defined:
        yield f"queries use undefined {sorted(used - defined)}"
    carried = {variable["name"] for variable in board["templating"]["list"] if variable["hide"] == 2}
    if defined - used - carried:
        yield f"no query uses {sorted(defined - used)}"


# ---- panels


@rule
def panels_say_what_they_show(board: Json) -> Iterator[str]:
    titles = [panel["title"] for panel in board["panels"]]
    if len(set(titles)) != len(titles) or not all(titles):
        yield f"titles {titles}"
    for panel in board["panels"]:
        description = panel["description"]
        sources = set(re.findall(r"\b(?:gold|silver)_\w+", queries_of(panel)))
        if missing := sorted(source for source in sources if source not in description):
            yield f"{panel['title']}: the description does not name its source {', '.join(missing)}"
        if is_sql(panel) and "Grain: " not in description:
            yield f"{panel['title']}: the description does not state the grain"
        metrics = re.findall(r"\bpiper[_:][\w:]+", queries_of(panel))
        if not is_sql(panel) and metrics and not any(metric in description for metric in metrics):
            yield f"{panel['title']}: the description names no metric"
        if not description.rstrip().endswith("."):
            yield f"{panel['title']}: the description is no sentence"


@rule
def panels_ask_a_fixed_datasource(board: Json) -> Iterator[str]:
    for panel in board["panels"]:
        if not panel["targets"]:
            yield f"{panel['title']} has no target"
        letters = [target["refId"] for target in panel["targets"]]
        if len(set(letters)) != len(letters):
            yield f"{panel['title']}: refIds {letters}"
        for each in (panel, *panel["targets"]):
            source = each["datasource"]
            if DATASOURCES.get(source["uid"]) != source["type"]:
                yield f"{panel['title']} asks {source}"
        if any(not text_of(target).strip() for target in panel["targets"]):
            yield f"{panel['title']} has an empty query"


@rule
def numbers_have_units(board: Json) -> Iterator[str]:
    for panel in board["panels"]:
        overrides = panel["fieldConfig"]["overrides"]
        units = [p["value"] for o in overrides for p in o["properties"] if p["id"] == "unit"]
        for unit in (panel["fieldConfig"]["defaults"].get("unit", ""), *units):
            if unit not in UNITS and not (unit.startswith("suffix:") and len(unit) > len("suffix:")):
                yield f"{panel['title']}: unit {unit!r}"


@rule
def emptiness_is_explained(board: Json) -> Iterator[str]:
    for panel in board["panels"]:
        if not panel["fieldConfig"]["defaults"].get("noValue"):
            yield f"{panel['title']} has no noValue"


@rule
def thresholds_are_in_order_and_rates_have_some(board: Json) -> Iterator[str]:
    for panel in board["panels"]:
        chosen = all_thresholds(panel)
        for limits in chosen:
            first, *rest = [step["value"] for step in limits["steps"]]
            if first is not None or any(before >= after for before, after in pairwise(rest)):
                yield f"{panel['title']}: thresholds {limits}"
        is_rate = panel["fieldConfig"]["defaults"]["unit"] in ("percent", "percentunit")
        if panel["type"] == "stat" and is_rate and max(len(limits["steps"]) for limits in chosen) < 2:
            yield f"{panel['title']} is a rate without thresholds"


@rule
def overrides_name_columns_that_exist(board: Json) -> Iterator[str]:
    for panel in filter(is_sql, board["panels"]):
        query = queries_of(panel)
        if str(panel["fieldConfig"]["defaults"].get("displayName", "")).startswith("${__field.labels."):
            if 'AS "Value"' not in query:
                yield f"{panel['title']}: series by label are named after it only if the number is called Value"
            continue
        for override in panel["fieldConfig"]["overrides"]:
            name = override["matcher"]["options"]
            known = rf"\b{re.escape(name)}\b" if name.isidentifier() else re.escape(f'"{name}"')
            if not re.search(known, query):
                yield f"{panel['title']}: no column {name}"


@rule
def links_lead_somewhere(board: Json) -> Iterator[str]:
    own = {variable["name"] for variable in board["templating"]["list"]}
    for panel in board["panels"]:
        for link in links_of(panel):
            where = re.match(r"/d/([\w-]+)\?\$\{__url_time_range\}", link["url"])
            if not link["title"] or not where or where[1] not in UIDS:
                yield f"{panel['title']}: link {link}"
            for column in re.findall(r'__data\.fields\["([^"]+)"\]', link["url"]):
                if f'"{column}"' not in queries_of(panel):
                    yield f"{panel['title']}: a link uses the column {column}, which is not there"
            for name in re.findall(r"\$\{(\w+):queryparam\}", link["url"]):
                if name not in own:
                    yield f"{panel['title']}: a link carries the variable {name}, which is not there"


# ---- queries


@rule
def queries_have_no_dates_of_their_own(board: Json) -> Iterator[str]:
    queries = [queries_of(panel) for panel in board["panels"]]
    for query in (*queries, *(str(variable["query"]) for variable in board["templating"]["list"])):
        if found := re.search(r"\b(19|20)\d\d-\d\d(-\d\d)?\b|\b1[5-9]\d{8}(\d{3})?\b", query):
            yield f"a hard-coded date: {found[0]}"


@rule
def sql_reads_little_and_means_utc(board: Json) -> Iterator[str]:
    for panel in filter(is_sql, board["panels"]):
        for target in panel["targets"]:
            query = text_of(target)
            if re.search(r"\bsilver_events\b", query):
                yield f"{panel['title']} reads silver_events: thousands of files, whatever it asks for"
            if "silver_" in query and not re.search(r"\bevent_date (BETWEEN|>=)", query):
                yield f"{panel['title']} reads every day of a domain dataset"
            if re.search(r"current_(date|timestamp|time)\b|\btoday\(\)", query, re.IGNORECASE):
                yield f"{panel['title']} depends on the session's time zone"
            if query.count("now()") != query.count("make_timestamp(epoch_us(now()))"):
                yield f"{panel['title']} uses now() in the session's time zone"
            if "$__timeGroup" in query:
                yield f"{panel['title']} uses $__timeGroup, which is broken on DuckDB"


@rule
def promql_rates_are_rates(board: Json) -> Iterator[str]:
    for panel in board["panels"]:
        for expr in (target["expr"] for target in panel["targets"] if "expr" in target):
            for window in re.findall(r"\[([^\]]*)\]", expr):
                if window.split(":")[0] not in PROMQL_WINDOWS and not re.fullmatch(r"\d+[mhd]", window):
                    yield f"{panel['title']}: window {window}"
            if re.search(r"\b(rate|irate)\([^()]*\[(?!\$__rate_interval)", expr):
                yield f"{panel['title']}: a rate over something else than $__rate_interval"
            if "histogram_quantile" in expr and not re.search(r"\ble\b", expr):
                yield f"{panel['title']}: a quantile of buckets that lost their le"
            for counter in re.findall(r"\b(?!:)piper_\w+_total\b(?!:)", expr):
                if not re.search(rf"\b(rate|irate|increase|resets|changes)\(\s*{counter}\b", expr):
                    yield f"{panel['title']}: the bare counter {counter}"
            if expr.count("(") != expr.count(")"):
                yield f"{panel['title']}: brackets"
