"""The relations that gold has itself: constants of piper and gold's own tables.

A model over another model's table is computed after it (`in_turn`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from functools import cache

from piper.events.registry import EVENT_TYPES
from piper.gold.inputs import OWN_COLUMNS
from piper.gold.models import GoldModel, load_models
from piper.gold.store import ALIAS

UNKNOWN_TYPE = "unknown"
"""How gold_activity_daily calls all event types that the registry lacks."""


def own_relation_sql(name: str, now_utc: datetime) -> str:
    """Give a SELECT of one of `OWN_COLUMNS`. `now_utc`: naive, the moment of the refresh."""
    if name == "refresh":
        return f"SELECT TIMESTAMP '{now_utc.isoformat(sep=' ')}' AS now_utc"
    return _CONSTANTS[name]() if name in _CONSTANTS else _table(name)


def definition_of(model: GoldModel) -> str:
    """Give the hash that says whether the stored rows of `model` are still what it gives, its own inputs included."""
    models = {other.name: other for other in load_models()}
    parts = [_CONSTANTS[name]() for name in model.inputs if name in _CONSTANTS]
    parts += [definition_of(models[name]) for name in model.inputs if name in models]
    return hashlib.sha256("\n".join([model.definition, *parts]).encode()).hexdigest() if parts else model.definition


def in_turn(models: Iterable[GoldModel]) -> list[GoldModel]:
    """Give the models in an order in which each comes after those that it reads."""
    return sorted(
        models, key=lambda model: (follows_all(model), any(name.startswith("gold_") for name in model.inputs))
    )


def follows_all(model: GoldModel) -> bool:
    """Tell whether a refresh of any other model changes this one."""
    return "gold_watermark" in model.inputs


def _table(name: str) -> str:
    return f"SELECT {', '.join(OWN_COLUMNS[name])} FROM {ALIAS}.main.{name}"


@cache
def _event_types() -> str:
    return _values("event_types", [(entry.name, entry.group) for entry in EVENT_TYPES.values()])


@cache
def _model_events() -> str:
    """Which event types the inputs of each model hold, inputs of inputs included."""
    models = {model.name: model for model in load_models()}

    def types_of(model: GoldModel) -> set[str]:
        found = {entry.name for entry in EVENT_TYPES.values() if f"silver_{entry.dataset}" in model.inputs}
        if "silver_events" in model.inputs:
            found |= {*EVENT_TYPES, UNKNOWN_TYPE}
        return found.union(*(types_of(models[name]) for name in model.inputs if name in models))

    pairs = [(name, kind) for name, model in models.items() if not follows_all(model) for kind in types_of(model)]
    return _values("model_events", sorted(pairs))


def _values(name: str, rows: Iterable[tuple[str, ...]]) -> str:
    """A SELECT of constant rows; they come from piper's own code and hold no quotes."""
    text = ", ".join("(" + ", ".join(f"'{value}'" for value in row) + ")" for row in rows)
    return f"SELECT * FROM (VALUES {text}) AS {name} ({', '.join(OWN_COLUMNS[name])})"


_CONSTANTS = {"event_types": _event_types, "model_events": _model_events}
