"""Refresh gold: recompute the periods that changed in silver, and nothing else.

Rows of a live model that are older than its window go with the first refresh that has news for it: time alone is no
reason to write, so a spool at rest costs nothing.

Each model has its own transaction, which reads silver and the manifest in one snapshot and writes only the
gold file: the table's new rows and the model's watermark. If we die before its COMMIT, nothing happened and
the next refresh does it; after it, the model is done. A model that fails is rolled back, logged, and listed
in the report's `failed`; the others go on.

Where silver was pruned (`keep_before`), gold keeps its history: periods that reach back before that date are
never computed again, whatever changed and also by a rebuild, since silver could only give less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import duckdb
import structlog

from piper.failpoints import failpoint
from piper.gold import store
from piper.gold.compute import add, replace
from piper.gold.inputs import INPUT_COLUMNS, SilverSource
from piper.gold.models import GoldModel, load_models
from piper.gold.own import definition_of, follows_all, in_turn
from piper.gold.periods import changed_periods, first_period, full_scope, naive_utc, scope_of, window_start

_log = structlog.get_logger(__name__)


class ModelRun(NamedTuple):
    """What one model cost: wall time, and rows written."""

    seconds: float
    rows: int


@dataclass(frozen=True)
class ModelOutcome:
    """What `on_model` is told after each model: `error` is None when it was committed."""

    name: str
    seconds: float
    rows: int
    error: duckdb.Error | None


@dataclass(frozen=True)
class RefreshReport:
    """What a refresh did. Models that had nothing to do are in neither `models` nor `failed`."""

    models: Mapping[str, ModelRun]
    failed: Mapping[str, duckdb.Error]
    dates: Sequence[date]
    """The changed event dates that were recomputed, sorted."""
    through_seq: int
    """Every model asked for is complete up to this silver commit."""


class _Work(NamedTuple):
    """One model: rows written (None: nothing to do), changed dates, the commit it is complete up to."""

    rows: int | None
    dates: Sequence[date]
    through_seq: int


def _utc_now() -> datetime:
    return datetime.now(UTC)


class GoldStore:
    """The gold tables and how they are brought up to date.

    Holds no connection; use it from one thread at a time.
    """

    def __init__(self, models: Sequence[GoldModel], clock: Callable[[], datetime]) -> None:
        """Use `open`."""
        self.models = tuple(models)
        self._clock = clock

    @classmethod
    def open(
        cls,
        con: duckdb.DuckDBPyConnection,
        path: Path,
        *,
        models: Sequence[GoldModel] | None = None,
        clock: Callable[[], datetime] = _utc_now,
        published: Path | None = None,
    ) -> GoldStore:
        """Attach the file as `gold` to the instance of `con` and create missing tables, empty.

        A damaged file is set aside as `<name>.damaged-<n>` with a log line; the next `refresh` then fills all
        tables, and rows that silver can no longer give come from the `published` copy. Raises `DataRootError`
        when the file cannot be opened although it may be sound.
        """
        opened = cls(load_models() if models is None else models, clock)
        store.attach(con, path)
        store.create_tables(con, opened.models)
        if published is not None:
            store.adopt_kept(con, opened.models, published, first_period)
        return opened

    def is_complete(self, con: duckdb.DuckDBPyConnection, source: SilverSource, before: date) -> bool:
        """Whether every model of days or weeks has all that silver holds of those that reach back before this date."""
        with store.transaction(con):
            marks = store.read_watermarks(con)
            for model in self.models:
                first = first_period(model, before)
                if first is None:
                    continue
                mark = marks.get(model.name)
                if mark is None or not _is_current(model, mark):
                    return False
                through, dates = source.changed_dates(con, mark.through_seq)
                if through < mark.through_seq or any(period < first for period in changed_periods(model, dates)):
                    return False
        return True

    def keep_before(self, con: duckdb.DuckDBPyConnection, before: date) -> None:
        """From now on keep all rows of periods that reach back before this date. Durable when it returns.

        Call it after a `refresh` through the last commit and before silver gives up anything of those dates; no
        other refresh may be under way.
        """
        with store.transaction(con):
            store.write_kept_before(con, before)

    def kept_before(self, con: duckdb.DuckDBPyConnection) -> date | None:
        """Give the date of the last `keep_before`: silver is whole from it on. None: silver was never pruned."""
        return store.read_kept_before(con)

    def refresh(
        self,
        con: duckdb.DuckDBPyConnection,
        source: SilverSource,
        models: Collection[str] | None = None,
        *,
        on_model: Callable[[ModelOutcome], None] | None = None,
    ) -> RefreshReport:
        """Recompute the periods of the dates that changed since each model's watermark (None: all models).

        `con` is any cursor of the instance, outside a transaction. Nothing is written when nothing changed. A
        model that was never computed, whose definition changed, or whose watermark is ahead of silver is
        rebuilt from scratch. Raises `duckdb.FatalException` (the instance must be reopened) and
        `duckdb.InterruptException`; other database errors of a model are in the report's `failed`.
        """
        chosen = self._chosen(models)
        idle_through = self._nothing_changed(con, source, chosen)
        if idle_through is not None:
            return RefreshReport({}, {}, [], idle_through)
        return self._run(con, source, chosen, from_scratch=False, on_model=on_model)

    def rebuild(
        self,
        con: duckdb.DuckDBPyConnection,
        source: SilverSource,
        models: Collection[str] | None = None,
        *,
        on_model: Callable[[ModelOutcome], None] | None = None,
    ) -> RefreshReport:
        """Recompute the models (None: all) from all of silver, whatever the watermarks say. Otherwise as
        `refresh`.
        """
        return self._run(con, source, self._chosen(models), from_scratch=True, on_model=on_model)

    def _chosen(self, names: Collection[str] | None) -> list[GoldModel]:
        if names is None:
            return in_turn(self.models)
        if unknown := sorted(set(names) - {model.name for model in self.models}):
            raise KeyError(f"no such gold models: {', '.join(unknown)}")
        return in_turn(model for model in self.models if model.name in names)

    def _nothing_changed(
        self, con: duckdb.DuckDBPyConnection, source: SilverSource, chosen: Sequence[GoldModel]
    ) -> int | None:
        """Ask once for all models, as most refreshes end here; None says that there is work."""
        with store.transaction(con):
            marks = store.read_watermarks(con)
            if any(not _is_current(model, marks.get(model.name)) for model in chosen):
                return None
            through = 0
            for after in {marks[model.name].through_seq for model in chosen}:
                through, dates = source.changed_dates(con, after)
                if dates or through < after:
                    return None
            now = naive_utc(self._clock())
            if any(model.period == "now" and _must_follow(con, source, model, marks, now) for model in chosen):
                return None
            return through

    def _run(
        self,
        con: duckdb.DuckDBPyConnection,
        source: SilverSource,
        chosen: Sequence[GoldModel],
        *,
        from_scratch: bool,
        on_model: Callable[[ModelOutcome], None] | None,
    ) -> RefreshReport:
        done: dict[str, ModelRun] = {}
        failed: dict[str, duckdb.Error] = {}
        dates: set[date] = set()
        reached: list[int] = []
        for model in chosen:
            started = time.monotonic()
            result = self._try_model(con, source, model, from_scratch=from_scratch)
            seconds = time.monotonic() - started
            if isinstance(result, duckdb.Error):
                failed[model.name] = result
                outcome = ModelOutcome(model.name, seconds, 0, result)
            else:
                reached.append(result.through_seq)
                if result.rows is None:
                    continue
                dates.update(result.dates)
                done[model.name] = ModelRun(seconds, result.rows)
                outcome = ModelOutcome(model.name, seconds, result.rows, None)
            if on_model is not None:
                on_model(outcome)
        marks = store.read_watermarks(con)
        reached += [marks[name].through_seq if name in marks else 0 for name in failed]
        return RefreshReport(done, failed, sorted(dates), min(reached, default=0))

    def _try_model(
        self, con: duckdb.DuckDBPyConnection, source: SilverSource, model: GoldModel, *, from_scratch: bool
    ) -> _Work | duckdb.Error:
        try:
            with store.transaction(con):
                work = self._compute(con, source, model, from_scratch=from_scratch)
                failpoint("gold.computed")
            failpoint("gold.committed")
        except (duckdb.FatalException, duckdb.InterruptException):
            raise
        except duckdb.Error as error:
            _log.error("gold_model_failed", model=model.name, error=str(error))
            return error
        return work

    def _compute(
        self, con: duckdb.DuckDBPyConnection, source: SilverSource, model: GoldModel, *, from_scratch: bool
    ) -> _Work:
        """Bring one table and its watermark up to date, inside the caller's transaction."""
        marks = store.read_watermarks(con)
        mark = marks.get(model.name)
        after = mark.through_seq if mark and _is_current(model, mark) and not from_scratch else 0
        now = naive_utc(self._clock())
        # Asked first, so that the snapshot of silver is taken here and all that follows reads the same one.
        through, dates = source.changed_dates(con, after)
        kept = store.read_kept_before(con)
        first = None if kept is None else first_period(model, kept)
        if not mark or not _is_current(model, mark) or from_scratch or through < after or _goes_back(model, mark, now):
            _, dates = source.changed_dates(con, 0)
            store.recreate_table(con, model, first)
            rows = replace(con, source, model, full_scope(model, dates, now, first), now)
        elif dates or (model.period == "now" and _must_follow(con, source, model, marks, now)):
            scope = scope_of(model, dates, now, first)
            added = add(con, source, model, scope, now, after)
            rows = replace(con, source, model, scope, now) if added is None else added
        else:
            return _Work(None, [], through)
        store.write_watermark(con, model.name, store.Watermark(through, naive_utc(self._clock()), definition_of(model)))
        return _Work(rows, dates, through)


