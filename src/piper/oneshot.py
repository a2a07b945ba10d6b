"""What a command does itself when no daemon runs: init, one pass over the spool, gold from scratch.

Each function opens the writer, works and closes it; nothing of a terminal is in here. What is committed when one of
them is killed or interrupted stays, and the next run goes on from there.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from piper.backfill.replay import Replay
from piper.backfill.run import Backfill, within_retention
from piper.backfill.scope import Scope
from piper.compaction import CompactionRun
from piper.duties import after_a_pass, forget
from piper.errors import PiperError, WriterLockedError
from piper.layout import Layout
from piper.ops.metric_list import GOLD_MODELS
from piper.ops.metrics import Metrics
from piper.ops.rejected import Only
from piper.privacy import finish_now
from piper.repair import Repair
from piper.repair import read_state as read_repair
from piper.retention import Pruned
from piper.retention import prune as prune_due
from piper.settings import Settings
from piper.silver.store import Store
from piper.upkeep import Hands
from piper.writer import Writer

HOLDER_TRIES = 10
HOLDER_PAUSE_SECONDS = 0.2
"""A process that has just taken the lock writes its name a moment later; we look again before we call it unknown."""

Progress = Callable[[int, int], None]
"""Told the bytes that are done and the bytes that there are."""


@dataclass(frozen=True, slots=True)
class InitSummary:
    """`created`: the paths that were not there before; empty when nothing was missing."""

    data_root: str
    catalog: str
    created: list[str]


@dataclass(frozen=True, slots=True)
class IngestSummary:
    """One pass over the spool.

    `deferred_*`: bytes that are no complete line yet; `doubtful_files`: files that look cut or replaced, which later
    looks must confirm; `unreadable`: files and directories that could not be read; `compacted`: chunks that were merged
    into others afterwards.
    """

    files: int
    bytes: int
    accepted: int
    duplicates: int
    quarantined: int
    quarantined_by_reason: dict[str, int]
    deferred_files: int
    deferred_bytes: int
    doubtful_files: int
    unreadable: int
    lost_bytes: int
    gold_failed: list[str]
    compacted: int
    seconds: float


@dataclass(frozen=True, slots=True)
class MaterializeSummary:
    """`models` were rebuilt, `failed` were not and keep their old rows."""

    models: list[str]
    failed: list[str]
    seconds: float


@dataclass(frozen=True, slots=True)
class RebuildRun:
    """`found`: what the new manifest was made of (see `silver.rebuild`); `read`: what raw added to it."""

    found: dict[str, Any]
    read: IngestSummary


@contextmanager
def open_writer(settings: Settings, command: str) -> Iterator[Writer]:
    """The writer of the data root, closed at the end. Raises PiperError, WriterLockedError with the holder's name."""
    writer = _open(settings, command)
    try:
        yield writer
    finally:
        writer.close()


def _open(settings: Settings, command: str) -> Writer:
    for _ in range(HOLDER_TRIES):
        try:
            return Writer.open(settings, Metrics(), command=command)
        except WriterLockedError as error:
            if is_named(error.holder):
                raise
            time.sleep(HOLDER_PAUSE_SECONDS)
    return Writer.open(settings, Metrics(), command=command)


def is_named(holder: str) -> bool:
    """Whether the holder of the lock has said which command it is."""
    return holder.startswith("`")


def makes_ingest_needless(holder: str) -> bool:
    """Whether an ingest that meets this holder is no failure: it reads the spool itself, or is the other cron job."""
    return re.match(r"`(piperd|piper ingest|piper materialize)\b", holder) is not None


def makes_materialize_needless(holder: str) -> bool:
    """Whether a materialize that meets this holder is no failure: it brings gold up to date before it ends."""
    return re.match(r"`piper (ingest|materialize)\b", holder) is not None


def init(settings: Settings) -> InitSummary:
    """Create what is missing: directories, manifest, snapshots, catalog. Changes nothing that is there."""
    layout = Layout.of(settings)
    paths = (
        layout.data_root, layout.state, layout.silver, layout.warehouse, layout.quarantine, layout.run_logs,
        layout.manifest, layout.tail, layout.gold, layout.catalog,
    )  # fmt: skip
    missing = [path for path in paths if not path.exists()]
    with open_writer(settings, "piper init"):
        created = [str(path) for path in missing if path.exists()]
    return InitSummary(str(layout.data_root), str(layout.catalog), created)


