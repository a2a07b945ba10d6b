"""A backfill: silver of some days becomes what a fresh ingest of the present raw files would give, by event_id.

1. plan     files and quarantine are listed (scope.py, reading.py).
2. read     their lines are parsed into the workbench, some seconds at a time.
3. compare  of several lines with one event_id the first counts, by file name and offset; then one day after the other
4. apply    is compared, and what differs takes effect by one transaction (compare.py, apply.py):
            added      silver lacks the event. No metric counts how late it comes as ingest lag.
            replaced   it would be stored otherwise now. Another type or day: it moves there.
            rejected   its line is no event by today's rules, and goes to quarantine.
            released   its line was in quarantine, and leaves it.
            Events whose line is gone stay as they are.
5. finish   lines that are in neither silver nor quarantine, and are no events, are quarantined.

Killed anywhere, the next `step` goes on: by the manifest it knows the run, by the workbench what has been read. A
workbench that is lost is made again; a day that is compared twice changes once.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import partial
from typing import Any

import duckdb
import pyarrow as pa
import structlog

from piper.backfill.apply import ComeMeanwhileError, apply
from piper.backfill.compare import Changes, InTailError, compare, keep_first
from piper.backfill.reading import (
    Candidate,
    bench_path,
    candidates,
    index_quarantine,
    plan_files,
    read_bytes,
    read_some,
)
from piper.backfill.scope import Scope
from piper.backfill.state import State, read_state, write_state
from piper.backfill.workbench import Workbench, discard, workbench
from piper.errors import PiperError
from piper.events.quarantine import Reason, Rejection
from piper.failpoints import failpoint
from piper.ops.storage import chunk_counts
from piper.privacy import rewrite_history
from piper.silver.commit import REJECTION_KEY, Committed
from piper.silver.masking import read_state as read_masking
from piper.silver.rewrite import partitions
from piper.spool.identity import Doubt, display_path
from piper.upkeep import Hands
from piper.writer import Writer

TRIES = 5
"""How often a day is compared again because ingest got ahead of it."""
NAMED_FILES_MAX = 1000
REJECTIONS_AT_ONCE = 200
COMPARE_SHARE = 0.25
"""Of the progress that is shown, the part that comes after reading."""
_FILE, _CHECK_FILE = "backfill.duckdb", "backfill-check.duckdb"
_log = structlog.get_logger(component="backfill")


def kept_from(hands: Hands) -> date | None:
    """The first day that retention leaves in silver; None: it leaves all."""
    days = hands.writer.settings.retention.silver_days
    return hands.writer.clock.now().date() - timedelta(days=days) if days else None


def within_retention(hands: Hands, scope: Scope) -> Scope:
    """The part of a scope that silver keeps. Raises PiperError when it begins before that."""
    kept = kept_from(hands)
    if kept is None:
        return scope
    if scope.start is None:
        return Scope(kept, scope.end)
    if scope.start < kept:
        raise PiperError(
            f"silver keeps nothing of days before {kept}, and would lose {scope.start} again",
            hint="Start at that day, or raise retention.silver_days.",
        )
    return scope


def have_one_form(hands: Hands, *, is_dry: bool) -> None:
    """See to it that old rows have masks if new ones have, or neither: they are compared. Raises PiperError."""
    masking = read_masking(hands.con)
    if masking is None or not masking.is_pending:
        return
    if is_dry:
        raise PiperError(
            "privacy.mask_users was changed, and older events have not followed yet",
            hint="Ask again when they have: `piper status` says so. piperd or `piper ingest` sees to it.",
        )
    rewrite_history(hands, core_share=1.0)


@dataclass(slots=True)
class Backfill:
    """The backfill of an open data root. `is_live`: a tailer reads the spool in another thread meanwhile.

    `begin`, then `step` until it returns None. A dry run changes nothing but that the tail is sealed; it is known to
    this object only.
    """

    is_live: bool
    is_dry: bool = False
    named: list[str] = field(default_factory=list)
    """Of a dry run: the files that it reads, the first NAMED_FILES_MAX of them."""
    _dry_state: State | None = None

    def state(self, hands: Hands) -> State | None:
        """The run under way, or the last one."""
        return self._dry_state if self.is_dry else read_state(hands.con)

    def begin(self, hands: Hands, scope: Scope) -> State:
        """Begin a backfill of these days, or go on with one that was not finished. Raises PiperError."""
        scope = within_retention(hands, scope)
        state = self.state(hands)
        if state is not None and not state.is_finished:
            if state.scope != scope:
                raise PiperError(
                    f"a backfill from {state.start or 'the beginning'} to {state.end or 'the end'} is not finished",
                    hint="It is finished first: ask again later.",
                )
            return state
        have_one_form(hands, is_dry=self.is_dry)
        found = candidates(hands, scope, is_live=self.is_live)
        if self.is_dry:
            self.named = [display_path(file.path) for file in found[:NAMED_FILES_MAX]]
        state = State(
            uuid.uuid4().hex,
            scope.as_json()["start"],
            scope.as_json()["end"],
            files=len(found),
            bytes=sum(file.size for file in found),
        )
        self._plan(hands, state, found)
        failpoint("backfill.planned")
        self._note(hands, state)
        if not self.is_dry:
            _log.info("backfill_begun", start=state.start, end=state.end, files=state.files, bytes=state.bytes)
        return state

    def step(self, hands: Hands) -> tuple[int, int] | None:
        """Do some seconds of it; returns (bytes done, bytes in all) or None when there is nothing left to do."""
        state = self.state(hands)
        path = bench_path(hands, self._name)
        if state is None or state.is_finished:
            discard(path)  # a run that died just before it could
            return None
        progress = None
        with workbench(hands, path) as bench:
            if bench.run_id == state.id:
                progress = self._work(bench, hands, state)
        if progress is None:  # the workbench was lost
            self._plan(hands, state, candidates(hands, state.scope, is_live=self.is_live))
            return 0, state.bytes
        after = self.state(hands)
        if after is not None and after.is_finished:
            failpoint("backfill.finished")
            discard(path)
        return progress

    def summary(self, state: State) -> dict[str, Any]:
        """For people and programs."""
        return state.summary() | ({"read": self.named} if self.is_dry else {})

    # ---- inside --------------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return _CHECK_FILE if self.is_dry else _FILE

    def _plan(self, hands: Hands, state: State, found: list[Candidate]) -> None:
        _check_room(hands, sum(file.size for file in found))
        path = bench_path(hands, self._name)
        discard(path)
        with workbench(hands, path) as bench, bench.transaction():
            bench.begin(state.id)
            plan_files(bench, found)
            index_quarantine(bench, hands)

    def _work(self, bench: Workbench, hands: Hands, state: State) -> tuple[int, int]:
        done, total = read_bytes(bench)
        if bench.value("SELECT stage FROM bench.run") == "reading":
            if bench.value("SELECT count(*) FROM bench.files WHERE NOT is_read"):
                unreadable = read_some(bench, hands)
                failpoint("backfill.read")
                if unreadable:
                    state.unreadable += unreadable
                    self._note(hands, state)
                return round(read_bytes(bench)[0] * (1 - COMPARE_SHARE)), total
            keep_first(bench)
            self._list_dates(bench, hands, state.scope)
            hands.in_writer(Writer.seal)
            return round(done * (1 - COMPARE_SHARE)), total
        row = bench.con.execute("SELECT min(event_date) FROM bench.dates WHERE NOT is_done").fetchone()
        if row is None or row[0] is None:
            self._finish(bench, hands, state)
            return total, total
        self._backfill_day(bench, hands, state, row[0])
        share = bench.value("SELECT avg(is_done::INTEGER) FROM bench.dates")
        return round(total * (1 - COMPARE_SHARE * (1 - share))), total

    def _list_dates(self, bench: Workbench, hands: Hands, scope: Scope) -> None:
        """Every day of the scope that has lines, or events that silver may have to give up."""
        days = {partition.event_date for partition in partitions(hands.con, start=scope.start, end=scope.end)}
        days |= {
            day
            for (day,) in bench.rows(
                "SELECT DISTINCT event_date FROM bench.staged WHERE event_date BETWEEN ? AND ?",
                [scope.first, scope.last],
            )
        }
        with bench.transaction():
            bench.con.execute("DELETE FROM bench.dates")
            bench.con.execute("INSERT INTO bench.dates SELECT unnest(?::DATE[]), FALSE", [sorted(days)])

    def _backfill_day(self, bench: Workbench, hands: Hands, state: State, day: date) -> None:
        def write(con: duckdb.DuckDBPyConnection, changes: Changes) -> None:
            write_state(con, state.after(changes))

        changes = settle_day(bench, hands, day, state.scope, is_dry=self.is_dry, write=write)
        failpoint("backfill.applied")
        if self.is_dry or not changes:
            self._note(hands, state.after(changes))
        with bench.transaction():
            bench.con.execute("UPDATE bench.dates SET is_done = TRUE WHERE event_date = ?", [day])

    def _finish(self, bench: Workbench, hands: Hands, state: State) -> None:
        if not self.is_dry:
            for rejections in _unknown_rejections(bench, hands):
                done = hands.in_writer(partial(_quarantine, rejections))
                state.quarantined += sum(done.quarantined.values())
        state.is_finished = True
        self._note(hands, state)
        if not self.is_dry:
            hands.writer.metrics.chunks_counted(chunk_counts(hands.con))
            counts = {k: v for k, v in state.summary().items() if k not in {"dates", "unreadable"}}
            _log.info("backfill_finished", **counts, unreadable=len(state.unreadable))

    def _note(self, hands: Hands, state: State) -> None:
        if self.is_dry:
            self._dry_state = state
        else:
            hands.in_writer(lambda writer: _note_state(writer, state))


def _check_room(hands: Hands, size_bytes: int) -> None:
    """The workbench needs about as much as the lines that it holds. Raises PiperError."""
    state = hands.writer.store.layout.state
    free = shutil.disk_usage(state).free
    if free < size_bytes:
        raise PiperError(
            f"{size_bytes:,} bytes of raw files are to be read, and only {free:,} are free on the disk of {state}",
            hint="Make room, or backfill fewer days at a time.",
        )


def _quarantine(rejections: list[Rejection], writer: Writer) -> Committed:
    return writer.quarantine(rejections)


def _note_state(writer: Writer, state: State) -> None:
    con = writer.store.con
    con.execute("BEGIN")
    try:
        write_state(con, state)
        con.execute("COMMIT")
    except BaseException:
        with suppress(duckdb.Error):  # a failed COMMIT has ended it already
            con.execute("ROLLBACK")
        raise


def settle_day(
    bench: Workbench,
    hands: Hands,
    day: date,
    scope: Scope,
    *,
    is_dry: bool,
    write: Callable[[duckdb.DuckDBPyConnection, Changes], None] = lambda _con, _changes: None,
    only_add: bool = False,
) -> Changes:
    """Compare one day, and have what differs take effect; again, if ingest gets in between.

    `write` adds to the transaction. `only_add`: events that silver has stay as they are.
    """
    for _ in range(TRIES):
        try:
            changes = compare(bench, hands, day, scope.first, scope.last, only_add=only_add)
            failpoint("backfill.compared")
            if changes and not is_dry:
                apply(bench, hands, changes, write)
        except (InTailError, ComeMeanwhileError):
            hands.in_writer(Writer.seal)
        else:
            return changes
    raise PiperError(f"{day} was changing all the time", hint="Run it again.")


def _unknown_rejections(bench: Workbench, hands: Hands) -> Iterator[list[Rejection]]:
    """The rejected lines that are in neither silver nor quarantine, some at a time.

    Quarantine knows a line by file and offset. So one that the tailer has still to read is left to it, which may find
    it under another name; and one whose file has got another name since it was quarantined is known by its content.
    What the tailer has read by now is in quarantine by now, under whatever name; what it had when this began is not
    enough.
    """
    passed = hands.in_writer(_passed)
    with bench.transaction():
        index_quarantine(bench, hands)
    lines = bench.con.execute(
        f"""SELECT number, CAST({REJECTION_KEY} AS VARCHAR) AS key, event_id
        FROM (SELECT *, rowid AS number, md5(raw) AS raw_md5 FROM bench.rejected)"""
    ).to_arrow_table()
    if not lines.num_rows:
        return
    hands.con.register("rejected_lines", lines)
    try:
        hands.writer.store.keys.find_known(
            hands.con,
            """SELECT key::UHUGEINT AS key FROM rejected_lines
            UNION ALL SELECT md5_number(event_id) FROM rejected_lines WHERE event_id IS NOT NULL""",
        )
        unknown = hands.con.execute(
            """SELECT number FROM rejected_lines
            WHERE key::UHUGEINT NOT IN (SELECT key FROM known_keys)
                AND (event_id IS NULL OR md5_number(event_id) NOT IN (SELECT key FROM known_keys))"""
        ).to_arrow_table()
    finally:
        hands.con.unregister("rejected_lines")
    numbers = _without_strays(bench, unknown, passed)
    for at in range(0, len(numbers), REJECTIONS_AT_ONCE):
        found = bench.rows(
            """SELECT reason, field, source_file, source_offset, source_line, raw, raw_bytes FROM bench.rejected
            WHERE rowid IN (SELECT unnest(?::BIGINT[]))""",
            [numbers[at : at + REJECTIONS_AT_ONCE]],
        )
        yield [Rejection(Reason(reason), *rest) for reason, *rest in found]


def _passed(writer: Writer) -> pa.Table:
    """How far the tailer has read each file that it believes to know."""
    sources = [source for source in writer.tailer.sources if not source.vanished]
    known = [source for source in sources if source.suspicion is None or source.suspicion.doubt is Doubt.NUL]
    return pa.table(
        {
            "source_file": pa.array([display_path(source.path) for source in known], pa.string()),
            "read_offset": pa.array([source.offset for source in known], pa.int64()),
        }
    )


def _without_strays(bench: Workbench, unknown: pa.Table, passed: pa.Table) -> list[int]:
    """Of these rejected lines, those that the tailer has passed and that no record of another name stands for.

    A record that belongs to no line where it says so is of a file that was renamed: each stands for one line of the
    same content at the same offset.
    """
    bench.con.register("passed", passed)
    bench.con.register("unknown_lines", unknown)
    try:
        rows = bench.rows(
            f"""WITH lines AS (SELECT *, rowid AS number, md5(raw) AS raw_md5 FROM bench.rejected),
            strays AS (
                SELECT source_offset, raw_md5, count(*) AS records FROM bench.quarantined
                WHERE key NOT IN (SELECT {REJECTION_KEY} FROM lines) GROUP BY ALL
            ),
            unknown AS (
                SELECT number, source_offset, raw_md5,
                    row_number() OVER (PARTITION BY source_offset, raw_md5 ORDER BY number) AS turn
                FROM lines JOIN passed USING (source_file)
                WHERE source_offset < read_offset AND number IN (SELECT number FROM unknown_lines)
            )
            SELECT number FROM unknown LEFT JOIN strays USING (source_offset, raw_md5)
            WHERE turn > coalesce(records, 0) ORDER BY number"""
        )
    finally:
        bench.con.unregister("passed")
        bench.con.unregister("unknown_lines")
    return [number for (number,) in rows]
