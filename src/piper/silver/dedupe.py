"""Dedupe: an event_id is in silver once, whenever and in whichever file it was written again.

Keys are md5 of the id, 16 bytes, compared exactly over the whole history (silver/keys.py); the manifest has no index
(DuckDB does not use one for ON CONFLICT, and a primary key makes the file five times larger).
"""

from __future__ import annotations

from datetime import date

from piper.prepared import Prepared
from piper.silver.keys import Keys


def keep_first(prepared: Prepared, keys: Keys) -> list[tuple[date, int]]:
    """Leave in `parsed` only accepted lines whose event_id is new, the first of each; fill `new_keys`.

    Returns how many lines repeated a known event_id, per event_date.
    """
    prepared.execute("TRUNCATE work.new_keys")
    prepared.execute(
        """INSERT INTO work.new_keys SELECT key, min(line_index) AS line_index
        FROM parsed WHERE verdict IS NULL GROUP BY ALL"""
    )
    keys.drop_known(prepared, "work.new_keys")
    repeated = prepared.execute(
        """SELECT event_date, count(*) FROM parsed ANTI JOIN new_keys USING (line_index)
        WHERE verdict IS NULL GROUP BY event_date"""
    ).fetchall()
    prepared.execute("DELETE FROM work.parsed WHERE line_index NOT IN (SELECT line_index FROM new_keys)")
    return [(event_date, int(count)) for event_date, count in repeated]