def ingest(settings: Settings, on_progress: Progress) -> IngestSummary:
    """Read everything that the spool holds now, and bring silver, quarantine, gold and the snapshots up to date."""
    started = time.monotonic()
    if not Layout.of(settings).manifest.exists():
        _require_spool(settings)  # before anything is made: both roots may be missing because a mount is
    with open_writer(settings, "piper ingest") as writer:
        return _pass(writer, started, on_progress, and_upkeep=True)


def compact(settings: Settings, run: CompactionRun, on_progress: Progress, *, dry_run: bool = False) -> None:
    """Merge the chunks that `run` names, and publish; `run` says then what was done, or with `dry_run` would be."""
    with open_writer(settings, "piper compact") as writer, closing(Hands(writer)) as hands:
        run.plan(hands)
        if dry_run:
            return
        total = run.planned.bytes_before
        on_progress(0, total)
        while run.step(hands):
            on_progress(run.done.bytes_before, total)
        writer.publish()
        _forget(hands)


def backfill(settings: Settings, scope: Scope, on_progress: Progress, *, dry_run: bool = False) -> dict[str, Any]:
    """Backfill these days, having read what is unread, and bring gold up to date; one that was not finished goes first.

    Returns `Backfill.summary`, and `gold_failed`.
    """
    started = time.monotonic()
    with open_writer(settings, "piper backfill") as writer, closing(Hands(writer)) as hands:
        run = Backfill(is_live=False, is_dry=dry_run)
        within_retention(hands, scope)
        if not dry_run:
            _pass(writer, started, lambda _done, _total: None)
            earlier = run.state(hands)
            if earlier is not None and earlier.scope != within_retention(hands, scope):
                _step_through(run, hands, on_progress)
        run.begin(hands, scope)
        _step_through(run, hands, on_progress)
        state = run.state(hands)
        assert state is not None
        return run.summary(state) | {"gold_failed": [] if dry_run else _show(writer)}


def _step_through(run: Backfill, hands: Hands, on_progress: Progress) -> None:
    while (progress := run.step(hands)) is not None:
        on_progress(*progress)


def repair(settings: Settings, on_progress: Progress, *, dry_run: bool = False, deep: bool = False) -> dict[str, Any]:
    """Repair broken chunks, having read what is unread; one that was not finished goes first.

    Returns `repair.State.summary`, and `gold_failed`.
    """
    with open_writer(settings, "piper repair") as writer, closing(Hands(writer)) as hands:
        run = Repair(is_live=False, is_deep=deep)
        writer.scan()
        if writer.tailer.spool_error:
            raise _unreachable(writer.tailer.spool_error)
        if dry_run:
            return run.check(hands) | {"gold_failed": []}
        _read_all(writer, lambda _done, _total: None)
        state = run.begin(hands)
        while (progress := run.step(hands)) is not None:
            on_progress(*progress)
        if not state.is_finished:
            state = read_repair(hands.con) or state
        return state.summary() | {"gold_failed": _show(writer)}


def replay(settings: Settings, only: Only, *, dry_run: bool = False) -> dict[str, Any]:
    """Judge quarantined lines again, and bring gold up to date. Returns `Replay.summary`, and `gold_failed`."""
    with open_writer(settings, "piper quarantine replay") as writer, closing(Hands(writer)) as hands:
        run = Replay(only, is_dry=dry_run)
        while run.step(hands):
            pass
        return run.summary() | {"gold_failed": [] if dry_run else _show(writer)}


def _show(writer: Writer) -> list[str]:
    """Have readers see what was changed; returns the gold models that failed."""
    writer.export_quarantine()
    writer.publish()
    writer.refresh_gold(writer.store.cursor())
    return failed_models(writer.metrics)


def prune(settings: Settings, *, dry_run: bool = False) -> dict[str, Pruned]:
    """Delete what the retention settings say, and publish; by kind, what was deleted or with `dry_run` would be."""
    with open_writer(settings, "piper prune") as writer, closing(Hands(writer)) as hands:
        pruned = prune_due(hands, settings.retention, dry_run=dry_run)
        if not dry_run:
            writer.publish()
            _forget(hands)
        return pruned


def _forget(hands: Hands) -> None:
    """Delete what earlier runs have replaced; what this one has, a later run deletes."""
    while forget(hands):
        pass
    hands.writer.publish()


