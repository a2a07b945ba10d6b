"""Commands that need no studio: simulate, demo."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from piper.commands.context import JsonOption, say, stop_on_signals
from piper.demo.simulate import SimulateOptions
from piper.errors import EX_OK
from piper.exits import EX_INTERRUPTED, print_json

_SIMULATE = SimulateOptions(Path())


def simulate(
    root: Annotated[Path, typer.Option("--root", metavar="DIR", help="Where to write <host>/<user>/*.jsonl.")],
    hosts: Annotated[int, typer.Option("--hosts", help="Workstations.")] = _SIMULATE.hosts,
    users: Annotated[int, typer.Option("--users", help="Users a host.")] = _SIMULATE.users,
    rate: Annotated[
        float | None,
        typer.Option("--rate", help="Events a second over all writers; 0: all at once. Default: 50, with --days 0."),
    ] = None,
    events: Annotated[
        int | None,
        typer.Option("--events", help="Stop after so many. Default: none when live, 10,000 a day with --days."),
    ] = None,
    days: Annotated[
        int, typer.Option("--days", help="Spread the events over the last N days instead of writing them live.")
    ] = _SIMULATE.days,
    dialect: Annotated[
        Literal["nested", "flat", "mixed"], typer.Option("--dialect", help="What the writers speak.")
    ] = _SIMULATE.dialect,
    seed: Annotated[int, typer.Option("--seed", help="The same seed, clock and options give the same bytes.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write a realistic spool of all event types, live or of past days. Ctrl-C ends it with whole lines."""
    from piper.demo.simulate import simulate as write_spool

    if rate is None:
        rate = 0.0 if days else _SIMULATE.rate
    options = SimulateOptions(
        root=root, hosts=hosts, users=users, rate=rate, events=events, days=days, dialect=dialect, seed=seed
    )
    with stop_on_signals() as stopped:
        summary = write_spool(options, stop=stopped)
        was_cut = stopped()
    if as_json:
        print_json(asdict(summary))
    else:
        say(
            f"{summary.lines:,} lines in {summary.files:,} files below {root}: {summary.valid:,} valid,"
            f" {summary.duplicates:,} duplicate, {summary.malformed:,} malformed"
        )
    is_endless = events is None and not days
    raise typer.Exit(EX_INTERRUPTED if was_cut and not is_endless else EX_OK)


def demo(
    root: Annotated[
        Path | None, typer.Option("--root", metavar="DIR", help="Keep everything here. Default: a temporary directory.")
    ] = None,
    hosts: Annotated[int, typer.Option("--hosts", help="Simulated workstations.")] = 8,
    users: Annotated[int, typer.Option("--users", help="Users a host.")] = 2,
    rate: Annotated[float, typer.Option("--rate", help="Events a second.")] = 100.0,
    seconds: Annotated[
        float | None, typer.Option("--seconds", help="End by itself after so long. Default: at Ctrl-C.")
    ] = None,
) -> None:
    """A simulated studio, piperd and a live view of both."""
    from rich.console import Console

    from piper.demo.live import run_demo

    raise typer.Exit(run_demo(root=root, hosts=hosts, users=users, rate=rate, seconds=seconds, console=Console()))
