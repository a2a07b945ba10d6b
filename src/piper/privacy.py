"""Privacy in the background: history follows a change of `privacy.mask_users`, and the traces of the other form go.

1. learn   the users of history get masks; the tail is sealed, so that everything older is in chunks.
2. stage   chunks that need it are written anew (silver/mask_history.py); readers see nothing of it.
3. commit  one transaction (silver/rewrite.py); the next tail switches every reader at once.
           Died before its COMMIT: what was staged is removed at the next start, and it begins again.
4. clean   gold's own text is translated and its file written anew, for deleted rows linger in a DuckDB file; a minute
           later the earlier snapshots are deleted, soon after the replaced chunks (silver/hidden.py). Died here: the
           next start goes on with it.

`rewrite_history` and `clean_up` are steps for `upkeep`; `finish_now` is all of it for a command without a daemon.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta

import duckdb
import structlog

from piper.errors import PiperError
from piper.failpoints import failpoint
from piper.gold.scrub import copy_scrubbed, put_in_place
from piper.publish.snapshots import GENERATION_SECONDS
from piper.silver.compact import CHUNK_BYTES_MAX
from piper.silver.hidden import forget_deleted, put_away
from piper.silver.mask_history import Wanted, find, find_words, masks_wanted, names_wanted, rewrite_chunks, users_of
from piper.silver.masking import SEARCH_PAUSE, MaskingState, read_state
from piper.silver.rewrite import Partition, Rewrite, partitions
from piper.silver.translation import Found, together
from piper.silver.user_names import name_patterns
from piper.upkeep import CORE_SHARE, Hands
from piper.writer import Writer

GRACE = timedelta(seconds=GENERATION_SECONDS)
"""How long files of the other form stay for the queries that began before the switch."""
COMMAND_GRACE = timedelta(seconds=3)
"""The same for a command that ends then, and could not delete them later; dashboards' queries take less."""
ROOM = 1.2
"""A rewrite needs this many times the bytes that it still has to write free."""
_REST_SECONDS_MAX, _PAUSE_SECONDS = 60.0, 0.1
_log = structlog.get_logger(component="privacy")


def is_due(hands: Hands, state: MaskingState) -> bool:
    """Whether history has to be rewritten, or searched for names that came after it."""
    if state.is_pending:
        return True
    is_time = hands.writer.clock.now() - state.searched_at >= SEARCH_PAUSE
    return state.is_on and is_time and bool(_unsearched(hands.con))


def rewrite_history(hands: Hands, *, core_share: float = CORE_SHARE) -> bool:
    """Bring all of history into the form that new rows have; returns whether there was anything to do."""
    writer, con = hands.writer, hands.con
    state = read_state(con)
    if state is None or not is_due(hands, state):
        return False
    started = time.monotonic()
    hands.engine.execute("ATTACH IF NOT EXISTS ':memory:' AS work")
    wanted = _wanted(hands, state)
    names = _unsearched(con)  # what comes while chunks are written is looked for the next time
    hands.in_writer(Writer.seal)
    failpoint("masking.sealed")
    rewrite = Rewrite.begin(writer.store, con)
    try:
        changed = _stage(hands, rewrite, wanted, core_share)
        hands.check()
    except BaseException:
        rewrite.abandon()
        raise
    failpoint("masking.staged")

    def note(con: duckdb.DuckDBPyConnection, seq: int | None) -> None:
        con.execute("UPDATE user_names SET is_searched = TRUE WHERE name IN (SELECT unnest(?::VARCHAR[]))", [names])
        con.execute("UPDATE masking SET is_pending = FALSE, searched_at_utc = ?", [writer.clock.now()])
        if seq is not None:
            con.execute("UPDATE masking SET switched_seq = ?, is_gold_clean = FALSE, cleaned_from_utc = NULL", [seq])

    if changed:
        hands.commit(rewrite, changed=changed, also=note)
    else:
        rewrite.abandon()
        hands.in_writer(lambda writer: _in_transaction(writer, lambda con: note(con, None)))
    hands.in_writer(Writer.report_privacy)
    _log.info("history_rewritten", masked=state.is_on, chunks=len(rewrite.chunks), dates=len(changed),
              seconds=round(time.monotonic() - started, 1))  # fmt: skip
    return True


