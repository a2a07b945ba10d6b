"""The gold models: one `.sql` file each, holding a commented header and one SELECT.

    -- description: what the table answers
    -- grain: key columns, the first one being the date or the bucket (period now: any)
    -- inputs: input relations (see `inputs.INPUT_COLUMNS` and `inputs.OWN_COLUMNS`)
    -- period: day | week | live | now
    -- bucket: 5 m                                period live only: width of a bucket, which divides a day
    -- window: 48 h                               period live only: how far back its rows reach
    -- pause: 60 s                                period now only: see below
    -- merge: events sum, last_event_at max       see below
    -- column <name>: <meaning>; unit <unit>      one line per output column, in output order

A line that starts with `--` and two or more spaces continues the one above.

A model of period `day` or `week` keeps its rows for ever; a `week` may also look at the week before it. The grain of a
`live` model begins with the start of a bucket, a TIMESTAMP; its rows older than the window go when it is refreshed. A
`now` model says how things stand: it is replaced whole when its inputs changed, and without news in silver (when only
the spool moved) after `pause` at the earliest.

`merge` says how two rows of one key become one, for every column beside the grain: `sum`, `max`, or `max by <column>`
(the value that goes with the largest of that column; of equal ones, the larger value). Such a model is brought up to
date from its own rows and what is new in silver. Its first such column counts the rows of its first input.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from importlib import resources
from typing import Literal, cast

import duckdb

from piper.errors import PiperError
from piper.gold.inputs import ALL_COLUMNS, empty_relation_sql

Period = Literal["day", "week", "live", "now"]

OUTPUT_TYPES = frozenset({"DATE", "VARCHAR", "BIGINT", "DOUBLE", "TIMESTAMP"})
"""What a gold column may be; dashboards read other types as text or not at all."""

UNITS = frozenset({"date", "time", "text", "count", "percent", "ms", "s", "h", "bytes", "GB"})

_HEADER_KEYS = frozenset({"description", "grain", "inputs", "period"})
_MERGE = re.compile(r"(?P<column>[a-z0-9_]+) (?P<function>sum|max)(?: by (?P<by>[a-z0-9_]+))?")
_SPANS_OF: Mapping[str, frozenset[str]] = {
    "day": frozenset(),
    "week": frozenset(),
    "live": frozenset({"bucket", "window"}),
    "now": frozenset({"pause"}),
}
"""Periods, and the spans of time that a header may give with them; `live` needs both of its own."""
_SPAN_KEYS = frozenset().union(*_SPANS_OF.values())
_SPAN = re.compile(r"(?P<count>[1-9][0-9]*) (?P<unit>[smh])")
_SPAN_UNITS = {"s": timedelta(seconds=1), "m": timedelta(minutes=1), "h": timedelta(hours=1)}
_HEADER_LINE = re.compile(r"-- (?P<key>[a-z]+)(?: (?P<column>[a-z0-9_]+))?: (?P<text>.+)")
_COLUMN_TEXT = re.compile(r"(?P<meaning>.+); unit (?P<unit>\S+)")


class GoldModelError(PiperError):
    """A model file's header and its SELECT do not agree, or the SELECT does not run on its inputs."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(
            f"gold model {name}: {detail}",
            hint="The model files are part of piper: fix the file, or reinstall piper.",
        )


@dataclass(frozen=True)
class Column:
    """One output column; `type` is a DuckDB type name out of `OUTPUT_TYPES`."""

    name: str
    unit: str
    meaning: str
    type: str


@dataclass(frozen=True)
class Merge:
    """How a column of two rows of one key becomes one; `by`: the column whose largest value decides."""

    column: str
    function: Literal["sum", "max"]
    by: str | None = None

    def sql(self, sql_type: str) -> str:
        """The aggregate, as the column's type."""
        if self.by:
            return f"MAX({{'by': {self.by}, 'value': {self.column}}}).value"
        return f"CAST({self.function.upper()}({self.column}) AS {sql_type})"


