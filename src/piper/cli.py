"""The command line: `piper` and `piperd`. It parses, calls and shows; the work is elsewhere.

`main` and `main_daemon` are the entry points. DuckDB, pyarrow and what needs them are imported inside the commands, so
that `piper --help` is there at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from piper import __version__
from piper.demo.simulate import SimulateOptions
from piper.errors import EX_FAILURE, EX_OK, EX_USAGE, WriterLockedError
from piper.exits import EX_INTERRUPTED, UsageError, print_json, run

if TYPE_CHECKING:
    from piper.settings import LoadedSettings, Settings

app = typer.Typer(
    name="piper",
    help="Telemetry lakehouse: JSONL spool in, exactly once, DuckDB and Grafana out. docs/cli.md has it all.",
    add_completion=False,
)
config_app = typer.Typer(help="Settings: what is in force, and where each value came from.")
app.add_typer(config_app, name="config")
daemon_app = typer.Typer(name="piperd", add_completion=False)


@dataclass(frozen=True, slots=True)
class Globals:
    """The options before the command."""

    config: Path | None = None
    data_root: Path | None = None
    raw_root: Path | None = None

    def load(self) -> LoadedSettings:
        """The settings in force. Raises ConfigError."""
        from piper.settings import CONFIG_FILE_VARIABLE, load_settings

        env = dict(os.environ)
        if self.config is not None:
            env[CONFIG_FILE_VARIABLE] = str(self.config)
        return load_settings({"paths.data_root": self.data_root, "paths.raw_root": self.raw_root}, env=env)


def _show_version(wanted: bool) -> None:
    if wanted:
        versions = f"DuckDB {metadata.version('duckdb')}, Python {sys.version.split()[0]}"
        typer.echo(f"piper {__version__} ({versions})")
        raise typer.Exit(EX_OK)


ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML file of settings, instead of the one in PIPER_CONFIG_FILE."),
]
DataRootOption = Annotated[
    Path | None, typer.Option("--data-root", metavar="DIR", help="What piper writes (paths.data_root).")
]
RawRootOption = Annotated[
    Path | None, typer.Option("--raw-root", metavar="DIR", help="The spool that piper reads (paths.raw_root).")
]
VersionOption = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the versions and exit.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, errors included.")]


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


# ---- commands --------------------------------------------------------------------------------------------------------


@app.command()
def init(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Create the directories, the manifest and the catalog that are missing. Safe to repeat."""
    from piper import oneshot
    from piper.layout import Layout

    settings = _settings(ctx, run_log="init")
    try:
        summary = oneshot.init(settings)
    except WriterLockedError as error:
        if not Layout.of(settings).catalog.exists():
            raise
        summary = oneshot.InitSummary(str(settings.paths.data_root), str(Layout.of(settings).catalog), [])
        _say(f"in use by {error.holder}", unless=as_json)
    if as_json:
        print_json(asdict(summary))
        return
    for path in summary.created:
        _say(f"created {path}")
    _say(f"{summary.data_root} is ready" if summary.created else f"{summary.data_root} was ready, nothing to do")
    _say(f"Readers open {summary.catalog}, read-only.")


