"""The daemon's duties, in the order of their urgency. Each is a step over `upkeep.Hands`; commands use them as well."""

from __future__ import annotations

import time

from piper.backfill.run import Backfill
from piper.compaction import Compacted, Compaction, MergeError
from piper.errors import PiperError
from piper.hours import Hours
from piper.privacy import clean_up, rewrite_history
from piper.retention import prune
from piper.silver.hidden import forget_deleted, put_away
from piper.silver.verify import Fault, find_broken, set_aside
from piper.upkeep import Duty, Hands

FORGET_SECONDS = 60.0
PRIVACY_SECONDS = 15.0
FORGET_CHUNKS_MAX = 500
"""Put away in a step: no gold refresh can begin before it ends."""
BACKFILL_SECONDS = 30.0
PRUNE_SECONDS = 3600.0
KEYS_SECONDS = 10.0
COMPACT_SECONDS = 60.0
VERIFY_SECONDS = 900.0
"""One `stat` a chunk: as often as doctor's timer asks."""


def daemon_duties() -> tuple[Duty, ...]:
    """What the daemon does in the background, by the settings that its writer has at the time."""
    compaction, verify = Compaction(), Verify()

    def prune_due(hands: Hands) -> bool:
        return any(prune(hands, hands.writer.settings.retention).values())

    def compact_due(hands: Hands) -> bool:
        return compaction.merge_due(hands, Hours.parse(hands.writer.settings.compaction.hours)).merges > 0

    return (
        Duty("forget", FORGET_SECONDS, forget, gold_rests=True, yields=False),
        Duty("mask", PRIVACY_SECONDS, rewrite_history),
        Duty("clean", PRIVACY_SECONDS, clean_up, gold_rests=True, yields=False),
        Duty("keys", KEYS_SECONDS, merge_keys, yields=False),
        Duty("verify", VERIFY_SECONDS, verify, yields=False),
        Duty("backfill", BACKFILL_SECONDS, go_on_with_backfill),
        Duty("prune", PRUNE_SECONDS, prune_due, gold_rests=True, yields=False),
        Duty("compact", COMPACT_SECONDS, compact_due),
    )


def merge_keys(hands: Hands) -> bool:
    """Merge key runs where there are enough of one size. Even in a backlog, in which they come fastest."""
    return hands.writer.store.keys.merge(
        hands.con,
        in_writer=lambda step: hands.in_writer(lambda writer: step(writer.store.con)),
        check=hands.check,
    )


class Verify:
    """Look whether all chunks are there and whole; take what would make every query fail out of readers' sight."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def __call__(self, hands: Hands) -> bool:
        """Look once; returns False: it is enough until the next time."""
        store, metrics = hands.writer.store, hands.writer.metrics
        _, broken = find_broken(hands.con, store.layout, reveal_lock=store.reveal_lock)
        set_aside(store.layout, [chunk for chunk in broken if chunk.fault is not Fault.MISSING])
        for chunk in broken:
            if chunk.path not in self._told:
                metrics.chunk_broken(chunk.fault.value, path=chunk.path, detail=chunk.detail)
        lacking = [chunk for chunk in broken if chunk.fault is not Fault.FOREIGN]
        self._told = {chunk.path for chunk in lacking}
        metrics.broken_chunks(len(lacking))
        return False


def go_on_with_backfill(hands: Hands) -> bool:
    """Do a part of a backfill that a killed process has left, or a command that has gone away."""
    return Backfill(is_live=True).step(hands) is not None


def forget(hands: Hands) -> bool:
    """Put chunks away that were replaced or dropped long enough ago. No gold refresh may be under way."""
    writer = hands.writer
    done = put_away(
        writer.store,
        hands.con,
        published_seq=writer.warehouse.published_seq,
        now=writer.clock.now(),
        at_most=FORGET_CHUNKS_MAX,
    )
    if done.deleted:
        hands.in_writer(lambda writer: forget_deleted(writer.store, done.deleted))
    return bool(done)


def after_a_pass(hands: Hands) -> Compacted:
    """What `piper ingest` does of all this, so that cron is enough; compaction for `compaction.ingest_seconds`.

    A duty that fails is logged and left for the next run: the pass itself is done. The caller publishes.
    """
    settings = hands.writer.settings
    while forget(hands):
        hands.check()
    while merge_keys(hands):
        hands.check()
    try:
        prune(hands, settings.retention)
    except PiperError as error:
        hands.writer.metrics.upkeep_failed("prune", error=error.message)
    compaction, hours, done = Compaction(), Hours.parse(settings.compaction.hours), Compacted()
    deadline = time.monotonic() + settings.compaction.ingest_seconds
    while time.monotonic() < deadline:
        try:
            merged = compaction.merge_due(hands, hours)
        except MergeError as error:
            hands.writer.metrics.upkeep_failed("compact", error=error.message)
            continue  # it has put that partition off
        if not merged.merges:
            break
        done += merged
    return done
