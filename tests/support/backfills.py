"""A ground whose silver is not what its raw files give, and what must come of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
from tests.support.event_lines import HOST, event_line
from tests.support.ground import Ground

from piper.silver.rewrite import Rewrite, partitions

SHORT = {"PIPER_INGEST__LINE_BYTES_MAX": "4096"}
LONG_LINES = 7


def long_line(event_id: str, at: datetime) -> bytes:
    """A valid event that is too long under SHORT."""
    event = orjson.loads(event_line(event_id, at=at))
    event["payload"]["trace"] = "x" * 5000
    return orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)


def add_long_lines(ground: Ground, *, days_ago: int = 1) -> Path:
    """LONG_LINES events in a file of their own."""
    at = datetime.now(UTC).replace(hour=0, minute=0) - timedelta(days=days_ago) + timedelta(hours=1)
    folder = ground.raw / HOST / "amara"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "telemetry-long.jsonl"
    file.write_bytes(b"".join(long_line(f"long-{number}", at) for number in range(LONG_LINES)))
    ground.written.valid += LONG_LINES
    return file


def ingested_short(root: Path, *, events: int = 300) -> Ground:
    """Everything is in silver but the long lines, which are in quarantine."""
    ground = Ground(root)
    ground.simulate(events, days=3)
    add_long_lines(ground)
    ground.piper_json("ingest", **SHORT)
    return ground


def damage(ground: Ground) -> None:
    """Half of the partitions are lost, rows of the others are as an earlier piper would have stored them."""
    with ground.writer() as writer:
        con = writer.store.con
        rewrite = Rewrite.begin(writer.store, con)
        for number, partition in enumerate(partitions(con)):
            if number % 2:
                rewrite.drop(partition)
            else:
                rewrite.replace(con, partition, select=_as_stored_earlier)
        rewrite.commit(now=writer.clock.now(), changed={partition.event_date for partition in partitions(con)})
        writer.publish()
        writer.refresh_gold(con)


def _as_stored_earlier(rows: str) -> str:
    return f"SELECT * REPLACE ('?' AS error_code) FROM ({rows})"


def events_of(ground: Ground) -> list[tuple[object, ...]]:
    """Every event as readers see it, but for when and from which of its lines it came."""
    return ground.query(
        """SELECT * EXCLUDE (ingested_at_utc, source_file, source_offset, source_line) FROM silver_events
        ORDER BY event_id"""
    )
