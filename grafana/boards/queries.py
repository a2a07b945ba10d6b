"""Where panels ask: the two datasources, the targets that a panel holds, and the SQL fragments that panels share.

The datasources' uids are fixed by `grafana/provisioning`. The DuckDB plugin expands `$__timeFilter(column)`,
`$__timeFrom()`, `$__timeTo()` and `$__interval_ms`; `macros.expand` does the same for tests and pictures.

Two habits keep a query right on any warehouse:
- Silver and gold are partitioned or kept by `event_date`, so a query always bounds `event_date`, even where it bounds
  `occurred_at_utc` too: only the days asked for are opened. A range that starts at noon includes that whole day.
- Every time column is a TIMESTAMP without zone, in UTC, and so are the macros' literals once they are compared with one
  or cast to TIMESTAMP. Never use `current_date` or cast `now()`: both depend on the session's time zone.
"""

from __future__ import annotations

from textwrap import dedent
from typing import Any

Json = dict[str, Any]

DUCKDB: Json = {"type": "motherduck-duckdb-datasource", "uid": "piper-duckdb"}
PROMETHEUS: Json = {"type": "prometheus", "uid": "piper-prometheus"}

TIME_SERIES, TABLE = 0, 1
"""Values of a DuckDB target's `format`."""

RANGE_START = "CAST($__timeFrom() AS TIMESTAMP)"
RANGE_END = "CAST($__timeTo() AS TIMESTAMP)"
PREVIOUS_START = f"{RANGE_START} - ({RANGE_END} - {RANGE_START})"
"""Start of the period of the same length that ends where the range begins."""
NOW = "make_timestamp(epoch_us(now()))"
"""The present in UTC, whatever the session's time zone is."""

IN_DAYS = f"event_date BETWEEN CAST({RANGE_START} AS DATE) AND CAST({RANGE_END} AS DATE)"
"""Whole UTC days that the range touches: for gold, whose grain is the day."""
IN_RANGE = f"{IN_DAYS} AND $__timeFilter(occurred_at_utc)"
"""Exactly the range: for domain datasets."""
IN_BOTH = (
    f"event_date BETWEEN CAST({PREVIOUS_START} AS DATE) AND CAST({RANGE_END} AS DATE)"
    f" AND occurred_at_utc >= {PREVIOUS_START} AND occurred_at_utc <= {RANGE_END}"
)
"""The range and the period before it; `IS_CURRENT` tells them apart."""
IS_CURRENT = f"occurred_at_utc >= {RANGE_START}"
DAY = "CAST(event_date AS TIMESTAMP)"
"""The time of a day's row in a time series."""
BARS_MAX = 60
"""`points_max` of a panel with bars: thin enough to see when, wide enough to compare."""
BUCKET = "time_bucket(to_milliseconds(greatest(60000, CAST($__interval_ms AS BIGINT))), occurred_at_utc)"
"""The start of the period that an event falls in: it follows the range, from a minute up."""

NONE = "(none)"
"""Option of a variable that stands for NULL. It is always there, for Grafana makes `IN ()` of an empty list."""

ERROR_TEXT = "concat_ws(': ', error_code, regexp_replace(error_message, '\\s+', ' ', 'g'))"
"""What an error event says, on one line."""


def any_of(column: str, variable: str) -> str:
    """Condition: the column has one of the values chosen for a multi-value variable."""
    return f"coalesce({column}, '{NONE}') IN (${variable})"


IN_SHOWS = any_of('"show"', "show")
"""Rows of the shows that are chosen in the variable `show`."""


def sql(text: str) -> str:
    """Query text as it is kept in the JSON: without the indentation of the Python around it."""
    return dedent(text).strip()


def series(text: str) -> Json:
    """A DuckDB target for panels over time.

    One column `time` (TIMESTAMP, ascending, never NULL) and a numeric column a series. Or one text column, whose values
    become the series, and one numeric column, called "Value": then Grafana names a series by the text alone.
    """
    return _duckdb(text, TIME_SERIES)


def table(text: str) -> Json:
    """A DuckDB target that is shown as it comes: tables, stats, bars."""
    return _duckdb(text, TABLE)


def prom(
    expr: str, legend: str = "", *, instant: bool = False, as_table: bool = False, as_heatmap: bool = False
) -> Json:
    """A Prometheus target; `legend` is a template such as `{{kind}}`. Rates use `$__rate_interval`."""
    chosen = "table" if as_table else "heatmap" if as_heatmap else "time_series"
    return {
        "datasource": PROMETHEUS,
        "editorMode": "code",
        "expr": sql(expr),
        "format": chosen,
        "instant": instant,
        "legendFormat": legend or "__auto",
        "range": not instant,
    }


def _duckdb(text: str, chosen: int) -> Json:
    return {"datasource": DUCKDB, "editorMode": "code", "format": chosen, "rawSql": sql(text)}