@app.command()
def ingest(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Read everything unread on the spool once; then seal, publish and refresh gold."""
    from piper import oneshot
    from piper.ops import screen

    settings = _settings(ctx, run_log="ingest")
    try:
        with screen.byte_progress("ingest", visible=sys.stderr.isatty() and not as_json) as progress:
            summary = oneshot.ingest(settings, progress)
    except WriterLockedError as error:
        if not oneshot.makes_ingest_needless(error.holder):
            raise
        print_json({"running": True, "holder": error.holder}) if as_json else _say(
            f"{error.holder} is running and reads {settings.paths.raw_root}: nothing to do here"
        )
        return
    if as_json:
        print_json({"running": False, **asdict(summary)})
    else:
        screen.show_ingest(screen.console(), summary)
    if summary.gold_failed:
        raise typer.Exit(EX_FAILURE)


@app.command()
def materialize(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="Only this gold model.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Rebuild gold from scratch, and the catalog's views. While piperd runs, it does it."""
    from piper import oneshot
    from piper.layout import Layout
    from piper.ops.control import DaemonNotRunningError, ask
    from piper.ops.metrics import GOLD_MODELS

    if model is not None and model not in GOLD_MODELS:
        raise UsageError(f"there is no gold model {model!r}", hint=f"The models are {', '.join(GOLD_MODELS)}.")
    settings = _settings(ctx, run_log="materialize")
    try:
        done = {
            "by": "piperd",
            **ask(Layout.of(settings).control_socket, "materialize", {"model": model}, timeout_seconds=None),
        }
    except DaemonNotRunningError:
        done = {"by": "piper", **asdict(oneshot.materialize(settings, None if model is None else [model]))}
    if as_json:
        print_json(done)
    else:
        _say(f"{done['by']} rebuilt {', '.join(done.get('models', [model or 'gold']))} and the catalog")
        for name in done.get("failed", []):
            _say(f"FAILED: {name} keeps its old rows; the log says why (gold_refresh_failed)")
    if done.get("failed"):
        raise typer.Exit(EX_FAILURE)


@app.command()
def status(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Who writes the warehouse, what is unread, what is in it."""
    from piper.ops import screen
    from piper.ops.status import read_status

    found = read_status(_settings(ctx))
    if as_json:
        print_json(found)
    else:
        screen.show_status(screen.console(), found)


@app.command()
def doctor(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Check freshness, volume, invalid rate, clock skew, lag and the ground. Exit 0 PASS, 1 WARN, 2 FAIL."""
    from piper.ops import screen
    from piper.ops.doctor import EXIT_CODES, examine, worst

    checks = examine(_settings(ctx))
    if as_json:
        rows = [{"name": c.name, "status": c.level.value, "value": c.value, "hint": c.hint} for c in checks]
        print_json({"status": worst(checks).value, "checks": rows})
    else:
        screen.show_checks(screen.console(), checks)
    raise typer.Exit(EXIT_CODES[worst(checks)])


@app.command()
def rebuild(
    ctx: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a new manifest from silver and the raw spool, when the old one is damaged or lost."""
    from piper import oneshot
    from piper.ops import screen

    settings = _settings(ctx, run_log="rebuild")
    if not yes:
        _confirm(f"Set the manifest of {settings.paths.data_root} aside and make a new one?", as_json=as_json)
    visible = sys.stderr.isatty() and not as_json
    with screen.step_progress(visible=visible) as on_step, screen.byte_progress("raw", visible=visible) as on_bytes:
        done = oneshot.rebuild(settings, on_step, on_bytes)
    if as_json:
        print_json(asdict(done))
    else:
        screen.show_rebuild(screen.console(), done)
    if done.read.gold_failed:
        raise typer.Exit(EX_FAILURE)


@config_app.command("show")
def config_show(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Every setting in force, its value and its source."""
    from piper.settings import setting_rows

    rows = setting_rows(_globals(ctx).load())
    if as_json:
        print_json({"settings": [row._asdict() for row in rows]})
        return
    from piper.ops import screen

    screen.show_settings(screen.console(), rows)


_SIMULATE = SimulateOptions(Path())


@app.command()
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
    with _stop_on_signals() as stopped:
        summary = write_spool(options, stop=stopped)
        was_cut = stopped()
    if as_json:
        print_json(asdict(summary))
    else:
        _say(
            f"{summary.lines:,} lines in {summary.files:,} files below {root}: {summary.valid:,} valid,"
            f" {summary.duplicates:,} duplicate, {summary.malformed:,} malformed"
        )
    is_endless = events is None and not days
    raise typer.Exit(EX_INTERRUPTED if was_cut and not is_endless else EX_OK)


@app.command()
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


@daemon_app.command()
def piperd(
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    raw_root: RawRootOption = None,
    version: VersionOption = False,  # noqa: ARG001 - its callback does it
) -> None:
    """The telemetry daemon: tails the spool and keeps the warehouse up to date until SIGTERM or SIGINT."""
    from piper.daemon import run as run_daemon

    raise typer.Exit(run_daemon(Globals(config, data_root, raw_root).load().settings))


# ---- what commands share ---------------------------------------------------------------------------------------------


def _globals(ctx: typer.Context) -> Globals:
    found = ctx.find_object(Globals)
    return found if found is not None else Globals()


def _settings(ctx: typer.Context, *, run_log: str | None = None) -> Settings:
    """The settings; logging is set up by them. `run_log` names the run log file of a command that does work."""
    from piper.ops.logging import RunLog, configure_logging

    settings = _globals(ctx).load().settings
    on_terminal = sys.stderr.isatty()
    quiet = run_log is None or on_terminal
    configure_logging(
        settings.logging.level,
        "text" if on_terminal else settings.logging.format,
        None if run_log is None else RunLog(settings.paths.data_root, run_log),
        stderr_level="warning" if quiet else None,
    )
    return settings


def _say(text: str, *, unless: bool = False) -> None:
    if not unless:
        typer.echo(text)


def _confirm(question: str, *, as_json: bool) -> None:
    if as_json or not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on whether you mean it", hint="Add --yes.")
    if not typer.confirm(question):
        raise typer.Exit(EX_FAILURE)


@contextmanager
def _stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Gives whether SIGINT or SIGTERM came; a second one ends the process at once."""
    seen: list[int] = []

    def note(number: int, _frame: object) -> None:
        seen.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- the way in and out ----------------------------------------------------------------------------------------------


def main() -> NoReturn:
    """`piper`."""
    sys.exit(run(app, "piper", sys.argv[1:]))


def main_daemon() -> NoReturn:
    """`piperd`."""
    sys.exit(run(daemon_app, "piperd", sys.argv[1:]))