def _is_current(model: GoldModel, mark: store.Watermark | None) -> bool:
    return mark is not None and mark.definition == definition_of(model)


def _goes_back(model: GoldModel, mark: store.Watermark, now: datetime) -> bool:
    """Whether the clock was set back so far that rows which have left the window are in it again."""
    return model.period == "live" and window_start(model, now) < window_start(model, mark.refreshed_at)


def _must_follow(
    con: duckdb.DuckDBPyConnection,
    source: SilverSource,
    model: GoldModel,
    marks: Mapping[str, store.Watermark],
    now: datetime,
) -> bool:
    """Whether a model of period `now` is out of date although silver has no news for it."""
    mine = marks[model.name].refreshed_at
    if follows_all(model) and any(mark.refreshed_at > mine for mark in marks.values()):
        return True
    is_due = not timedelta() <= now - mine < model.pause
    return "spool_hosts" in model.inputs and is_due and _spool_moved(con, source, model)


def _spool_moved(con: duckdb.DuckDBPyConnection, source: SilverSource, model: GoldModel) -> bool:
    """Whether the spool holds something else than the model's table says."""
    columns = ", ".join(INPUT_COLUMNS["spool_hosts"])
    then = f"SELECT {columns} FROM {store.table_of(model)}"
    now = source.relation_sql(con, "spool_hosts", None)
    query = f"SELECT 1 FROM (({then} EXCEPT ({now})) UNION ALL (({now}) EXCEPT {then})) LIMIT 1"
    return con.execute(query).fetchone() is not None
