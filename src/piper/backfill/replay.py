"""Replay: quarantined lines are judged by today's rules; what passes moves into silver once, and leaves quarantine.

A line that passes whose event silver has already leaves as well, as a duplicate. One that was cut (too long, or the end
of a file that is gone) may lack its end: only what was kept whole can be judged again. Lines of days that retention has
pruned stay where they are.

Killed at any point, what was moved is moved, and the next replay does the rest.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any

from piper.backfill.compare import keep_first
from piper.backfill.reading import SLICE_BYTES, STEP_SECONDS, bench_path, index_quarantine, parse_into
from piper.backfill.run import have_one_form, kept_from, settle_day
from piper.backfill.scope import Scope
from piper.backfill.workbench import Workbench, discard, workbench
from piper.ops.rejected import Found, Only, records
from piper.ops.storage import chunk_counts
from piper.spool.identity import Source
from piper.spool.turn import Span
from piper.upkeep import Hands
from piper.writer import Writer

_FILE = "replay.duckdb"
_EVERY_DAY = Scope()


@dataclass(slots=True)
class Replayed:
    """What became of the lines that were asked for."""

    lines: int = 0
    added: int = 0
    duplicates: int = 0
    """They pass, and silver has their events."""
    released: int = 0
    """What left quarantine: `added`, `duplicates`, and further copies of them."""
    still_rejected: int = 0
    cut: int = 0
    """Only a part of them was kept, so they cannot be judged."""
    pruned_days: int = 0
    """They pass, and silver keeps nothing of their days."""
    dates: dict[str, int] = field(default_factory=dict)
    """Events added, by their day."""


class Replay:
    """One replay: `step` until it returns False. A dry run changes nothing but that the tail is sealed."""

    def __init__(self, only: Only, *, is_dry: bool = False) -> None:
        self._only, self._is_dry = only, is_dry
        self.done = Replayed()
        self._records: Iterator[Found] | None = None
        self._days: list[date] | None = None

    def summary(self) -> dict[str, Any]:
        """For people and programs."""
        return asdict(self.done)

    def step(self, hands: Hands) -> bool:
        """Do some seconds of it; returns whether there may be more."""
        path = bench_path(hands, _FILE)
        if self._records is None:
            self._begin(hands)
        with workbench(hands, path) as bench:
            if self._days is None:
                if not self._read(bench, hands):
                    self._close_reading(bench, hands)
                return True
            if self._days:
                self._settle(bench, hands, self._days.pop(0))
                return True
        discard(path)
        if not self._is_dry:
            hands.writer.metrics.chunks_counted(chunk_counts(hands.con))
        return False

    def _begin(self, hands: Hands) -> None:
        have_one_form(hands, is_dry=self._is_dry)
        path = bench_path(hands, _FILE)
        discard(path)
        with workbench(hands, path) as bench, bench.transaction():
            bench.begin("replay")
            index_quarantine(bench, hands)
        self._records = records(hands.writer.store.layout.quarantine, self._only)

    def _read(self, bench: Workbench, hands: Hands) -> bool:
        """Judge records for STEP_SECONDS; returns whether there were any."""
        assert self._records is not None
        started, spans, size = time.monotonic(), list[Span](), 0
        places: dict[str, int] = {}
        is_more = False
        for found in self._records:
            self.done.lines += 1
            raw = found.raw
            if found.record["raw_bytes"] > len(raw):
                self.done.cut += 1
            else:
                places.setdefault(found.record["source_file"], len(places))
                spans.append(_span(found, raw))
                size += len(raw)
            if size >= SLICE_BYTES or time.monotonic() - started >= STEP_SECONDS:
                is_more = True
                break
        if spans:
            parse_into(bench, hands, spans, [], places, [])
        return is_more

    def _close_reading(self, bench: Workbench, hands: Hands) -> None:
        self.done.still_rejected = bench.value("SELECT count(*) FROM bench.rejected")
        keep_first(bench)
        days = [day for (day,) in bench.rows("SELECT DISTINCT event_date FROM bench.passing ORDER BY event_date")]
        kept = kept_from(hands)
        self._days = [day for day in days if kept is None or day >= kept]
        self.done.pruned_days = bench.con.execute(
            "SELECT count(DISTINCT key) FROM bench.passing WHERE event_date < ?", [kept or date.min]
        ).fetchall()[0][0]
        hands.in_writer(Writer.seal)

    def _settle(self, bench: Workbench, hands: Hands, day: date) -> None:
        changes = settle_day(bench, hands, day, _EVERY_DAY, is_dry=self._is_dry, only_add=True)
        done = self.done
        done.added += changes.added
        done.released += changes.released
        done.duplicates += changes.released - changes.added
        if changes.added:
            done.dates[day.isoformat()] = changes.added


def _span(found: Found, raw: bytes) -> Span:
    record = found.record
    source = Source(path=record["source_file"].encode("utf-8", "surrogatepass"), device=0, inode=0)
    return Span.of(source, record["source_offset"], record["source_line"], raw + b"\n")
