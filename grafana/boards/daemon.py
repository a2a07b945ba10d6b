"""Does piperd run and keep up, what goes wrong in it, for how long is there room? The only board on Prometheus."""

from __future__ import annotations

from boards.dashboard import dashboard, row
from boards.fields import field, mapping, thresholds
from boards.panels import Panel, stat, table_panel, timeseries
from boards.queries import Json, prom
from boards.shared import CARRIED_SHOW

UID = "piper-daemon"
GIB = 1 << 30
AXIS_RIGHT = {"axisPlacement": "right"}
LAG = thresholds("green", (120, "yellow"), (300, "red"))
"""In seconds; PiperIngestLagHigh and PiperLagGrowing say so from these on."""
ROOM = thresholds("red", (GIB, "yellow"), (10 * GIB, "green"))
"""In bytes; the limits of PiperDiskFull and PiperDiskLow."""
SEVERITIES = mapping({"critical": ("critical", "red"), "warning": ("warning", "yellow")})
STATES = mapping({"0": ("Down", "red"), "1": ("Not ready", "yellow"), "2": ("Ready", "green")})


def board() -> Json:
    """The dashboard."""
    return dashboard(
        UID,
        "piperd",
        """The daemon behind all other dashboards: is it up, how far is it behind, what does it reject, and how long
        will the disk last. Meanings of the metrics: docs/metrics.md; what to do about an alert: docs/alerts.md.""",
        row(5, _state(), _alerts(), _machine()),
        row(8, _lag(), _events()),
        row(8, _backlog(), _stages()),
        row(8, _gold(), _trouble(), _storage()),
        variables=(CARRIED_SHOW,),
        since="now-6h",
    )


def _state() -> Panel:
    return stat(
        "State",
        """Down: Prometheus gets no answer. Not ready: piperd answers, but the spool, the manifest or the published
        tail is out of reach (/readyz names it). Below, the time since its start, and which versions run. Sources:
        up, piper_ready, piper_build_info, process_start_time_seconds.""",
        prom(
            """
            min(
              up{job="piper"} + on (job, instance) (piper_ready or on (job, instance) up{job="piper"} * 0)
            )
            """,
            "State",
        ),
        prom(
            """
            (time() - process_start_time_seconds{job="piper"})
              * on (job, instance) group_left (version, duckdb_version) piper_build_info
            """,
            "Up, piper {{version}}, DuckDB {{duckdb_version}}",
        ),
        unit="dtdurations",
        fields=[
            field("State", unit="none", mappings=[STATES], limits=thresholds("red", (1, "yellow"), (2, "green"))),
        ],
        no_value="Prometheus knows no piperd",
        show_names=True,
        width=7,
    )


def _alerts() -> Panel:
    return table_panel(
        "Alerts",
        """Alerts of piper that fire, or will if it goes on (pending), and for how long the condition has held. The
        name is a heading in docs/alerts.md that says what to do. Source: ALERTS and ALERTS_FOR_STATE, from the
        rules in conf/prometheus.""",
        prom(
            """
            max by (alertname, severity, alertstate) (ALERTS{alertname=~"Piper.+"})
              * on (alertname) group_left ()
            (time() - min by (alertname) (ALERTS_FOR_STATE{alertname=~"Piper.+"}))
            """,
            instant=True,
            as_table=True,
        ),
        fields=[
            field("Time", hide=True),
            field("alertname", label="Alert"),
            field("severity", label="Severity", mappings=[SEVERITIES], cell="color-text", width=90),
            field("alertstate", label="State", width=80),
            field("Value", label="For", unit="dtdurations", width=120),
        ],
        no_value="No alert",
        width=8,
    )


def _machine() -> Panel:
    return stat(
        "Room to work",
        """Memory that piperd holds; cores that it uses (rate of process_cpu_seconds_total); free space on the
        fullest of its disks (piper:disk_free_bytes), and what will be free there a week from now at the pace of the
        last day (linear regression; left out until six hours are known). Below 1 GiB a seal or a swap of gold may
        not fit.""",
        prom('sum(process_resident_memory_bytes{job="piper"})', "Memory"),
        prom('sum(rate(process_cpu_seconds_total{job="piper"}[$__rate_interval]))', "Cores"),
        prom("min(piper:disk_free_bytes)", "Disk free"),
        prom(
            """
            clamp_min(
              min(predict_linear(piper:disk_free_bytes[1d], 7 * 86400) and piper:disk_free_bytes offset 6h), 0
            )
            """,
            "Free in a week",
        ),
        unit="bytes",
        decimals=1,
        fields=[
            field("Cores", unit="none", decimals=2),
            field("Disk free", limits=ROOM),
            field("Free in a week", limits=ROOM),
        ],
        show_names=True,
        sparkline=True,
        width=9,
    )