@dataclass(frozen=True)
class GoldModel:
    """One gold table: its meaning, and the SELECT (no header, no semicolon) that computes it."""

    name: str
    description: str
    grain: tuple[str, ...]
    period: Period
    inputs: tuple[str, ...]
    columns: tuple[Column, ...]
    sql: str
    bucket: timedelta = timedelta()
    window: timedelta = timedelta()
    pause: timedelta = timedelta()
    merge: tuple[Merge, ...] = ()

    @property
    def period_column(self) -> str:
        """The column that says to which day, week (its Monday) or bucket a row belongs; of no use to period `now`."""
        return self.grain[0]

    @property
    def definition(self) -> str:
        """A hash that changes when the stored rows would no longer be what this file gives."""
        shape = [f"{column.name} {column.type}" for column in self.columns]
        spans = [str(self.bucket), str(self.window)] if self.window else []
        text = [self.sql, self.period, *self.inputs, *shape, *spans]
        return hashlib.sha256("\n".join(text).encode()).hexdigest()

    def with_inputs(self, relations: Mapping[str, str]) -> str:
        """Give the whole query: the model over one SELECT per declared input, bound as CTEs."""
        ctes = ", ".join(f"{name} AS ({relations[name]})" for name in self.inputs)
        return f"WITH {ctes} SELECT * FROM (\n{self.sql}\n)"

    def merged(self, stored: str, news: str) -> str:
        """Give the query that makes one table of two SELECTs of this model's columns. Only for a model with `merge`."""
        types = {column.name: column.type for column in self.columns}
        values = ", ".join(f"{merge.sql(types[merge.column])} AS {merge.column}" for merge in self.merge)
        keys = ", ".join(self.grain)
        return f"SELECT {keys}, {values} FROM (({stored}) UNION ALL BY NAME ({news})) GROUP BY {keys}"