def clean_up(hands: Hands, *, grace: timedelta = GRACE) -> bool:
    """After the switch: take the other form out of gold, and delete the files that held it once `grace` has passed.

    No gold refresh may be under way. Returns whether it did anything.
    """
    writer, con = hands.writer, hands.con
    state = read_state(con)
    if state is None or state.switched_seq is None or writer.warehouse.published_seq < state.switched_seq:
        return False
    if not state.is_gold_clean:
        _clean_gold(hands, state)
        return True
    assert state.cleaned_from is not None
    if writer.clock.now() - state.cleaned_from < grace:
        return False
    hidden = put_away(writer.store, con, published_seq=state.switched_seq, now=writer.clock.now(), after=grace)
    hands.in_writer(lambda writer: writer.warehouse.tidy(older_than=grace.total_seconds()))
    if hidden.waiting:  # for the queries that have listed them
        hands.in_writer(lambda writer: forget_deleted(writer.store, hidden.deleted))
        return bool(hidden)

    def forget(writer: Writer) -> None:
        forget_deleted(writer.store, hidden.deleted)
        writer.store.con.execute("UPDATE masking SET switched_seq = NULL WHERE switched_seq = ?", [state.switched_seq])
        writer.report_privacy()

    hands.in_writer(forget)
    _log.info("other_form_deleted", masked=state.is_on, chunks=len(hidden.deleted))
    return True


def finish_now(writer: Writer, refresh_gold: Callable[[], object]) -> None:
    """All of it at once, without a daemon: readers have the new form, and no file the other one, when it returns.

    `refresh_gold` publishes what has changed. A query that began before the switch may fail when it runs for longer
    than COMMAND_GRACE.
    """
    hands = Hands(writer)
    try:
        try:
            rewrite_history(hands, core_share=1.0)
        except PiperError as error:  # the pass itself is done, and the next run tries again
            writer.metrics.upkeep_failed("mask", error=error.message)
        hands.put_down()
        writer.publish()
        refresh_gold()
        clean_up(hands)
        if not writer.masking.state.is_done:
            threading.Event().wait(COMMAND_GRACE.total_seconds())
            clean_up(hands, grace=timedelta(0))
            writer.publish()
    finally:
        hands.close()


# ---- inside ----------------------------------------------------------------------------------------------------------


def _unsearched(con: duckdb.DuckDBPyConnection) -> list[str]:
    rows = con.execute("SELECT name FROM ingest_manifest.main.user_names WHERE NOT is_searched").fetchall()
    return [name for (name,) in rows]


def _wanted(hands: Hands, state: MaskingState) -> Wanted | None:
    """What to look for in history; None: there can be nothing."""
    names = hands.writer.masking.names
    if not state.is_on:
        return names_wanted(names) if names.by_mask else None
    if not state.is_pending:
        patterns = name_patterns(_unsearched(hands.con))
        return masks_wanted(names, patterns) if patterns else None
    users: set[str] = set()
    for partition in partitions(hands.con):
        if partition.dataset == "events":
            with _reading(partition):
                users |= users_of(hands.engine, hands.writer.store.layout, partition)
            hands.check()
    hands.in_writer(lambda writer: writer.masking.names.add(users, is_searched=False))
    failpoint("masking.named")
    return masks_wanted(names, names.patterns())


