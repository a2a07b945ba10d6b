"""`piper quarantine`: the lines that were rejected, why, and where they came from."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piper.commands.context import JsonOption, say, settings_of
from piper.errors import EX_FAILURE
from piper.exits import UsageError, print_json

if TYPE_CHECKING:
    from pathlib import Path

    from piper.events.quarantine import Reason
    from piper.layout import Layout
    from piper.ops.rejected import Found, Only

ReasonOption = Annotated[str | None, typer.Option("--reason", metavar="REASON", help="Only lines of this reason.")]
SinceOption = Annotated[
    str | None,
    typer.Option("--since", metavar="D", help="Only since a date (UTC), or for so long: 12h, 7d."),
]
_AGO = re.compile(r"(\d{1,4})([hd])")
SNIPPET_CHARACTERS = 60


def list_(
    ctx: typer.Context,
    reason: ReasonOption = None,
    since: SinceOption = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", help="At most so many; 0 means all.", min=0)] = 20,
    as_json: JsonOption = False,
) -> None:
    """The newest rejected lines, one a line: when, id, reason, field, source file and line, and how it begins."""
    from itertools import islice

    from piper.ops.rejected import records

    only = _only(reason, since)
    found = list(islice(records(_quarantine(ctx), only), limit or None))
    if as_json:
        print_json({"records": [_without_raw(record) for record in found]})
        return
    for record in found:
        say(_line(record))
    if not found:
        say("no such line is in quarantine")
    elif limit and len(found) == limit:
        say(f"the newest {limit:,}; --limit 0 shows all, `piper quarantine show ID` one in full")


def show(
    ctx: typer.Context,
    record_id: Annotated[str, typer.Argument(metavar="ID", help="The id, or the beginning of it, as in `list`.")],
    as_json: JsonOption = False,
) -> None:
    """One rejected line in full: what it says, why it was rejected, where it stands."""
    from piper.events.quarantine import Reason
    from piper.ops import screen
    from piper.ops.rejected import MEANING, find
    from piper.ops.results import shown

    found = find(_quarantine(ctx), record_id)
    if as_json:
        print_json({**found.as_row(), "meaning": MEANING[Reason(found.record["reason"])]})
        return
    record = found.record
    cut = record["raw_bytes"] - len(found.raw)
    rows = [
        ("reason", record["reason"] + (f" ({record['field']})" if record["field"] else "")),
        ("means", MEANING[Reason(record["reason"])]),
        ("rejected", record["quarantined_at_utc"]),
        ("source", f"{record['source_file']}, line {record['source_line']:,}, byte {record['source_offset']:,}"),
        ("kept in", found.file),
        ("bytes", f"{record['raw_bytes']:,}" + (f", {cut:,} of them not kept" if cut > 0 else "")),
        ("line", shown(found.raw.decode("utf-8", "backslashreplace"))),
    ]
    screen.facts(screen.console(), found.id, rows)


def stats(
    ctx: typer.Context, reason: ReasonOption = None, since: SinceOption = None, as_json: JsonOption = False
) -> None:
    """How many lines are in quarantine, by reason, field, host, day and file."""
    from piper.ops import screen
    from piper.ops.rejected import statistics
    from piper.ops.results import shown
    from piper.ops.words import size

    found = statistics(_quarantine(ctx), _only(reason, since))
    if as_json:
        print_json(found)
        return
    titles = {"reasons": "reason", "fields": "field", "hosts": "host", "files": "file", "days": "day"}
    rows = [
        ("" if number else title, f"{count:>9,}  {shown(name)}")
        for key, title in titles.items()
        for number, (name, count) in enumerate(found[key].items())
    ]
    screen.facts(
        screen.console(), f"{found['lines']:,} lines in quarantine, {size(found['bytes'])}", rows or [("", "nothing")]
    )


def replay(
    ctx: typer.Context,
    reason: ReasonOption = None,
    since: SinceOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing, say what would be done.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Judge rejected lines by today's rules: what passes moves into silver and leaves quarantine."""
    from piper import oneshot
    from piper.layout import Layout
    from piper.ops import screen
    from piper.ops.control import DaemonNotRunningError, ask

    only, settings = _only(reason, since), settings_of(ctx, run_log="replay")
    _require_warehouse(Layout.of(settings))
    args = {"reason": only.reason, "since": only.since.isoformat() if only.since else None, "dry_run": dry_run}
    started = time.monotonic()
    done: dict[str, Any]
    try:
        done = {"by": "piperd", **ask(Layout.of(settings).control_socket, "replay", args, timeout_seconds=None)}
    except DaemonNotRunningError:
        done = {"by": "piper", **oneshot.replay(settings, only, dry_run=dry_run)}
    done |= {"dry_run": dry_run, "seconds": round(time.monotonic() - started, 3)}
    print_json(done) if as_json else screen.show_replay(screen.console(), done)
    if done["gold_failed"]:
        raise typer.Exit(EX_FAILURE)


def _quarantine(ctx: typer.Context) -> Path:
    from piper.layout import Layout

    layout = Layout.of(settings_of(ctx))
    _require_warehouse(layout)
    return layout.quarantine


def _require_warehouse(layout: Layout) -> None:
    from piper.ops.status import NotInitialisedError

    if not layout.data_root.is_dir():
        raise NotInitialisedError(f"there is no warehouse at {layout.data_root}", hint="Run `piper init` to make one.")


def _only(reason: str | None, since: str | None) -> Only:
    from piper.ops.rejected import Only

    return Only(None if reason is None else _reason(reason), None if since is None else moment(since))


def _reason(text: str) -> Reason:
    from piper.events.quarantine import Reason

    try:
        return Reason(text)
    except ValueError:
        raise UsageError(f"there is no reason {text!r}", hint=f"The reasons are {', '.join(Reason)}.") from None


def moment(text: str, now: datetime | None = None) -> datetime:
    """What `--since` means, in naive UTC: a date, or a time before `now`. Raises UsageError."""
    present = (now or datetime.now(UTC)).astimezone(UTC).replace(tzinfo=None)
    if match := _AGO.fullmatch(text):
        return present - timedelta(**{"hours" if match[2] == "h" else "days": int(match[1])})
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{text!r} is no date", hint="Write 2026-01-31, or 12h or 7d for the time before now."
        ) from None
    return found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found


def _without_raw(found: Found) -> dict[str, Any]:
    return {name: value for name, value in found.as_row().items() if name not in {"raw_text", "raw_base64"}}


def _line(found: Found) -> str:
    from piper.ops.results import shown

    record = found.record
    text = shown(found.raw[: 4 * SNIPPET_CHARACTERS].decode("utf-8", "backslashreplace"))[:SNIPPET_CHARACTERS]
    reason = record["reason"] + (f" ({record['field']})" if record["field"] else "")
    place = f"{shown(record['source_file'])}:{record['source_line']}"
    return f"{record['quarantined_at_utc'][:19]}Z  {found.id}  {reason}  {place}  {text}"
