"""Each host as `piper status` shows it: when it last wrote, how far behind it is, what of it waits on the spool."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb

from piper.errors import PiperError
from piper.ops.reader import open_reader
from piper.settings import Settings

LATELY = timedelta(minutes=10)
"""Lag is the median of what was committed within this time; of a host that was silent, that of its last event."""
AN_HOUR = timedelta(hours=1)

_NOTHING_UNREAD = {"unread_bytes": 0, "unread_files": 0, "oldest_unread_seconds": 0.0}
_NOTHING_SEEN = {"last_event_utc": None, "last_commit_utc": None, "lag_seconds": None, "events_last_hour": 0}


def read_hosts(settings: Settings, now: datetime | None = None) -> dict[str, dict[str, Any]]:
    """What the views hold of each host for today and yesterday; nothing where no view answers. `now`: aware."""
    moment = (now or datetime.now(UTC)).astimezone(UTC).replace(tzinfo=None)
    try:
        with open_reader(settings) as con:
            rows = con.execute(
                f"""SELECT host_hostname, max(occurred_at_utc), max(ingested_at_utc),
                    coalesce(median(lag) FILTER (ingested_at_utc >= $lately), arg_max(lag, ingested_at_utc)),
                    count(*) FILTER (ingested_at_utc >= $hour)
                FROM (SELECT *, date_diff('millisecond', occurred_at_utc, ingested_at_utc) / 1e3 AS lag
                    FROM silver_events)
                WHERE event_date >= DATE '{moment.date() - timedelta(days=1)}'
                GROUP BY host_hostname""",
                {"lately": moment - LATELY, "hour": moment - AN_HOUR},
            ).fetchall()
    except (PiperError, duckdb.Error):
        return {}  # doctor says what is wrong with the views; a status says what it can
    return {
        host: {
            "last_event_utc": _iso(last_event),
            "last_commit_utc": _iso(last_commit),
            "lag_seconds": None if lag is None else round(lag, 1),
            "events_last_hour": events,
        }
        for host, last_event, last_commit, lag, events in rows
    }


def merged(seen: Mapping[str, dict[str, Any]], unread: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a host, those that wait longest first, then those with the largest lag."""
    rows = [
        {"host": host, **_NOTHING_SEEN, **seen.get(host, {}), **_NOTHING_UNREAD, **unread.get(host, {})}
        for host in sorted(seen.keys() | unread.keys())
    ]
    return sorted(rows, key=lambda row: (-row["oldest_unread_seconds"], -(row["lag_seconds"] or 0.0)))


def _iso(moment: datetime) -> str:
    return f"{moment.isoformat(timespec='seconds')}Z"
