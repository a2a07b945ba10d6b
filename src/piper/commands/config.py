"""`piper config`: the settings in force."""

from __future__ import annotations

import typer

from piper.commands.context import JsonOption, globals_of
from piper.exits import print_json


def show(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Every setting in force, its value and its source."""
    from piper.settings_sources import setting_rows

    rows = setting_rows(globals_of(ctx).load())
    if as_json:
        print_json({"settings": [row._asdict() for row in rows]})
        return
    from piper.ops import screen

    screen.show_settings(screen.console(), rows)
