"""The daemon's duties, in the order of their urgency. Each is a step over `upkeep.Hands`; commands use them as well."""

from __future__ import annotations

from piper.privacy import clean_up, rewrite_history
from piper.silver.rewrite import delete_hidden, forget_deleted
from piper.upkeep import Duty, Hands

FORGET_SECONDS = 60.0
PRIVACY_SECONDS = 5.0
FORGET_CHUNKS_MAX = 500
"""Deleted a step: no gold refresh can begin before it ends."""


def daemon_duties() -> tuple[Duty, ...]:
    """What the daemon does in the background."""
    return (
        Duty("forget", FORGET_SECONDS, forget, gold_rests=True, yields=False),
        Duty("mask", PRIVACY_SECONDS, rewrite_history),
        Duty("clean", PRIVACY_SECONDS, clean_up, gold_rests=True, yields=False),
    )


def forget(hands: Hands) -> bool:
    """Delete chunks that were replaced or dropped long enough ago. No gold refresh may be under way."""
    writer = hands.writer
    paths = delete_hidden(
        writer.store,
        hands.con,
        published_seq=writer.published_seq,
        now=writer.clock.now(),
        at_most=FORGET_CHUNKS_MAX,
    )
    if paths:
        hands.in_writer(lambda writer: forget_deleted(writer.store, paths))
    return bool(paths)
