"""The catalogue on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from piper.ops.catalogue import Entry, in_short
from piper.ops.screen import facts
from piper.ops.words import duration


def show_list(out: Console, entries: dict[str, list[Entry]]) -> None:
    """One line each: gold models, silver views, metrics."""
    _table(
        out,
        ("gold model", "period", "grain", "what"),
        ((e["name"], e["period"], ", ".join(e["grain"]), in_short(e)) for e in entries["models"]),
    )
    out.print()
    _table(
        out,
        ("silver view", "of events", "what"),
        ((e["name"], e["event_types"], in_short(e)) for e in entries["views"]),
    )
    out.print()
    _table(
        out,
        ("metric", "kind", "labels", "unit", "what"),
        ((e["name"], e["kind"], ", ".join(e["labels"]), e["unit"], e["description"]) for e in entries["metrics"]),
    )


def show_entry(out: Console, entry: Entry) -> None:
    """All that is known of one name."""
    rows = [("what", entry["description"])]
    if "grain" in entry:
        rows.append(("grain", ", ".join(entry["grain"])))
    if "event_types" in entry:
        rows.append(("of events", entry["event_types"]))
    if "period" in entry:
        rows.append(("period", _period(entry)))
        rows.append(("inputs", ", ".join(entry["inputs"])))
    if "labels" in entry:
        rows.append(("kind", entry["kind"]))
        rows.append(("unit", entry["unit"]))
        rows += [(label, ", ".join(values) or "any") for label, values in entry["labels"].items()]
    facts(out, entry["name"], rows)
    if "columns" in entry:
        out.print()
        _table(
            out,
            ("column", "type", "unit", "meaning"),
            ((c["name"], c["type"], c["unit"] or "–", c.get("meaning", "")) for c in entry["columns"]),
        )


def _period(entry: Entry) -> str:
    spans = [f"{name} {duration(entry[key])}" for name in ("bucket", "window") if (key := f"{name}_seconds") in entry]
    return ", ".join([entry["period"], *spans])


def _table(out: Console, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    out.print(table)
