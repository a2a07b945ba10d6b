"""The catalogue: every gold model, silver view and metric, with grain, columns and units.

Nothing is written down here: the headers of the model files, the silver datasets and the list of metrics are the
catalogue. No warehouse is needed.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from piper.exits import UsageError
from piper.gold.models import GoldModel, load_models, split_header
from piper.ops.metric_list import METRICS, Metric
from piper.silver.datasets import DATASETS, Dataset, projection_sql

Entry = dict[str, Any]
"""What is known of one name; `kind` is gold, silver, or counter, gauge or histogram for a metric."""

_UNIT_OF_TYPE = {"DATE": "date", "TIMESTAMP": "time", "VARCHAR": "text"}
_UNIT_OF_SUFFIX = {
    "ms": "ms",
    "s": "s",
    "bytes": "bytes",
    "gb": "GB",
    "hours": "h",
    **dict.fromkeys(("count", "jobs", "slots", "blades", "frames"), "count"),
}


def list_entries() -> dict[str, list[Entry]]:
    """Everything, under `models`, `views` and `metrics`."""
    return {
        "models": [_of_model(model) for model in load_models()],
        "views": [_of_view(dataset) for dataset in DATASETS.values()],
        "metrics": [_of_metric(metric) for metric in METRICS],
    }


def find_entry(name: str) -> Entry:
    """What is known of one model, view or metric; raises UsageError with the names that look like it."""
    entries = {entry["name"]: entry for group in list_entries().values() for entry in group}
    if name in entries:
        return entries[name]
    containing = [known for known in entries if name.lower() in known]
    alike = containing or difflib.get_close_matches(name.lower(), entries, n=3, cutoff=0.5)
    hint = f"Did you mean {', '.join(alike[:3])}? " if alike else ""
    raise UsageError(f"nothing in the catalogue is called {name!r}", hint=f"{hint}`piper catalog` lists all names.")


def in_short(entry: Entry) -> str:
    """The first sentence of what it is."""
    sentence = re.split(r"(?<=[.:]) ", entry["description"], maxsplit=1)[0]
    return sentence.rstrip(".:")


def _of_model(model: GoldModel) -> Entry:
    spans = {"bucket": model.bucket, "window": model.window, "pause": model.pause}
    return {
        "name": model.name,
        "kind": "gold",
        "description": model.description,
        "grain": list(model.grain),
        "period": model.period,
        **{f"{name}_seconds": span // timedelta(seconds=1) for name, span in spans.items() if span},
        "inputs": list(model.inputs),
        "columns": [asdict(column) for column in model.columns],
    }


def _of_view(dataset: Dataset) -> Entry:
    header = dict(line.removeprefix("-- ").split(": ", 1) for line in split_header(projection_sql(dataset.name))[0])
    notes = f": {header['notes']}" if "notes" in header else ""
    grain, _, event_types = header["grain"].partition(" of ")
    return {
        "name": dataset.view,
        "kind": "silver",
        "description": header["description"][:1].upper() + header["description"][1:] + notes,
        "grain": [grain],
        "event_types": event_types or "all",
        "columns": [{"name": name, "unit": _unit_of(name, kind), "type": kind} for name, kind in dataset.columns],
    }


def _unit_of(column: str, sql_type: str) -> str | None:
    """A silver column says its unit by its name or type; None where it is a plain number."""
    return _UNIT_OF_TYPE.get(sql_type) or _UNIT_OF_SUFFIX.get(column.rpartition("_")[2])


def _of_metric(metric: Metric) -> Entry:
    return {
        "name": metric.name,
        "kind": metric.kind,
        "description": metric.meaning,
        "unit": metric.unit,
        "labels": {label: list(values) for label, values in metric.labels.items()},
    }