def rebuild(
    settings: Settings,
    on_step: Callable[[str, int, int], None],
    on_progress: Progress,
    *,
    take_over: bool = False,
) -> RebuildRun:
    """Make a new manifest from what is in the data root, then read all of raw again: dedupe keeps what silver has.

    The spool must be there before anything is touched. Killed at any point, it can be run again.
    """
    from piper.silver.rebuild import forget_recounts
    from piper.silver.rebuild import rebuild as make_manifest

    _require_spool(settings)
    found = make_manifest(settings, on_progress=on_step, take_over=take_over)
    started = time.monotonic()
    with open_writer(settings, "piper rebuild") as writer:
        return RebuildRun(asdict(found), _pass(writer, started, on_progress, after_reading=forget_recounts))


def _pass(
    writer: Writer,
    started: float,
    on_progress: Progress,
    *,
    after_reading: Callable[[Store], None] | None = None,
    and_upkeep: bool = False,
) -> IngestSummary:
    writer.scan()
    if writer.tailer.spool_error:
        raise _unreachable(writer.tailer.spool_error)
    offsets = {source: source.offset for source in writer.tailer.sources}
    _read_all(writer, on_progress)
    if after_reading is not None:
        after_reading(writer.store)
    writer.seal()
    writer.export_quarantine()
    finish_now(writer, lambda: writer.refresh_gold(writer.store.cursor()))
    compacted = 0
    if and_upkeep:
        with closing(Hands(writer)) as hands:
            compacted = after_a_pass(hands).chunks_before
        writer.publish()
    return _summary(writer, offsets, compacted, time.monotonic() - started)


def _require_spool(settings: Settings) -> None:
    root = settings.paths.raw_root
    try:
        os.scandir(root).close()
    except OSError as error:
        raise _unreachable(f"{root}: {error.strerror}") from error


def _unreachable(what: str) -> PiperError:
    return PiperError(
        f"the spool cannot be read: {what}",
        hint="Check the mount and its permissions, or set paths.raw_root (--raw-root DIR).",
    )


def _read_all(writer: Writer, on_progress: Progress) -> None:
    total, _, _ = writer.tailer.backlog()
    on_progress(0, total)
    while writer.ingest() is not None:
        on_progress(writer.totals.bytes, total)


def _summary(writer: Writer, offsets: dict[Any, int], compacted: int, seconds: float) -> IngestSummary:
    totals, sources = writer.totals, list(writer.tailer.sources)
    waiting = [source.size - source.offset for source in sources if not source.vanished and source.suspicion is None]
    return IngestSummary(
        files=sum(1 for source in sources if source.offset != offsets.get(source, 0)),
        bytes=totals.bytes,
        accepted=totals.accepted,
        duplicates=totals.duplicates,
        quarantined=sum(totals.quarantined.values()),
        quarantined_by_reason=dict(sorted(totals.quarantined.items(), key=lambda item: -item[1])),
        deferred_files=sum(1 for size in waiting if size > 0),
        deferred_bytes=sum(size for size in waiting if size > 0),
        doubtful_files=sum(1 for source in sources if source.suspicion is not None),
        unreadable=int(_counted(writer.metrics, "piper_file_events_total", kind="io_error")),
        lost_bytes=int(_counted(writer.metrics, "piper_lost_bytes_total")),
        gold_failed=failed_models(writer.metrics),
        compacted=compacted,
        seconds=round(seconds, 3),
    )


def materialize(settings: Settings, models: Sequence[str] | None) -> MaterializeSummary:
    """Rebuild these gold models (None: all) from all of silver, and the catalog. Names must be of GOLD_MODELS."""
    started = time.monotonic()
    with open_writer(settings, "piper materialize") as writer:
        chosen = list(GOLD_MODELS) if models is None else list(models)
        writer.warehouse.prepare(force_catalog=True)
        writer.refresh_gold(writer.store.cursor(), rebuild=True, models=chosen)
        failed = failed_models(writer.metrics)
        done = [name for name in chosen if name not in failed]
        return MaterializeSummary(done, failed, round(time.monotonic() - started, 3))


def failed_models(metrics: Metrics) -> list[str]:
    """The gold models that failed in this process."""
    return [
        name for name in GOLD_MODELS if _counted(metrics, "piper_gold_refreshes_total", model=name, result="error") > 0
    ]


def _counted(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0
