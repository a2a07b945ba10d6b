"""Operations that are killed at a named instant: a data root that is made once and put back for every death."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
from tests.support import gold_reference
from tests.support.backfills import LONG_LINES, damage, ingested_short
from tests.support.ground import ALL_STEPS, Ground, check_all, check_gold, ingest
from tests.support.people import NAMES, People, files_with
from tests.support.warehouse import GOLD_VIEWS, catalog, gold_rows

from piper.layout import Layout
from piper.silver.datasets import DATASETS, EMPTY_CHUNK
from piper.silver.key_run import Run
from piper.silver.keys import Keys
from piper.silver.rewrite import partitions
from piper.writer import Clock

HISTORY = [view for view in GOLD_VIEWS if view.endswith(("_daily", "_weekly"))]
"""Gold that does not depend on when it is computed."""
SILVER_DAYS = 14
RETENTION = {"PIPER_RETENTION__SILVER_DAYS": str(SILVER_DAYS)}
LONG_AGO_SECONDS = 100 * 86_400
"""Longer than quarantine is kept."""


class Small(Ground):
    """Few rows are many: every batch is sealed as it is committed."""

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"PIPER_INGEST__SEAL_EVENTS_MAX": "50"}


@dataclass(frozen=True)
class Operation:
    """What a process is doing when it dies. `make` gives the ground before it, below a folder."""

    make: Callable[[Path], Ground]
    steps: tuple[str, ...]
    """Done by the process that dies, and by the one that finishes its work."""
    may_shrink: bool = False
    """Readers see rows go away, or change, all at once."""
    waits_for_readers: bool = True
    """Else files are deleted without the time that queries get which have listed them, and one that runs may fail."""
    is_whole: bool = True
    """In the end every valid line of the spool is in silver."""
    check: Callable[[Ground], None] = lambda _ground: None
    """What must hold in the end, besides being as if nobody had died."""


@dataclass
class Stage:
    """The ground of an operation, as often as it is needed, and what an undisturbed run makes of it."""

    operation: Operation
    ground: Ground
    kept: Path
    before: dict[str, int] = field(default_factory=dict)
    undisturbed: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def build(cls, operation: Operation, root: Path) -> Stage:
        """Make the ground, and keep a copy of it; run the operation once without a death."""
        stage = cls(operation, operation.make(root / "ground"), root / "kept")
        shutil.copytree(stage.ground.data, stage.kept, symlinks=True)
        stage.before = row_counts(stage.ground)
        stage.ground.run(*operation.steps)
        if operation.is_whole:
            check_all(stage.ground)
            check_gold(stage.ground)
        stage.undisturbed = state_of(stage.ground)
        with stage.ground.writer() as writer:
            writer.refresh_gold(writer.store.con, rebuild=True)
        assert_gold_same(gold_of(stage.ground), stage.undisturbed["gold"])
        return stage

    def put_back(self) -> Ground:
        """The ground as it was made. The spool is never changed by piper: it stays, and so do its inodes."""
        shutil.rmtree(self.ground.data)
        shutil.copytree(self.kept, self.ground.data, symlinks=True)
        return self.ground


def row_counts(ground: Ground) -> dict[str, int]:
    """Rows of each silver view."""
    return {dataset.view: ground.query(f"SELECT count(*) FROM {dataset.view}")[0][0] for dataset in DATASETS.values()}


def state_of(ground: Ground) -> dict[str, Any]:
    """All that readers see, but for when it came and which of two equal lines came first."""
    when = {"ingested_at_utc", "source_file", "source_offset", "source_line"}
    found: dict[str, Any] = {}
    for dataset in DATASETS.values():
        columns = ", ".join(f'"{name}"' for name, _ in dataset.columns if name not in when)
        found[dataset.view] = ground.query(f"SELECT {columns} FROM {dataset.view} ORDER BY ALL")
    found["gold"] = gold_of(ground)
    places = [(r["source_file"], r["source_offset"], r["reason"]) for r in ground.quarantine_records()]
    assert len(places) == len(set(places)), "a line is in quarantine twice"
    found["quarantine"] = sorted(places)
    with duckdb.connect(str(ground.layout.manifest), read_only=True) as con:
        found["counts"] = con.execute(
            "SELECT reason, sum(lines) FROM quarantine_counts GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        found["keys"] = keys_of(con, ground.layout)
        found["pending"] = con.execute("SELECT count(*) FROM rejections").fetchall()
        found["chunks"] = con.execute("SELECT sum(row_count) FROM chunks").fetchall()
    return found


def keys_of(con: duckdb.DuckDBPyConnection, layout: Layout) -> list[int]:
    """Every key that is known, in ascending order: of the table and of the runs, but those forgotten."""
    names = [name for (name,) in con.execute("SELECT name FROM key_runs").fetchall()]
    assert sorted(path.name for path in layout.keys.iterdir()) == sorted(names), "runs that nobody knows, or none"
    keys = [key for (key,) in con.execute("SELECT key FROM event_keys").fetchall()]
    for run in (Run(layout.keys / name) for name in names):
        run.verify()
        words = run.read(0, run.keys)
        keys += [(high << 64) + low for high, low in zip(words.high.tolist(), words.low.tolist(), strict=True)]
    known = set(keys)
    assert len(keys) == len(known), "a key is in two places"
    forgotten = {key for (key,) in con.execute("SELECT key FROM forgotten_keys").fetchall()}
    assert forgotten <= known
    assert len(known) - len(forgotten) == Keys(layout).count(con)
    return sorted(known - forgotten)


def gold_of(ground: Ground) -> dict[str, list[dict[str, Any]]]:
    """Every row of the gold views that silver decides, without what depends on the time of ingest."""
    with catalog(ground.data) as con:
        found = {view: gold_rows(con, view) for view in HISTORY}
    for row in found["gold_host_activity_daily"]:
        del row["last_event_lag_s"], row["last_ingested_at"]
    return found


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Two states agree; floats of gold in all but their last digits, for sums may be made in another order."""
    assert found.keys() == expected.keys()
    for what, value in expected.items():
        if what == "gold":
            assert_gold_same(found[what], value)
        else:
            assert found[what] == value, what


