"""`piper catalog`: what there is to query: gold models, silver views, metrics."""

from __future__ import annotations

from typing import Annotated

import typer

from piper.commands.context import JsonOption
from piper.exits import print_json


def catalog(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Without a command: `list`."""
    if ctx.invoked_subcommand is None:
        _list(as_json=as_json)


def list_(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Every gold model with period and grain, every silver view, every metric; one line each."""
    _list(as_json=as_json or _group_says_json(ctx))


def show(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A gold model, a silver view or a metric.")],
    as_json: JsonOption = False,
) -> None:
    """One of them in full: what it means, its grain, its columns with their units."""
    from piper.ops import catalogue_screen, screen
    from piper.ops.catalogue import find_entry

    entry = find_entry(name)
    if as_json or _group_says_json(ctx):
        print_json(entry)
    else:
        catalogue_screen.show_entry(screen.console(), entry)


def _list(*, as_json: bool) -> None:
    from piper.ops import catalogue_screen, screen
    from piper.ops.catalogue import list_entries

    entries = list_entries()
    if as_json:
        print_json(entries)
    else:
        catalogue_screen.show_list(screen.console(), entries)


def _group_says_json(ctx: typer.Context) -> bool:
    """`piper catalog --json list` is `piper catalog list --json`."""
    return ctx.parent is not None and bool(ctx.parent.params.get("as_json"))
