"""Commands that read the warehouse as any reader does: tail, query, sql."""

from __future__ import annotations

import select
import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from piper.commands.context import JsonOption, settings_of
from piper.exits import UsageError, is_interrupt

if TYPE_CHECKING:
    from collections.abc import Callable

    from piper.layout import Layout
    from piper.ops.feed import Event, Feed

POLL_SECONDS = 0.25
"""How often the tail's directory entry is looked at; it is opened only when it was swapped."""
FAILURES_MAX = 20
"""Looks that may fail in a row: a share that is away for seconds comes back."""


def tail(
    ctx: typer.Context,
    lines: Annotated[int, typer.Option("--lines", "-n", metavar="N", help="First the last N events.", min=0)] = 10,
    types: Annotated[
        list[str] | None, typer.Option("--type", metavar="NAME", help="Only this event type, or pattern: 'publish.*'.")
    ] = None,
    users: Annotated[list[str] | None, typer.Option("--user", metavar="NAME", help="Only this user (pattern).")] = None,
    hosts: Annotated[list[str] | None, typer.Option("--host", metavar="NAME", help="Only this host (pattern).")] = None,
    errors: Annotated[bool, typer.Option("--errors", help="Only events with status error.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Follow events as they are committed, like a log: each once, in commit order, until Ctrl-C."""
    from piper.interrupts import Interrupts
    from piper.layout import Layout
    from piper.ops import event_lines
    from piper.ops.feed import Feed, Wanted

    settings = settings_of(ctx)
    layout = Layout.of(settings)
    wanted = Wanted(tuple(types or ()), tuple(users or ()), tuple(hosts or ()), errors)
    show = event_lines.json_writer() if as_json else event_lines.text_writer()
    feed = Feed(layout, wanted, memory_limit=settings.duckdb.memory_limit)
    try:
        with Interrupts() as interrupts:
            for event in feed.last(lines):
                show(event)
            sys.stdout.flush()
            _warn_if_nobody_writes(layout)
            _follow(feed, show, interrupts.wait)
    finally:
        feed.close()


def _follow(feed: Feed, show: Callable[[Event], None], wait: Callable[[float], int]) -> None:
    import duckdb

    failures = 0
    while not wait(POLL_SECONDS):
        try:
            for number, event in enumerate(feed.news(), 1):
                show(event)
                if number % 1000 == 0 and wait(0):
                    return
            failures = 0
        except BrokenPipeError:
            raise
        except (duckdb.IOException, OSError):
            failures += 1
            if failures > FAILURES_MAX:
                raise
        sys.stdout.flush()
        if _reader_is_gone():
            raise BrokenPipeError


def _reader_is_gone() -> bool:
    """Whether stdout is a pipe that nobody reads any more: without an event to write it would never be noticed."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _warn_if_nobody_writes(layout: Layout) -> None:
    from piper.silver.holder import read_holder

    if sys.stderr.isatty() and layout.manifest.exists() and read_holder(layout.writer_file) is None:
        typer.echo("piperd is not running: nothing new comes until it, or `piper ingest`, runs", err=True)


FormatOption = Annotated[
    Literal["table", "csv", "json", "parquet"] | None, typer.Option("--format", help="How rows are written.")
]


def query(
    ctx: typer.Context,
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One statement; - reads it from stdin.")],
    form: FormatOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the warehouse one question in SQL, read-only."""
    import duckdb

    from piper.ops import screen
    from piper.ops.reader import QueryError, one_line, one_statement, open_reader
    from piper.ops.results import Format, write_result

    if as_json and form not in {None, "json"}:
        raise UsageError(f"--json and --format {form} contradict each other", hint="Give one of them.")
    with open_reader(settings_of(ctx)) as con:
        statement = one_statement(con, sys.stdin.read() if sql == "-" else sql)
        try:
            con.execute(statement)
            write_result(con, Format(form or ("json" if as_json else "table")), screen.console())
        except duckdb.Error as error:
            if is_interrupt(error):
                raise
            raise QueryError(one_line(error)) from error


def sql(ctx: typer.Context) -> None:
    """A shell on the warehouse: SQL that ends in ;, .tables, .schema, .help. Reads a script from a pipe."""
    from piper.ops import screen
    from piper.ops.reader import open_reader
    from piper.ops.shell import Shell

    with open_reader(settings_of(ctx)) as con:
        shell = Shell(con, screen.console())
        if sys.stdin.isatty():
            shell.talk()
        else:
            shell.run(iter(sys.stdin))
