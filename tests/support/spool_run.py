"""Spool files through the real writer, and what silver and quarantine hold afterwards."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.support import gold_reference as raw
from tests.support import parse_reference as reference

from piper.ops.metrics import Metrics
from piper.settings import Settings
from piper.settings_sources import load_settings
from piper.silver.datasets import DATASETS
from piper.writer import Clock, Writer

Row = dict[str, Any]
NOW = datetime(2030, 3, 4, 12)  # noqa: DTZ001
"""What the clock of these runs says, naive UTC; whatever the date of the machine."""
START = NOW.replace(tzinfo=UTC).timestamp()


class SpoolRun:
    """A writer over a spool of its own, with a clock that says NOW until `seconds` is raised."""

    def __init__(self, root: Path, settings: Settings) -> None:
        self.root = root
        self.seconds = 0.0
        clock = Clock(monotonic=lambda: self.seconds, utc=lambda: START + self.seconds)
        self.writer = Writer.open(settings, Metrics(), command="test", clock=clock)

    def ingest(self, files: Mapping[str, bytes], *, seal: bool = False) -> None:
        """Write the files (by path below the spool) and take them in."""
        for path, content in files.items():
            file = self.root / "spool" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        self.look()
        if seal:
            self.writer.seal()
        self.writer.export_quarantine()

    def look(self) -> None:
        """Take in what is there now."""
        self.writer.scan()
        for path in (self.root / "spool").rglob("*.jsonl"):  # by this clock they are years old, so no scan looks at all
            self.writer.tailer.look(os.fsencode(path.relative_to(self.root / "spool")))
        while self.writer.ingest():
            pass

    def rows(self, dataset: str) -> list[Row]:
        """All rows of a dataset, tail and chunks, with the columns that only piper sees."""
        query = self.writer.relations.relation_sql(self.writer.store.con, f"silver_{dataset}", None)
        result = self.writer.store.con.execute(query)
        names = [column[0] for column in result.description]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def quarantined(self) -> list[Row]:
        """The records of all quarantine files."""
        files = sorted((self.root / "data" / "quarantine" / "invalid_jsonl").glob("*/*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]


@contextmanager
def spool_run(root: Path, **settings: str) -> Iterator[SpoolRun]:
    """A run in a folder, empty or of an earlier run; settings as in PRIVACY__MASK_USERS="true"."""
    given = {
        "PATHS__RAW_ROOT": str(root / "spool"),
        "PATHS__DATA_ROOT": str(root / "data"),
        "DUCKDB__THREADS": "2",
        **settings,
    }
    (root / "spool").mkdir(parents=True, exist_ok=True)
    loaded = load_settings(env={f"PIPER_{name}": value for name, value in given.items()})
    run = SpoolRun(root, loaded.settings)
    try:
        yield run
    finally:
        run.writer.close()


def expected(files: Mapping[str, bytes]) -> tuple[dict[str, list[Row]], list[Row]]:
    """By the reference: the rows of every dataset, and the quarantined lines (source, reason, field). Files are read in
    the order given; of several events with one id the first counts."""
    rows: dict[str, list[Row]] = {name: [] for name in DATASETS}
    rejected: list[Row] = []
    known: set[str] = set()
    for path, content in files.items():
        for offset, number, line in reference.split_lines(content):
            verdict = reference.judge(line, NOW)
            source = {"source_file": path, "source_offset": offset, "source_line": number}
            if isinstance(verdict, reference.Rejected):
                rejected.append({**source, "reason": verdict.reason, "field": verdict.field or None})
            elif verdict is not None and verdict.event["event_id"] not in known:
                known.add(verdict.event["event_id"])
                _add(rows, verdict, source)
    return rows, rejected


def _add(rows: dict[str, list[Row]], verdict: reference.Accepted, source: Row) -> None:
    internal = {"is_known_type": verdict.event["event_type"] in raw.REGISTRY, "violates": verdict.violates}
    rows["events"].append({**verdict.event, **source, **internal, "ingested_at_utc": NOW})
    if verdict.dataset:
        rows[verdict.dataset].append(verdict.row)


def comparable(dataset: str, row: Row) -> Row:
    """A stored row as the reference spells it."""
    row = {
        name: value.replace(reference.DEEP, reference.STAND_IN) if isinstance(value, str) else value
        for name, value in row.items()
        if name != "commit_seq"
    }
    if dataset == "events":
        row["violates"] = row.pop("contract_violation") is not None
        row["payload"] = reference.canonical(row["payload"])
        row["metrics"] = reference.canonical(row["metrics"])
    return row


def check_agreement(run: SpoolRun, files: Mapping[str, bytes]) -> None:
    """Silver and quarantine of `run`, which took in `files`, hold exactly what the reference says."""
    rows, rejected = expected(files)
    given = [{name: record[name] for name in REJECTION_COLUMNS} for record in run.quarantined()]
    problems = list(_differences(given, rejected, ("source_file", "source_offset"), files))
    for dataset, wanted in rows.items():
        stored = [comparable(dataset, row) for row in run.rows(dataset)]
        problems += [f"{dataset}: {problem}" for problem in _differences(stored, wanted, ("event_id",), files)]
    assert not problems, "\n".join([f"{len(problems)} differences (given, expected):", *problems[:SHOWN]])


REJECTION_COLUMNS = ("source_file", "source_offset", "source_line", "reason", "field")
SHOWN = 12


def _differences(
    given: list[Row], wanted: list[Row], key: tuple[str, ...], files: Mapping[str, bytes]
) -> Iterator[str]:
    left, right = ({tuple(row[name] for name in key): row for row in rows} for rows in (given, wanted))
    if len(left) != len(given):
        yield f"{len(given) - len(left)} rows are there twice"
    for at in sorted(left.keys() | right.keys(), key=str):
        one, other = left.get(at, {}), right.get(at, {})
        names = [name for name in one.keys() | other.keys() if repr(one.get(name)) != repr(other.get(name))]
        if names:
            values = {name: (one.get(name), other.get(name)) for name in names}
            yield f"{at}: {values} of {_line(files, one or other)!r}"[:900]


def _line(files: Mapping[str, bytes], row: Row) -> bytes:
    return files[row["source_file"]][row["source_offset"] :].split(b"\n")[0] if "source_file" in row else b""
