"""How a writer puts an event on a line: the dialects of the contract, and the ways a line can be broken."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import orjson

from piper.demo.events import Event
from piper.demo.world import utc_text

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Origin:
    """The process that writes: what its lines say about it. `skew_seconds`: its clock minus the true time."""

    hostname: str
    user: str
    os: str
    os_release: str
    pid: int
    session_id: str
    flat: bool
    skew_seconds: int


def random_uuid(rng: Random) -> str:
    """A version 4 UUID out of the simulation's own randomness."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def record(event: Event, at: float, origin: Origin, rng: Random) -> Record:
    """The event as the origin's dialect names its fields, with ids of its own."""
    event_id, action_id = random_uuid(rng), random_uuid(rng)
    occurred_at = utc_text(at + origin.skew_seconds)
    if origin.flat:
        return _flat(event, event_id, action_id, occurred_at, origin)
    return _nested(event, event_id, action_id, occurred_at, origin)


def encode(fields: Record) -> bytes:
    """One line, with its newline: nested compact, sorted and raw UTF-8; flat as `json.dumps` has it."""
    if "schema_version" in fields:
        return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
    return json.dumps(fields).encode() + b"\n"


def _nested(event: Event, event_id: str, action_id: str, occurred_at: str, origin: Origin) -> Record:
    pipeline = {"name": "sandwich-pipeline"}
    if event.dcc:
        pipeline["dcc"] = event.dcc
    fields: Record = {
        "schema_version": "1.0",
        "event_id": event_id,
        "event_type": event.event_type,
        "occurred_at_utc": occurred_at,
        "status": event.status,
        "pipeline": pipeline,
        "host": {
            "hostname": origin.hostname,
            "user": origin.user,
            "os": origin.os,
            "os_release": origin.os_release,
            "pid": origin.pid,
        },
        "session": {"session_id": origin.session_id, "action_id": action_id},
        "payload": event.payload,
    }
    if event.metrics:
        fields["metrics"] = event.metrics
    if event.scope:
        fields["scope"] = event.scope
    if event.failure:
        failure = event.failure
        fields["error"] = {
            "code": failure.code,
            "message": failure.message,
            "exception_type": failure.exception_type,
        }
    return fields


def _flat(event: Event, event_id: str, action_id: str, occurred_at: str, origin: Origin) -> Record:
    event_type, payload = event.event_type, event.payload
    if event_type.startswith("publish."):
        event_type, payload = "publish.usd", {"kind": payload["publish_type"], **payload}
    fields: Record = {
        "event_id": event_id,
        "event_type": event_type,
        "status": event.status,
        "occurred_at": occurred_at,
        "action_id": action_id,
        "hostname": origin.hostname,
        "host_user": origin.user,
    }
    if event.dcc:
        fields["dcc"] = event.dcc
    fields["payload"] = payload
    # What is measured beside the duration has no top-level name in this dialect: it stays in `metrics`.
    metrics = dict(event.metrics)
    duration_ms = metrics.pop("duration_ms", None)
    if metrics:
        fields["metrics"] = metrics
    if event.scope:
        fields["scope"] = event.scope
    if duration_ms is not None:
        fields["duration_ms"] = duration_ms
    if event.failure:
        fields["error_code"] = event.failure.code
        fields["error_message"] = event.failure.message
    return fields


def broken_line(fields: Record, rng: Random) -> bytes:
    """A line, with its newline, that the contract quarantines; the record is spent."""
    nested = "schema_version" in fields
    return rng.choice(_NESTED_BREAKERS if nested else _BREAKERS)(fields, rng)


def _cut(fields: Record, rng: Random) -> bytes:
    line = encode(fields)
    # A proper prefix of an object is never JSON; -2 drops at least the closing brace.
    return line[: rng.randint(2, len(line) - 2)] + b"\n"


def _trailing_comma(fields: Record, _rng: Random) -> bytes:
    return encode(fields)[:-2] + b",}\n"


def _invalid_utf8(fields: Record, rng: Random) -> bytes:
    fields["payload"] = {**fields["payload"], "artist": "Ren@"}
    bad = rng.choice((b"Ren\xe9", b"\xff\xfeRen", b"Ren\xed\xa0\x80"))
    return encode(fields).replace(b"Ren@", bad, 1)


def _nan(fields: Record, rng: Random) -> bytes:
    fields["payload"] = {**fields["payload"], "progress": rng.choice((float("nan"), float("inf")))}
    return json.dumps(fields).encode() + b"\n"


def _missing_field(fields: Record, rng: Random) -> bytes:
    required = ["event_id", "event_type", "status", _time_field(fields)]
    required += [name for name in ("pipeline", "host", "session") if name in fields]
    del fields[rng.choice(required)]
    return encode(fields)


def _capitals(fields: Record, _rng: Random) -> bytes:
    fields["event_type"] = fields["event_type"].title()
    return encode(fields)


def _major_version(fields: Record, _rng: Random) -> bytes:
    fields["schema_version"] = "2.0"
    return encode(fields)


def _no_offset(fields: Record, _rng: Random) -> bytes:
    when = _time_field(fields)
    fields[when] = fields[when].removesuffix("Z")
    return encode(fields)


def _time_field(fields: Record) -> str:
    return "occurred_at_utc" if "occurred_at_utc" in fields else "occurred_at"


_BREAKERS: tuple[Callable[[Record, Random], bytes], ...] = (
    _cut,
    _trailing_comma,
    _invalid_utf8,
    _nan,
    _missing_field,
    _capitals,
    _no_offset,
)
_NESTED_BREAKERS = (*_BREAKERS, _major_version)
"""The flat dialect has no version to get wrong."""
