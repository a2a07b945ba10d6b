"""How the demo shows a sample: a screen on a terminal, a line elsewhere. Nothing is read here."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from piper.demo.probe import HEADLINES, Sample

MEGABYTE = 1_000_000


def screen(sample: Sample, *, elapsed_seconds: float, root: str, phase: str) -> RenderableType:
    """The whole screen. `phase` says what the demo is doing, in a few words."""
    flow = Table.grid(padding=(0, 3))
    flow.add_column(style="dim")
    flow.add_column(justify="right")
    flow.add_column(style="dim")
    flow.add_column(justify="right")
    for left, right in zip(_flow_rows(sample), _age_rows(sample), strict=True):
        flow.add_row(*left, *right)
    gold = Table.grid(padding=(0, 3))
    gold.add_column(style="dim", no_wrap=True)
    gold.add_column()
    for model, headline in HEADLINES.items():
        gold.add_row(headline.title, Text(sample.headlines.get(model, "–")))
    failed = f"{sample.queries_failed:,} failed"
    reader = Text.assemble(
        f"one connection since the start · {sample.queries:,} queries · ",
        (failed, "bold red" if sample.queries_failed else "green"),
    )
    return Group(
        Panel(flow, title=f"piper · {phase} · {elapsed_seconds:,.0f} s", title_align="left"),
        Panel(gold, title="gold, as a dashboard reads it", subtitle=reader, title_align="left", subtitle_align="left"),
        Text(f"{root}   Ctrl-C ends it cleanly", style="dim", overflow="ellipsis", no_wrap=True),
    )


def line(sample: Sample, *, elapsed_seconds: float) -> str:
    """The same on one line, for a log or a pipe."""
    if not sample.ready:
        return f"{elapsed_seconds:5.0f} s  piperd is not ready"
    return (
        f"{elapsed_seconds:5.0f} s  {sample.written:,} written, {sample.visible:,} visible"
        f" ({sample.rate_in:.0f}/s in, {sample.rate_out:.0f}/s out, {_seconds(sample.behind_seconds)} behind),"
        f" {sample.files_tracked:,} files, backlog {sample.backlog_bytes:,} bytes,"
        f" gold {_seconds(sample.gold_age)} old, {sample.queries:,} queries, {sample.queries_failed:,} failed"
    )


def _flow_rows(sample: Sample) -> list[tuple[str, str]]:
    return [
        ("files tracked", f"{sample.files_tracked:,}"),
        ("events written", f"{sample.written:,}"),
        ("events visible in silver", f"{sample.visible:,}"),
        ("in / out", f"{sample.rate_in:,.0f} / {sample.rate_out:,.0f} per s"),
        ("quarantined, duplicate", f"{sample.quarantined:,}, {sample.duplicates:,}"),
    ]


def _age_rows(sample: Sample) -> list[tuple[str, str]]:
    return [
        ("event → visible", _seconds(sample.behind_seconds)),
        ("backlog", f"{sample.backlog_bytes:,} bytes, {sample.backlog_files:,} files"),
        ("last commit, publish", f"{_seconds(sample.commit_age)}, {_seconds(sample.publish_age)} ago"),
        ("last gold refresh", f"{_seconds(sample.gold_age)} ago"),
        ("memory of piperd", f"{sample.memory_bytes / MEGABYTE:,.0f} MB"),
    ]


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} s"
