"""The final account of bench/soak.py: silver and quarantine, and what must, may and must not be there."""

from __future__ import annotations

import base64
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from bench.soak_writers import EVENT, ID, MALFORMED, Account

from piper.events.registry import EVENT_TYPES
from piper.silver.datasets import DATASETS

SHOWN = 5
GOLD_MODELS = (
    "gold_publish_health_daily",
    "gold_render_health_daily",
    "gold_farm_pressure_daily",
    "gold_tool_reliability_daily",
    "gold_storage_growth_weekly",
    "gold_data_quality_daily",
    "gold_activity_daily",
    "gold_host_activity_daily",
)
"""Those that silver and the manifest's counts alone decide, whenever they are computed."""


@dataclass
class Verdict:
    """Numbers, and every deviation in words."""

    numbers: dict[str, int] = field(default_factory=dict)
    deviations: list[str] = field(default_factory=list)

    def deviate(self, what: str, writer: int, numbers: np.ndarray) -> None:
        """These numbers of a writer are not as they must be."""
        if len(numbers):
            examples = ", ".join(f"w{writer}-{number:08d}" for number in numbers[:SHOWN])
            self.deviations.append(f"{what}: {len(numbers)} numbers, such as {examples}")


def silver_counts(con: duckdb.DuckDBPyConnection, writer: int, numbers: int) -> np.ndarray:
    """How often silver holds each number of a writer."""
    rows = con.execute(
        "SELECT substr(event_id, instr(event_id, '-') + 1)::BIGINT AS n FROM silver_events WHERE event_id LIKE ?",
        [f"w{writer}-%"],
    ).fetchnumpy()["n"]
    return np.bincount(rows, minlength=numbers)


@dataclass
class Quarantine:
    """How often quarantine holds each number of each writer, as a line and as the beginning of one."""

    lines: dict[int, Counter[int]]
    beginnings: dict[int, Counter[int]]
    records: int
    strange: list[str]

    @classmethod
    def read(cls, root: Path, writers: int) -> Quarantine:
        found = cls({n: Counter() for n in range(writers)}, {n: Counter() for n in range(writers)}, 0, [])
        for file in sorted(root.glob("*/*.jsonl")):
            for line in file.read_bytes().splitlines():
                found._add(json.loads(line))
        return found

    def _add(self, record: dict[str, Any]) -> None:
        self.records += 1
        raw = base64.b64decode(record["raw_base64"]) if "raw_base64" in record else str(record["raw_text"]).encode()
        first = ID.search(raw)
        if first is None:
            self.strange.append(json.dumps(record)[:300])
            return
        writer, number = (int(part) for part in first[0][1:].split(b"-"))
        kinds = self.beginnings if record["reason"] == "truncated_line" else self.lines
        kinds[writer][number] += 1


def judge_writer(verdict: Verdict, writer: int, account: Account, silver: np.ndarray, quarantine: Quarantine) -> None:
    """Every number of one writer. `silver`: how often each is there, for all that were used."""
    used = len(silver)
    kind, standing = account.kind[:used], account.standing[:used]
    lost, cut, is_copied = (array[:used] > 0 for array in (account.was_lost, account.was_cut, account.was_copied))
    lines, beginnings = np.zeros(used, np.int64), np.zeros(used, np.int64)
    for counts, found in ((lines, quarantine.lines[writer]), (beginnings, quarantine.beginnings[writer])):
        for number, count in found.items():
            counts[number] += count
    is_event, is_malformed = kind == EVENT, kind == MALFORMED
    must, may = standing > 0, (standing <= 0) & lost
    wrong = {
        "an event that must be in silver is not": is_event & must & (silver == 0),
        "an event is in silver more than once": silver > 1,
        "silver holds what is no event, or was never written whole": (silver > 0) & (~is_event | ~(must | may)),
        "a malformed line that must be in quarantine is not": is_malformed & must & (lines == 0),
        "a malformed line is in quarantine more than once": lines > 1,
        "quarantine holds what is no malformed line": (lines > 0) & (~is_malformed | ~(must | may)),
        "a beginning is in quarantine more than once": (beginnings > 1) & ~is_copied,
        "a beginning is in quarantine that never lost its file": (beginnings > 0) & ~cut,
        "a line is there whole and as a beginning": (beginnings > 0) & ~is_copied & ((silver > 0) | (lines > 0)),
    }
    for what, where in wrong.items():
        verdict.deviate(what, writer, np.flatnonzero(where))
    for name, where in (
        ("numbers", np.ones(used, bool)),
        ("events that must be there", is_event & must),
        ("events that may be there", is_event & may & ~must),
        ("  of them, are there", is_event & may & (silver > 0)),
        ("events in silver", silver > 0),
        ("malformed lines that must be there", is_malformed & must),
        ("malformed lines in quarantine", lines > 0),
        ("beginnings in quarantine", beginnings > 0),
    ):
        verdict.numbers[name] = verdict.numbers.get(name, 0) + int(where.sum())


def judge_datasets(verdict: Verdict, con: duckdb.DuckDBPyConnection) -> None:
    """Every event of a domain type once in the view of its dataset, which holds nothing else."""
    for dataset in DATASETS.values():
        if dataset.has_type_partition:
            continue
        types = ", ".join(f"'{entry.name}'" for entry in EVENT_TYPES.values() if entry.dataset == dataset.name)
        mine, all_events = f"SELECT event_id FROM {dataset.view}", f"FROM silver_events WHERE event_type IN ({types})"
        row = con.execute(
            f"""SELECT (SELECT count(*) FROM ({mine} EXCEPT ALL SELECT event_id {all_events})),
                (SELECT count(*) FROM (SELECT event_id {all_events} EXCEPT ALL {mine}))"""
        ).fetchone()
        if row and any(row):
            verdict.deviations.append(f"{dataset.view} has {row[0]} rows too many and lacks {row[1]}")


def gold_tables(con: duckdb.DuckDBPyConnection) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of the models that silver decides."""
    return {model: sorted(con.execute(f"FROM {model}").fetchall(), key=repr) for model in GOLD_MODELS}


def judge_gold(
    verdict: Verdict,
    before: dict[str, list[tuple[Any, ...]]],
    rebuilt: dict[str, list[tuple[Any, ...]]],
    con: duckdb.DuckDBPyConnection,
    records: int,
) -> None:
    """What refreshes have added up against a computation from all of silver, and the counts of quarantine."""
    for model, rows in rebuilt.items():
        if len(rows) != len(before[model]) or any(
            not _agree(left, right) for left, right in zip(before[model], rows, strict=True)
        ):
            verdict.deviations.append(f"{model} is not what a rebuild gives")
    row = con.execute("SELECT sum(quarantined_lines)::BIGINT FROM gold_data_quality_daily").fetchone()
    if row and (row[0] or 0) != records:
        verdict.deviations.append(f"gold counts {row[0]} quarantined lines, the files hold {records}")


def _agree(left: tuple[Any, ...], right: tuple[Any, ...]) -> bool:
    return all(
        a == b or (isinstance(a, float) and isinstance(b, float) and np.isclose(a, b, rtol=1e-9, equal_nan=True))
        for a, b in zip(left, right, strict=True)
    )
