"""Commands that tell where the warehouse stands: status, doctor."""

from __future__ import annotations

import typer

from piper.commands.context import JsonOption, settings_of
from piper.exits import print_json


def status(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Who writes the warehouse, what is unread, what is in it."""
    from piper.ops import screen
    from piper.ops.status import read_status

    found = read_status(settings_of(ctx))
    if as_json:
        print_json(found)
    else:
        screen.show_status(screen.console(), found)


def doctor(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Check freshness, volume, invalid rate, clock skew, lag and the ground. Exit 0 PASS, 1 WARN, 2 FAIL."""
    from piper.ops import screen
    from piper.ops.doctor import EXIT_CODES, examine, worst

    checks = examine(settings_of(ctx))
    if as_json:
        rows = [{"name": c.name, "status": c.level.value, "value": c.value, "hint": c.hint} for c in checks]
        print_json({"status": worst(checks).value, "checks": rows})
    else:
        screen.show_checks(screen.console(), checks)
    raise typer.Exit(EXIT_CODES[worst(checks)])
