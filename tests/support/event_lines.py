"""Small spools for tests: valid events with chosen ids, appended as lines."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson

HOST, USER = "ws01.studio.example", "amara"


def event_line(event_id: str, *, user: str = USER, at: datetime | None = None) -> bytes:
    """One valid nested event of type file.open, with its newline."""
    occurred = at or datetime.now(UTC) - timedelta(minutes=1)
    return orjson.dumps(
        {
            "schema_version": "1.0",
            "event_id": event_id,
            "event_type": "file.open",
            "occurred_at_utc": occurred.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "status": "success",
            "pipeline": {"name": "sandwich-pipeline", "dcc": "maya"},
            "host": {"hostname": HOST, "user": user},
            "session": {"session_id": "s-1"},
            "payload": {"entity_type": "shot", "entity_code": "sh010", "path": "/shots/sh010", "versioned": True},
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


def append_events(raw_root: Path, ids: Iterable[str], *, user: str = USER, name: str = "telemetry-1.jsonl") -> Path:
    """Append events with these ids to a file of that user, which is created if missing; returns the file."""
    folder = raw_root / HOST / user
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with path.open("ab") as stream:
        stream.write(b"".join(event_line(event_id, user=user) for event_id in ids))
    return path


def ids(prefix: str, number: int) -> list[str]:
    """`number` event ids that begin with `prefix`."""
    return [f"{prefix}-{index:06d}" for index in range(number)]
