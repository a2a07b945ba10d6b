"""An event as one line: for people, with the words that tell it from the others, or as JSON with everything."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import orjson
from rich.text import Text

from piper.ops import screen
from piper.ops.results import shown
from piper.ops.terminal import spelled_json
from piper.silver.datasets import DATASETS

MESSAGE_CHARACTERS = 200
_STATUS_STYLES = {"success": "green", "error": "bold red", "warning": "yellow", "info": "cyan"}
_COLUMNS = [name for name, _ in DATASETS["events"].columns]


def text_writer() -> Callable[[Mapping[str, Any]], None]:
    """Writes events for people to stdout, in colour on a terminal."""
    out = screen.console()
    return lambda event: out.print(as_text(event), soft_wrap=True)


def json_writer() -> Callable[[Mapping[str, Any]], None]:
    """Writes events to stdout as the columns of silver_events; payload and metrics are objects, times in ISO 8601."""

    def write(event: Mapping[str, Any]) -> None:
        sys.stdout.write(as_json(event) + "\n")

    return write


def as_text(event: Mapping[str, Any]) -> Text:
    """When, what became of it, what, who and where, on which shot, and why not."""
    status = event["status"]
    scope = "/".join(filter(None, (event[f"scope_{part}"] for part in ("show", "sequence", "shot", "asset"))))
    error = ": ".join(filter(None, (event["error_code"], event["error_message"])))
    return Text.assemble(
        (f"{event['occurred_at_utc']:%Y-%m-%d %H:%M:%S}  ", "dim"),
        (f"{shown(status):<7}  ", _STATUS_STYLES.get(status, "")),
        (f"{shown(event['event_type']):<24}  ", "bold"),
        f"{shown(event['host_user'])}@{shown(event['host_hostname'])}",
        f"  {shown(scope)}" if scope else "",
        (f"  {shown(error)[:MESSAGE_CHARACTERS]}" if error else "", "red"),
    )


def as_json(event: Mapping[str, Any]) -> str:
    """One line; JSON text inside is put in as it is."""
    record: dict[str, Any] = {}
    for name in _COLUMNS:
        value = event[name]
        if isinstance(value, datetime):
            value = f"{value.isoformat()}Z"
        elif name in {"payload", "metrics"} and value is not None:
            value = orjson.Fragment(value)
        record[name] = value
    return spelled_json(orjson.dumps(record, default=str).decode())