@cache
def load_models() -> tuple[GoldModel, ...]:
    """Load the models of the package, sorted by name. Raises `GoldModelError` for a file that contradicts
    itself.
    """
    folder = resources.files("piper.gold").joinpath("models")
    texts = {
        entry.name.removesuffix(".sql"): entry.read_text("utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".sql")
    }
    return tuple(parse_model(name, texts[name]) for name in sorted(texts))


def parse_model(name: str, text: str) -> GoldModel:
    """Make a model from the text of its file, its header checked against the SELECT's columns."""
    header, sql = split_header(text)
    fields: dict[str, str] = {}
    documented: dict[str, tuple[str, str]] = {}
    for line in header:
        _read_header_line(name, line, fields, documented)
    if missing := sorted(_HEADER_KEYS - fields.keys()):
        raise GoldModelError(name, f"the header lacks {', '.join(missing)}")
    spans = _spans(name, fields)
    inputs = _names(fields["inputs"])
    if unknown := sorted(set(inputs) - ALL_COLUMNS.keys()):
        raise GoldModelError(name, f"unknown inputs {', '.join(unknown)}")
    model = GoldModel(
        name=name,
        description=fields["description"],
        grain=_names(fields["grain"]),
        period=cast("Period", fields["period"]),
        inputs=inputs,
        columns=(),
        sql=sql,
        merge=_merges(name, fields.get("merge")),
        **spans,
    )
    return _with_columns(model, documented)


def split_header(text: str) -> tuple[list[str], str]:
    """Separate the comment lines at the top, continuations joined, from the statement."""
    lines = text.splitlines()
    top = next((number for number, line in enumerate(lines) if not line.startswith("--")), len(lines))
    header: list[str] = []
    for line in lines[:top]:
        if line.startswith("--  ") and header:
            header[-1] += " " + line[2:].strip()
        else:
            header.append(line)
    return header, "\n".join(lines[top:]).strip().removesuffix(";")


def _read_header_line(name: str, line: str, fields: dict[str, str], documented: dict[str, tuple[str, str]]) -> None:
    match = _HEADER_LINE.fullmatch(line)
    if match is None:
        raise GoldModelError(name, f"not a header line: {line!r}")
    key, column, text = match["key"], match["column"], match["text"]
    if key == "column" and column:
        unit = _COLUMN_TEXT.fullmatch(text)
        if unit is None or unit["unit"] not in UNITS:
            raise GoldModelError(name, f"column {column} needs '; unit <one of {', '.join(sorted(UNITS))}>'")
        if column in documented:
            raise GoldModelError(name, f"column {column} is documented twice")
        documented[column] = (unit["unit"], unit["meaning"])
    elif (key in _HEADER_KEYS or key in _SPAN_KEYS or key == "merge") and not column and key not in fields:
        fields[key] = text
    else:
        raise GoldModelError(name, f"unknown or repeated header line: {line!r}")


def _spans(name: str, fields: Mapping[str, str]) -> dict[str, timedelta]:
    """Read the spans of time that the header gives; those that its period cannot have, or lacks, are refused."""
    period = fields["period"]
    if period not in _SPANS_OF:
        raise GoldModelError(name, f"period is {period!r}, not {', '.join(_SPANS_OF)}")
    given = _SPAN_KEYS & fields.keys()
    if given - _SPANS_OF[period] or (period == "live" and given != _SPANS_OF["live"]):
        raise GoldModelError(name, f"period {period} takes {', '.join(sorted(_SPANS_OF[period])) or 'no span of time'}")
    spans: dict[str, timedelta] = {}
    for key in given:
        match = _SPAN.fullmatch(fields[key])
        if match is None:
            raise GoldModelError(name, f"{key} is {fields[key]!r}, not a number and s, m or h, as in 5 m")
        spans[key] = int(match["count"]) * _SPAN_UNITS[match["unit"]]
    if period == "live" and timedelta(days=1) % spans["bucket"]:
        raise GoldModelError(name, "the bucket does not divide a day")
    return spans


def _merges(name: str, text: str | None) -> tuple[Merge, ...]:
    merges: list[Merge] = []
    for part in _names(text) if text else ():
        match = _MERGE.fullmatch(part)
        if match is None or (match["by"] and match["function"] == "sum"):
            raise GoldModelError(name, f"merge {part!r} is not '<column> sum', '… max' or '… max by <column>'")
        merges.append(Merge(match["column"], cast("Literal['sum', 'max']", match["function"]), match["by"]))
    return tuple(merges)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _with_columns(model: GoldModel, documented: Mapping[str, tuple[str, str]]) -> GoldModel:
    actual = _describe(model)
    names = [column for column, _ in actual]
    if undocumented := [column for column in names if column not in documented]:
        raise GoldModelError(model.name, f"columns without a header line: {', '.join(undocumented)}")
    if absent := [column for column in documented if column not in names]:
        raise GoldModelError(model.name, f"documented columns that the SELECT lacks: {', '.join(absent)}")
    if names != list(documented) or names[: len(model.grain)] != list(model.grain):
        raise GoldModelError(model.name, "the grain and the column lines are not in the order of the SELECT")
    if wrong := [f"{column} {sql_type}" for column, sql_type in actual if sql_type not in OUTPUT_TYPES]:
        raise GoldModelError(model.name, f"columns of a type that dashboards cannot read: {', '.join(wrong)}")
    if model.merge and [merge.column for merge in model.merge] != names[len(model.grain) :]:
        raise GoldModelError(model.name, "merge does not name every column beside the grain, in their order")
    columns = tuple(Column(column, *documented[column], sql_type) for column, sql_type in actual)
    return replace(model, columns=columns)


def _describe(model: GoldModel) -> Sequence[tuple[str, str]]:
    """Bind the SELECT over empty typed inputs; give its columns and their types."""
    query = model.with_inputs({name: empty_relation_sql(name) for name in model.inputs})
    try:
        with duckdb.connect() as con:
            rows = con.execute(f"DESCRIBE {query}").fetchall()
    except duckdb.Error as error:
        raise GoldModelError(model.name, f"the SELECT does not bind: {error}") from error
    return [(str(row[0]), str(row[1])) for row in rows]