def _lag() -> Panel:
    buckets = "sum by (le) (rate(piper_ingest_lag_seconds_bucket[$__rate_interval]))"
    return timeseries(
        "How far behind",
        """From the time in an event to its commit, for half and for 95 % of the events (piper_ingest_lag_seconds;
        hosts that come back with old files pull the 95 % up). Oldest unread: age of the oldest write on the spool
        that is not committed (piper_oldest_unread_age_seconds). Unpublished: age of the published tail while it
        lacks a commit, else 0. Gold: time since gold last held all of silver, for its oldest model
        (piper:gold_age_seconds).""",
        prom(f"histogram_quantile(0.5, {buckets})", "half of the events"),
        prom(f"histogram_quantile(0.95, {buckets})", "95 % of the events"),
        prom("max(piper_oldest_unread_age_seconds)", "oldest unread"),
        prom(
            """
            max(
              (time() - piper_last_publish_timestamp_seconds)
              * (piper_last_commit_timestamp_seconds > bool piper_last_publish_timestamp_seconds)
            )
            """,
            "unpublished",
        ),
        prom("max(piper:gold_age_seconds)", "gold"),
        unit="s",
        limits=LAG,
        legend_calcs=["lastNotNull", "max"],
        low=0,
    )


def _events() -> Panel:
    return timeseries(
        "Events committed",
        """New events a second by group, duplicates left out: rate of piper_events_ingested_total. A group that is
        silent when it usually is not raises PiperSourceSilent.""",
        prom("sum by (group) (rate(piper_events_ingested_total[$__rate_interval]))", "{{group}}"),
        unit="cps",
        stacked=True,
        fill=40,
        legend_calcs=["lastNotNull", "mean"],
        low=0,
    )


def _backlog() -> Panel:
    return timeseries(
        "Backlog",
        """Bytes on the spool that are not committed (piper_backlog_bytes) and the files that they are in
        (piper_backlog_files, right). Lost: bytes that were cut or deleted before they could be read
        (piper_lost_bytes_total); they do not come back.""",
        prom("sum(piper_backlog_bytes)", "unread"),
        prom("sum(increase(piper_lost_bytes_total[$__rate_interval]))", "lost"),
        prom("sum(piper_backlog_files)", "files"),
        unit="bytes",
        fields=[
            field("lost", color="red"),
            field("files", unit="short", decimals=0, custom=AXIS_RIGHT, low=0),
        ],
        low=0,
    )


def _stages() -> Panel:
    return timeseries(
        "Duration of a turn, by stage",
        """95 % of the turns of a stage took no longer: 95th percentile of piper_stage_duration_seconds_bucket.
        Read, parse and commit are of one micro-batch, so they grow with a backlog. Gaps: no turn.""",
        prom(
            """
            histogram_quantile(
              0.95, sum by (stage, le) (rate(piper_stage_duration_seconds_bucket[$__rate_interval]))
            )
            """,
            "{{stage}}",
        ),
        unit="s",
        fill=0,
        legend_calcs=["lastNotNull", "max"],
        no_value="No turn in this range",
        low=0,
    )


def _gold() -> Panel:
    took = "piper_gold_refresh_duration_seconds"
    return timeseries(
        "Gold refreshes",
        """Mean time that a refresh of a model took (piper_gold_refresh_duration_seconds), and how many failed
        (piper_gold_refreshes_total with result error, right): readers keep the old rows of a model that fails.
        Gaps: no news, so nothing to refresh.""",
        prom(
            f"""
            sum by (model) (rate({took}_sum[$__rate_interval]))
              / (sum by (model) (rate({took}_count[$__rate_interval])) > 0)
            """,
            "{{model}}",
        ),
        prom('sum(increase(piper_gold_refreshes_total{result="error"}[$__rate_interval]))', "failed"),
        unit="s",
        fill=0,
        fields=[field("failed", unit="short", color="red", custom=AXIS_RIGHT | {"drawStyle": "bars"}, low=0)],
        no_value="No refresh in this range",
        low=0,
    )


def _trouble() -> Panel:
    return timeseries(
        "Rejected, repeated, failed",
        """Lines a minute that went to quarantine, by reason (piper_lines_quarantined_total), and that repeat a
        known event (piper_events_duplicate_total); commits that failed, by kind (piper_commit_errors_total; they
        are repeated); files that became unreadable (piper_file_events_total). Kinds without any are left out.""",
        prom(
            "60 * sum by (reason) (rate(piper_lines_quarantined_total[$__rate_interval])) > 0", "quarantine: {{reason}}"
        ),
        prom("60 * sum(rate(piper_events_duplicate_total[$__rate_interval]))", "duplicates"),
        prom("60 * sum by (kind) (rate(piper_commit_errors_total[$__rate_interval])) > 0", "commit failed: {{kind}}"),
        prom('60 * sum(rate(piper_file_events_total{kind="io_error"}[$__rate_interval])) > 0', "unreadable files"),
        unit="cpm",
        style="bars",
        stacked=True,
        no_value="Nothing went wrong",
        low=0,
    )


def _storage() -> Panel:
    return timeseries(
        "Disk space that piper uses",
        """Bytes on disk by kind (piper_storage_bytes): silver and quarantine grow with the events, state with the
        history of event keys; tail is a few minutes of events, gold a few rows a day.""",
        prom("sum by (kind) (piper_storage_bytes)", "{{kind}}"),
        unit="bytes",
        stacked=True,
        fill=40,
        legend_calcs=["lastNotNull"],
        low=0,
    )
