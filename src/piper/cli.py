"""The command line: `piper` and `piperd`. It registers the commands of `piper.commands`, and runs one.

`main` and `main_daemon` are the entry points.
"""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from piper.commands import backfill as backfill_command
from piper.commands import catalog as catalog_commands
from piper.commands import config as config_commands
from piper.commands import demo, insight, quarantine, reading, repair, service, upkeep, warehouse
from piper.commands.backfill import AllOption, DryRunOption, EndOption, StartOption
from piper.commands.context import (
    ConfigOption,
    DataRootOption,
    Globals,
    JsonOption,
    RawRootOption,
    VersionOption,
)
from piper.errors import EX_USAGE
from piper.exits import UsageError, run

app = typer.Typer(
    name="piper",
    help="Telemetry lakehouse: JSONL spool in, exactly once, DuckDB and Grafana out. docs/cli.md has it all.",
    add_completion=False,
)
daemon_app = typer.Typer(name="piperd", add_completion=False)


@app.callback(invoke_without_command=True)
def _piper(
    ctx: typer.Context,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    raw_root: RawRootOption = None,
    version: VersionOption = False,  # noqa: ARG001 - its callback does it
) -> None:
    ctx.obj = Globals(config, data_root, raw_root)
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
        raise typer.Exit(EX_USAGE)


# ---- commands, in the order of the help ------------------------------------------------------------------------------

app.command()(warehouse.init)
app.command()(warehouse.ingest)
app.command()(warehouse.materialize)
app.command()(backfill_command.backfill)
app.command()(upkeep.compact)
app.command()(upkeep.prune)
app.command()(insight.status)
app.command()(insight.healthcheck)
app.command()(insight.doctor)
app.command()(reading.tail)
app.command()(reading.query)
app.command()(reading.sql)
app.command()(repair.repair)
app.command()(warehouse.rebuild)
app.command()(service.reload)
app.command()(service.install_units)
app.command()(demo.simulate)
app.command()(demo.demo)

quarantine_app = typer.Typer(help="Lines that are no events: which, why, and where they came from.")
quarantine_app.command("list")(quarantine.list_)
quarantine_app.command("show")(quarantine.show)
quarantine_app.command("stats")(quarantine.stats)
quarantine_app.command("replay")(quarantine.replay)
app.add_typer(quarantine_app, name="quarantine")

catalog_app = typer.Typer(help="What there is to query: gold models, silver views, metrics; grain, columns, units.")
catalog_app.callback(invoke_without_command=True)(catalog_commands.catalog)
catalog_app.command("list")(catalog_commands.list_)
catalog_app.command("show")(catalog_commands.show)
app.add_typer(catalog_app, name="catalog")

config_app = typer.Typer(help="Settings: what is in force, and where each value came from.")
config_app.command("show")(config_commands.show)
app.add_typer(config_app, name="config")


@daemon_app.command()
def piperd(
    ctx: typer.Context,
    backfill: Annotated[
        bool, typer.Option("--backfill", help="Do not run as a daemon: the same as `piper backfill`.")
    ] = False,
    start: StartOption = None,
    end: EndOption = None,
    everything: AllOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    raw_root: RawRootOption = None,
    version: VersionOption = False,  # noqa: ARG001 - its callback does it
) -> None:
    """The telemetry daemon: tails the spool and keeps the warehouse up to date until SIGTERM or SIGINT."""
    from piper.daemon import run as run_daemon

    ctx.obj = Globals(config, data_root, raw_root)
    if backfill:
        backfill_command.backfill(ctx, start, end, everything, dry_run, as_json)
        return
    if start or end or everything or dry_run or as_json:
        raise UsageError("these options are for a backfill", hint="Add --backfill.")
    raise typer.Exit(run_daemon(ctx.obj.load))


# ---- the way in and out ----------------------------------------------------------------------------------------------


def main() -> NoReturn:
    """`piper`."""
    sys.exit(run(app, "piper", sys.argv[1:]))


def main_daemon() -> NoReturn:
    """`piperd`."""
    sys.exit(run(daemon_app, "piperd", sys.argv[1:]))