def _stage(hands: Hands, rewrite: Rewrite, wanted: Wanted | None, core_share: float) -> list[date]:
    """Write the chunks; returns the dates of what changes. Raises PiperError where a partition cannot be written."""
    changed: set[date] = set()
    every = [] if wanted is None else partitions(hands.con)
    left, seen, written = sum(partition.size_bytes for partition in every), 0, 0
    for partition in every:
        assert wanted is not None
        hands.check()
        started = time.monotonic()
        with _reading(partition):
            found, paths = find(hands.engine, rewrite.store.layout, partition, wanted)
            seen += partition.size_bytes
            if paths:
                written += partition.size_bytes
                _check_room(rewrite, left * written // seen)  # as if the rest were like what was seen
                _stage_partition(hands, rewrite, partition, found, paths, wanted)
                changed.add(partition.event_date)
        left -= partition.size_bytes
        _rest(hands, (time.monotonic() - started) * (1 / core_share - 1))
    return sorted(changed)


@contextmanager
def _reading(partition: Partition) -> Iterator[None]:
    """Say which partition the ground has failed."""
    try:
        yield
    except duckdb.InterruptException:
        raise
    except (duckdb.Error, OSError) as error:
        raise PiperError(
            f"silver/{partition.directory} could not be rewritten: {error}",
            hint="All of history is as it was. If a chunk is damaged, `piper rebuild` sets it aside.",
        ) from error


def _stage_partition(
    hands: Hands, rewrite: Rewrite, partition: Partition, found: Found, paths: list[str], wanted: Wanted
) -> None:
    if wanted.notes_words:
        _note(hands, found.words)
    for group, rows in _groups(hands.con, paths):
        chunk = rewrite_chunks(hands.engine, rewrite, partition, found, group, wanted)
        if chunk is None or chunk.rows != rows:
            raise OSError(f"its chunks hold {chunk.rows if chunk else 0:,} rows, {rows:,} were sealed")
        hands.check()


def _groups(con: duckdb.DuckDBPyConnection, paths: list[str]) -> list[tuple[list[str], int]]:
    """Chunks that become one, and how many rows they have; no group grows beyond what compaction would make."""
    sizes = con.execute(
        """SELECT path, row_count, size_bytes FROM ingest_manifest.main.chunks
        WHERE path IN (SELECT unnest(?::VARCHAR[])) ORDER BY path""",
        [paths],
    ).fetchall()
    groups: list[tuple[list[str], int]] = []
    room = 0
    for path, rows, size in sizes:
        if not groups or size > room:
            groups.append(([], 0))
            room = CHUNK_BYTES_MAX
        group, count = groups[-1]
        groups[-1] = ([*group, path], count + rows)
        room -= size
    return groups


def _check_room(rewrite: Rewrite, size_bytes: int) -> None:
    free = shutil.disk_usage(rewrite.store.layout.silver).free
    if free < size_bytes * ROOM:
        raise PiperError(
            f"some {size_bytes:,} bytes of history are to be rewritten, and only {free:,} are free on that disk",
            hint="Make room: old and new chunks lie side by side until readers have switched.",
        )


def _note(hands: Hands, words: Iterable[str]) -> None:
    """Other cases of known names: whatever finds the name finds these too."""
    words = hands.writer.masking.names.unknown(words)
    if words:
        hands.in_writer(lambda writer: writer.masking.names.add(words, is_searched=True))


def _rest(hands: Hands, seconds: float) -> None:
    """Leave the machine to others between two partitions, and longer while lines are waiting."""
    now = time.monotonic()
    until, at_most = now + min(seconds, _REST_SECONDS_MAX), now + _REST_SECONDS_MAX
    while (now := time.monotonic()) < until or (hands.should_yield and now < at_most):
        hands.check()
        threading.Event().wait(_PAUSE_SECONDS)


def _clean_gold(hands: Hands, state: MaskingState) -> None:
    writer = hands.writer
    store, names = writer.store, writer.masking.names
    wanted = masks_wanted(names, names.patterns()) if state.is_on else names_wanted(names)

    def translate(con: duckdb.DuckDBPyConnection, table: str, columns: list[str]) -> Callable[[str], str]:
        words = find_words(con, f"SELECT {together(columns)} AS text FROM {table}", wanted)
        if wanted.notes_words:
            _note(hands, words)
        return wanted.translation(Found(frozenset(words), frozenset())).text

    copy_scrubbed(hands.con, store.layout.gold_state, translate)
    failpoint("masking.gold_copied")

    def swap(writer: Writer) -> None:
        put_in_place(writer.store.con, store.layout.gold_state)
        failpoint("masking.gold_swapped")
        writer.warehouse.publish_gold(writer.store.con)
        writer.store.con.execute("UPDATE masking SET is_gold_clean = TRUE, cleaned_from_utc = ?", [writer.clock.now()])

    hands.in_writer(swap)


def _in_transaction(writer: Writer, action: Callable[[duckdb.DuckDBPyConnection], None]) -> None:
    con = writer.store.con
    con.execute("BEGIN")
    try:
        action(con)
        con.execute("COMMIT")
    except BaseException:
        con.execute("ROLLBACK")
        raise