def assert_gold_same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Two states of gold agree."""
    for view, rows in expected.items():
        assert gold_reference.rows_agree(found[view], rows), view


# ---- the operations --------------------------------------------------------------------------------------------------


def _with_news(ground: Ground) -> Ground:
    """Sealed rows, rows in the tail, and unread lines."""
    ground.simulate(120)
    ground.run(*ALL_STEPS)
    ground.simulate(120)
    ground.run("ingest", "publish", "export", "gold")
    ground.simulate(120)
    return ground


def _several_seals(root: Path) -> Ground:
    ground = Ground(root)
    for _ in range(2):
        ground.simulate(120)
        ground.run(*ALL_STEPS)
    return ground


def _hidden(root: Path) -> Ground:
    ground = _several_seals(root)
    ground.run("rewrite", "publish")
    return ground


def _damaged(root: Path) -> Ground:
    ground = ingested_short(root, events=150)
    damage(ground)
    return ground


def _with_people(root: Path) -> Ground:
    people = People(root, NAMES[:2])
    people.write_all()
    people.run("ingest", "publish", "export", "gold", "seal", "publish")
    people.write_all()
    people.run("ingest", "publish", "export", "gold")
    people.masks = True
    return people


class Short(Ground):
    """Silver keeps two weeks."""

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | RETENTION


def _with_old_days(root: Path) -> Ground:
    ground = Short(root)
    ground.simulate(60)
    with ground.writer(Clock(utc=lambda: time.time() - LONG_AGO_SECONDS)) as writer:
        ingest(writer)
        writer.export_quarantine()
    ground.simulate(200, days=2 * SILVER_DAYS)
    ground.run("ingest", "publish", "export", "seal", "publish", "gold")
    return ground


def _with_key_runs(root: Path) -> Ground:
    """Three runs, keys of the first one forgotten, and unread lines: new ones, and all of before in other files."""
    ground = ingested_short(root, events=60)
    ground.run("spill")
    ground.run("replay")
    for _ in range(2):
        ground.simulate(60)
        ground.run("ingest", "spill")
    ground.run(*ALL_STEPS)
    with duckdb.connect(str(ground.layout.manifest), read_only=True) as con:
        assert con.execute("SELECT count(*) FROM key_runs").fetchall() == [(3,)]
        assert con.execute("SELECT count(*) FROM forgotten_keys").fetchall() == [(LONG_LINES,)]
    ground.simulate(60)
    for file in sorted(ground.raw.rglob("*.jsonl")):
        shutil.copy(file, file.with_name(f"{file.stem}-again.jsonl"))
    ground.written.malformed *= 2
    return ground


def _with_missing_chunks(root: Path) -> Ground:
    ground = _several_seals(root)
    for dataset in ("events", "tool_events"):
        chunks = sorted(
            path for path in (ground.layout.silver / dataset).rglob("*.parquet") if path.name != EMPTY_CHUNK
        )
        chunks[len(chunks) // 2].unlink()
    ground.simulate(60)
    return ground


def _of_an_earlier_version(root: Path) -> Ground:
    """The catalog was made for other views than today's."""
    ground = _several_seals(root)
    (ground.layout.state / "catalog.sha256").write_text("of other views", "ascii")
    return ground


def _check_one_run(ground: Ground) -> None:
    with duckdb.connect(str(ground.layout.manifest), read_only=True) as con:
        assert con.execute("SELECT count(*) FROM key_runs").fetchall() == [(1,)]
        assert con.execute("SELECT count(*) FROM forgotten_keys").fetchall() == [(0,)]


def _check_one_chunk_a_partition(ground: Ground) -> None:
    with ground.writer() as writer:
        assert {len(partition.paths) for partition in partitions(writer.store.con)} == {1}


def _check_masked(ground: Ground) -> None:
    assert files_with(ground, NAMES) == []


OPERATIONS = {
    "ingest": Operation(lambda root: _with_news(Ground(root)), ALL_STEPS),
    "large batch": Operation(lambda root: _with_news(Small(root)), ALL_STEPS),
    "compaction": Operation(_several_seals, ("rewrite", "publish", "gold"), check=_check_one_chunk_a_partition),
    "forgetting": Operation(_hidden, ("forget", "publish"), waits_for_readers=False),
    "backfill": Operation(_damaged, ("backfill", *ALL_STEPS), may_shrink=True),
    "replay": Operation(lambda root: ingested_short(root, events=100), ("replay", *ALL_STEPS)),
    "prune": Operation(_with_old_days, ("prune", "publish", "gold"), may_shrink=True, is_whole=False),
    "masking": Operation(
        _with_people,
        ("ingest", "mask", "gold"),
        may_shrink=True,
        waits_for_readers=False,
        is_whole=False,
        check=_check_masked,
    ),
    "keys": Operation(
        _with_key_runs,
        ("ingest", "spill", "merge", "publish", "export", "gold", "seal", "publish"),
        check=_check_one_run,
    ),
    "repair": Operation(_with_missing_chunks, ("ingest", "repair", *ALL_STEPS), may_shrink=True),
    "upgrade": Operation(_of_an_earlier_version, ("publish",)),
}
