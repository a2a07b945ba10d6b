"""The two dialects as SQL: how a line's JSON becomes the envelope, and how a required field is looked for.

Only fragments are built here, from the project's own constants; nothing of an event ever becomes SQL text.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

from piper.events.registry import ALTERNATIVES, EVENT_TYPES, PUBLISH_KINDS, STATUSES, EventType

SCOPE_FIELDS = ("show", "sequence", "shot", "asset", "department", "task")

_TEXT = "VARCHAR"
ENVELOPE = {
    "schema_version": _TEXT,
    "event_id": _TEXT,
    "event_type": _TEXT,
    "occurred_at_utc": _TEXT,
    "status": _TEXT,
    "pipeline": {"name": _TEXT, "dcc": _TEXT},
    "host": {"hostname": _TEXT, "user": _TEXT, "os": _TEXT},
    "session": {"session_id": _TEXT, "action_id": _TEXT},
    "scope": dict.fromkeys(SCOPE_FIELDS, _TEXT),
    "error": {"code": _TEXT, "message": _TEXT},
    "payload": "JSON",
    "metrics": "JSON",
    "occurred_at": _TEXT,
    "action_id": _TEXT,
    "hostname": _TEXT,
    "host_user": _TEXT,
    "dcc": _TEXT,
    "duration_ms": _TEXT,
    "error_code": _TEXT,
    "error_message": _TEXT,
}
"""The structure that `from_json` reads from a line: the union of both dialects. Of duplicate keys the first counts."""

NESTED_REQUIRED = {
    "event_id": "$.event_id",
    "event_type": "$.event_type",
    "occurred_at_utc": "$.occurred_at_utc",
    "status": "$.status",
    "pipeline.name": "$.pipeline.name",
    "host.hostname": "$.host.hostname",
    "host.user": "$.host.user",
    "session.session_id": "$.session.session_id",
}
FLAT_REQUIRED = {
    "event_id": "$.event_id",
    "event_type": "$.event_type",
    "occurred_at": "$.occurred_at",
    "status": "$.status",
    "action_id": "$.action_id",
    "hostname": "$.hostname",
    "host_user": "$.host_user",
}
OBJECTS = ("payload", "metrics", "scope", "error")

_TYPE_PATHS = [
    "$",
    "$.schema_version",
    *dict.fromkeys([*NESTED_REQUIRED.values(), *FLAT_REQUIRED.values()]),
    *(f"$.{name}" for name in OBJECTS),
]


def _type_of(path: str) -> str:
    return f"t[{_TYPE_PATHS.index(path) + 1}]"


_TEXT_OF = {
    "pipeline.name": "e.pipeline.name",
    "host.hostname": "e.host.hostname",
    "host.user": "e.host.user",
    "session.session_id": "e.session.session_id",
}


def _required_problem(required: dict[str, str], *, wrong_type: bool) -> str:
    """CASE that names the first required field which is missing or empty, or is there with a wrong type."""
    branches = []
    for name, path in required.items():
        kind = _type_of(path)
        text = _TEXT_OF.get(name, f"e.{name}")
        if wrong_type:
            branches.append(f"WHEN {kind} <> 'VARCHAR' THEN '{name}'")
        else:
            branches.append(f"WHEN {kind} IS NULL OR {kind} = 'NULL' OR {text} = '' THEN '{name}'")
    return "CASE " + " ".join(branches) + " END"


def _object_problem() -> str:
    branches = " ".join(f"WHEN {_type_of(f'$.{name}')} NOT IN ('OBJECT', 'NULL') THEN '{name}'" for name in OBJECTS)
    return f"CASE {branches} END"


def _requirement(field: str) -> str:
    names = ", ".join(f"'{name}'" for name in ALTERNATIVES.get(field, (field,)))
    return f"WHEN NOT list_has_any(present, [{names}]) THEN '{field}'"


def _violation_of(entry: EventType) -> str:
    statuses = ", ".join(f"'{status}'" for status in entry.statuses)
    fields = [
        *(f"payload.{name}" for name in entry.payload_fields),
        *(f"metrics.{name}" for name in entry.metrics_fields),
    ]
    checks = " ".join(_requirement(field) for field in fields)
    return f"WHEN '{entry.name}' THEN CASE WHEN status NOT IN ({statuses}) THEN 'status' {checks} END"


def _demanded(part: str) -> list[str]:
    """Every field of `part` ("payload.") that the registry asks for, under each of its names."""
    demanded = [
        *(f"payload.{name}" for entry in EVENT_TYPES.values() for name in entry.payload_fields),
        *(f"metrics.{name}" for entry in EVENT_TYPES.values() for name in entry.metrics_fields),
    ]
    names = dict.fromkeys(name for field in demanded for name in ALTERNATIVES.get(field, (field,)))
    return [name for name in names if name.startswith(part)]


def _quoted(values: tuple[str, ...] | list[str]) -> str:
    return ", ".join(f"'{value}'" for value in values)


@cache
def parse_sql() -> str:
    """The statement of `sql/parse.sql` with the dialects' fragments filled in."""
    return _filled(
        "parse.sql",
        structure=json.dumps(ENVELOPE, separators=(",", ":")),
        type_paths=_quoted(_TYPE_PATHS),
        root_type=_type_of("$"),
        schema_version_type=_type_of("$.schema_version"),
        nested_missing=_required_problem(NESTED_REQUIRED, wrong_type=False),
        nested_wrong_type=_required_problem(NESTED_REQUIRED, wrong_type=True),
        flat_missing=_required_problem(FLAT_REQUIRED, wrong_type=False),
        flat_wrong_type=_required_problem(FLAT_REQUIRED, wrong_type=True),
        occurred_at_utc_type=_type_of("$.occurred_at_utc"),
        occurred_at_type=_type_of("$.occurred_at"),
        hostname_type=_type_of("$.hostname"),
        host_user_type=_type_of("$.host_user"),
        object_problem=_object_problem(),
        statuses=_quoted(STATUSES),
        publish_kinds=_quoted(PUBLISH_KINDS),
    )


@cache
def shapes_sql() -> str:
    """The statement of `sql/shapes.sql`: the registry's demands on each shape of events."""
    payload, metrics = _demanded("payload."), _demanded("metrics.")
    return _filled(
        "shapes.sql",
        violations=" ".join(_violation_of(entry) for entry in EVENT_TYPES.values()),
        payload_fields=_quoted(payload),
        metrics_fields=_quoted(metrics),
        payload_paths=_quoted([f"$.{name.removeprefix('payload.')}" for name in payload]),
        metrics_paths=_quoted([f"$.{name.removeprefix('metrics.')}" for name in metrics]),
    )


def _filled(name: str, **fragments: str) -> str:
    template = files("piper.events").joinpath("sql", name).read_text("utf-8")
    for key, fragment in fragments.items():
        template = template.replace("{{" + key + "}}", fragment)
    return template
