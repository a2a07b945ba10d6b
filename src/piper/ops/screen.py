"""What commands show on a terminal. Everything that comes from data is `Text`: never read as Rich markup."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from piper.oneshot import IngestSummary, RebuildRun
from piper.ops.checks import Check, Level, worst
from piper.ops.terminal import one_line
from piper.ops.words import size
from piper.settings_sources import SettingRow

PIPE_COLUMNS = 200
"""Width when no terminal tells one: lines stay whole for grep."""
STYLES = {Level.PASS: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


def console() -> Console:
    """Standard output."""
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, soft_wrap=False, width=None if known else PIPE_COLUMNS)


@contextmanager
def byte_progress(title: str, *, visible: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, shown only if `visible`; gives what moves it: (done, total) in bytes."""
    if not visible:
        yield lambda _done, _total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=max(done, total))


@contextmanager
def step_progress(*, visible: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Says on stderr which step has begun, if `visible`; gives what it is told by: (step, done, total)."""
    said: set[str] = set()

    def tell(step: str, _done: int, _total: int) -> None:
        if visible and step not in said:
            said.add(step)
            sys.stderr.write(f"{step} …\n")

    yield tell


def facts(out: Console, title: str, rows: list[tuple[str, str]]) -> None:
    """A title and one line a fact; the terminal folds what is too long."""
    width = max(len(name) for name, _ in rows)
    out.print(Text(title, style="bold"), soft_wrap=True)
    for name, value in rows:
        out.print(Text.assemble((f"  {name:<{width}}  ", "dim"), one_line(value)), soft_wrap=True)


def show_ingest(out: Console, summary: IngestSummary, title: str = "ingested") -> None:
    """The summary of one pass."""
    rows = [
        ("files", f"{summary.files:,} with news, {size(summary.bytes)}"),
        ("accepted", f"{summary.accepted:,} events"),
        ("duplicate", f"{summary.duplicates:,}"),
        ("quarantined", with_reasons(summary.quarantined, summary.quarantined_by_reason)),
    ]
    if summary.deferred_files:
        what = f"{summary.deferred_files:,} files end in a line that is not complete ({size(summary.deferred_bytes)})"
        rows.append(("deferred", f"{what}; read when the rest comes"))
    if summary.doubtful_files:
        what = f"{summary.doubtful_files:,} files look cut, replaced or gone"
        rows.append(("doubtful", f"{what}; believed once later runs agree"))
    if summary.unreadable:
        rows.append(("unreadable", f"{summary.unreadable:,} files or directories; tried again next time"))
    if summary.lost_bytes:
        rows.append(("lost", f"{size(summary.lost_bytes)} were seen earlier and are gone unread"))
    if summary.gold_failed:
        rows.append(("gold", f"FAILED for {', '.join(summary.gold_failed)}; readers keep the old rows"))
    if summary.compacted:
        rows.append(("compacted", f"{summary.compacted:,} chunks were merged into others"))
    facts(out, f"{title} in {summary.seconds:.2f} s", rows)


def show_compaction(out: Console, done: dict[str, Any]) -> None:
    """What `piper compact` has merged, or would."""
    rows = [
        ("merges", f"{done['merges']:,}"),
        ("chunks", f"{done['chunks_before']:,} become {done['chunks_after']:,}"),
        ("rows", f"{done['rows']:,}"),
        ("size", size(done["bytes_before"]) + ("" if done["dry_run"] else f", now {size(done['bytes_after'])}")),
        *(("FAILED", f"silver/{directory}; the log says why") for directory in done["failed"]),
    ]
    if done["merges"] and not done["dry_run"]:
        rows.append(("old chunks", "are deleted within a quarter of an hour, by piperd or runs of `piper ingest`"))
    title = "would be compacted" if done["dry_run"] else f"compacted by {done['by']} in {done['seconds']:.2f} s"
    facts(out, title, rows)


def show_backfill(out: Console, done: dict[str, Any]) -> None:
    """What a backfill has changed, or would."""
    rows = [
        ("read", f"{done['files']:,} files, {size(done['bytes'])}"),
        ("added", f"{done['added']:,} events that silver lacked"),
        ("replaced", f"{done['replaced']:,} events that are stored otherwise now"),
        ("rejected", f"{done['rejected']:,} events whose line is none any more"),
        ("released", f"{done['released']:,} lines from quarantine"),
        ("unchanged", f"{done['unchanged']:,} events"),
    ]
    if not done["dry_run"]:
        rows.append(("quarantined", f"{done['quarantined']:,} lines that were nowhere yet"))
    for day, counts in done["dates"].items():
        rows.append((day, ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)))
    if done["unreadable"]:
        what = f"{len(done['unreadable']):,} files, such as {done['unreadable'][0]}"
        rows.append(("UNREADABLE", f"{what}; repeat it when they can be read"))
    if done["gold_failed"]:
        rows.append(("gold", f"FAILED for {', '.join(done['gold_failed'])}; readers keep the old rows"))
    title = "would be backfilled" if done["dry_run"] else f"backfilled by {done['by']} in {done['seconds']:.2f} s"
    facts(out, title, rows)


def show_repair(out: Console, done: dict[str, Any]) -> None:
    """What a repair has made again and what not, or what it would begin with."""
    rows = [(chunk["fault"], f"{chunk['path']}: {chunk['detail']}; {chunk['rows']:,} rows") for chunk in done["chunks"]]
    if done["dry_run"]:
        rows.append(("to be read", _plain(done["read"]) if done["chunks"] else "nothing"))
    else:
        rows += [("restored", f"{done['restored']:,} of {done['rows']:,} rows"), ("lost", f"{done['lost']:,} rows")]
    for day, lost in done["lost_by_day"].items():
        rows.append((f"LOST {day}", ", ".join(f"{count:,} rows of silver/{name}" for name, count in lost.items())))
    if done["files_gone"]:
        rows.append(("files gone", _plain(done["files_gone"])))
    if done["unreadable"]:
        rows.append(("UNREADABLE", f"{_plain(done['unreadable'])}; repeat it when they can be read"))
    if done["lost_by_day"]:
        rows.append(("if they return", "piper backfill --start DAY --end DAY brings what a spool file has"))
    if done["gold_failed"]:
        rows.append(("gold", f"FAILED for {', '.join(done['gold_failed'])}; readers keep the old rows"))
    title = "would be repaired" if done["dry_run"] else f"repaired by {done['by']} in {done['seconds']:.2f} s"
    facts(out, title if done["chunks"] else "every chunk is in its place", rows)


def show_replay(out: Console, done: dict[str, Any]) -> None:
    """What a replay of the quarantine has moved, or would."""
    rows = [
        ("judged", f"{done['lines']:,} lines"),
        ("added", f"{done['added']:,} events, now in silver"),
        ("duplicate", f"{done['duplicates']:,} lines whose event silver has already"),
        ("released", f"{done['released']:,} lines left quarantine"),
        ("still bad", f"{done['still_rejected']:,} lines"),
    ]
    if done["cut"]:
        rows.append(("cut", f"{done['cut']:,} lines of which only a part was kept; `piper backfill` reads raw again"))
    if done["pruned_days"]:
        rows.append(("too old", f"{done['pruned_days']:,} lines of days that silver does not keep"))
    if done["gold_failed"]:
        rows.append(("gold", f"FAILED for {', '.join(done['gold_failed'])}; readers keep the old rows"))
    title = "would be replayed" if done["dry_run"] else f"replayed by {done['by']} in {done['seconds']:.2f} s"
    facts(out, title, rows)


def show_pruned(out: Console, done: dict[str, Any]) -> None:
    """What `piper prune` has deleted, or would."""
    rows = []
    for kind, unit in (("silver", "events"), ("quarantine", "lines"), ("run_logs", ""), ("sources", "file states")):
        found = done[kind]
        what = [f"{found['files']:,} files, {size(found['bytes'])}"] if kind != "sources" else []
        what += [f"{found['rows']:,} {unit}"] if unit else []
        kept = "kept for ever" if found["before"] is None else f"before {found['before']}: {', '.join(what)}"
        rows.append((kind.replace("_", " "), kept))
    title = "would be deleted" if done["dry_run"] else f"deleted by {done['by']} in {done['seconds']:.2f} s"
    facts(out, title, rows)


def show_rebuild(out: Console, run: RebuildRun) -> None:
    """What the new manifest was made of, and what raw added."""
    rows = [(name, _plain(value)) for name, value in run.found.items() if value]
    facts(out, "rebuilt the manifest", rows or [("found", "nothing in the data root")])
    show_ingest(out, run.read, "read the spool again")


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value):,}: {', '.join(str(item) for item in value[:3])}{'…' if len(value) > 3 else ''}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def show_checks(out: Console, checks: list[Check]) -> None:
    """One line a check, its hint below it."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        head = (check.level.value, STYLES[check.level])
        out.print(Text.assemble(head, f"  {check.name:<{width}}  ", one_line(check.value)), soft_wrap=True)
        if check.hint:
            out.print(Text(f"{'':<{width + 8}}→ {one_line(check.hint)}", style="dim"), soft_wrap=True)
    level = worst(checks)
    out.print(
        Text(f"{level.value}: {sum(1 for c in checks if c.level is level)} of {len(checks)} checks", STYLES[level])
    )


def show_settings(out: Console, rows: list[SettingRow]) -> None:
    """Each setting, its value and its source."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("key", "value", "source"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        value = str(row.value).lower() if isinstance(row.value, bool) else str(row.value)
        table.add_row(Text(row.key), Text(value), Text(row.source, style="dim"))
    out.print(table)


def with_reasons(total: int, reasons: dict[str, int]) -> str:
    """A number of lines, and how it is made up."""
    if not reasons:
        return f"{total:,}"
    return f"{total:,} lines: {', '.join(f'{reason} {lines:,}' for reason, lines in reasons.items())}"
