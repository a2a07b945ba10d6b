"""A data root of its own over a simulated spool: a writer here or in a process that dies, and what readers see."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import duckdb

import piper
from piper.backfill.replay import Replay
from piper.backfill.run import Backfill
from piper.backfill.scope import Scope
from piper.demo.simulate import SimulateOptions, simulate
from piper.duties import merge_keys
from piper.events.registry import EVENT_TYPES
from piper.layout import Layout
from piper.ops.metrics import Metrics
from piper.ops.rejected import Only
from piper.privacy import clean_up, rewrite_history
from piper.repair import Repair
from piper.retention import prune
from piper.settings import Settings
from piper.settings_sources import load_settings
from piper.silver.datasets import DATASETS
from piper.silver.hidden import forget_hidden
from piper.silver.rewrite import Rewrite, partitions
from piper.upkeep import Hands
from piper.writer import Clock, Writer

CHILD = Path(__file__).with_name("writer_child.py")
KILLED = -9
FEW_KEYS = 50
"""So many keys are a full table, and twice as many the largest run of the first size, in the steps of keys."""


@dataclass
class Written:
    """What simulations wrote in total."""

    valid: int = 0
    duplicates: int = 0
    malformed: int = 0


class Ground:
    """`raw` and `data` below one folder."""

    def __init__(self, root: Path) -> None:
        self.raw, self.data = root / "raw", root / "it's data"
        self.raw.mkdir(parents=True, exist_ok=True)
        self.written = Written()
        self._seed = 0

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PIPER_PATHS__RAW_ROOT": str(self.raw),
            "PIPER_PATHS__DATA_ROOT": str(self.data),
            "PIPER_DUCKDB__THREADS": "1",
        }

    @property
    def settings(self) -> Settings:
        return load_settings(env=self.environment).settings

    @property
    def layout(self) -> Layout:
        return Layout.of(self.settings)

    def simulate(self, events: int, *, days: int = 2) -> None:
        """Append new files with so many events of the last days, and some repeated and some broken lines."""
        self._seed += 1
        done = simulate(
            SimulateOptions(
                root=self.raw,
                hosts=2,
                users=1,
                rate=0,
                events=events,
                days=days,
                seed=self._seed,
                malformed_ratio=0.02,
                duplicate_ratio=0.02,
            )
        )
        self.written.valid += done.valid
        self.written.duplicates += done.duplicates
        self.written.malformed += done.malformed
        if events >= 100 and not done.malformed:  # chance alone would leave out one run in some hundreds
            newest = max(self.raw.rglob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
            with newest.open("ab") as stream:
                stream.write(b'{"event_id": 7,\n')
            self.written.malformed += 1

    @contextmanager
    def writer(self, clock: Clock | None = None) -> Iterator[Writer]:
        opened = Writer.open(self.settings, Metrics(), command="test", clock=clock)
        try:
            yield opened
        finally:
            opened.close()

    def run(self, *steps: str) -> None:
        """Do these steps of writer_child.py in this process."""
        with self.writer() as writer:
            for step in steps:
                STEPS[step](writer)

    def die_at(self, failpoint: str, *steps: str) -> int:
        """Do them in a process that is killed at `failpoint`; returns its exit status."""
        child = self.child(*steps, PIPER_FAILPOINT=failpoint)
        child.communicate()
        return child.returncode

    def child(self, *steps: str, **environment: str) -> subprocess.Popen[str]:
        env = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": os.pathsep.join([str(Path(piper.__file__).parents[1]), str(CHILD.parents[2])]),
            **self.environment,
            **environment,
        }
        return subprocess.Popen(
            [sys.executable, str(CHILD), *steps],
            env=env, cwd=self.raw.parent, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def piper_json(self, *arguments: str, **environment: str) -> dict[str, Any]:
        """What `piper … --json` says over this data root."""
        with self.piper_process(*arguments, "--json", **environment) as process:
            out, err = process.communicate()
        assert process.returncode == 0, err + out
        answer = json.loads(out)
        assert isinstance(answer, dict)
        return answer

    def piper_process(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """`piper …` over this data root."""
        source = str(Path(piper.__file__).parents[1])
        return subprocess.Popen(
            [sys.executable, "-m", "piper", *arguments],
            env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": source, **self.environment, **environment},
            cwd=self.raw.parent, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    # ---- what readers see ------------------------------------------------------------------------------------------

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with duckdb.connect(str(self.layout.catalog), read_only=True) as reader:
            return reader.execute(sql).fetchall()

    def seen(self) -> tuple[int, int]:
        """(rows, distinct events) of silver_events."""
        rows, events = self.query("SELECT count(*), count(DISTINCT event_id) FROM silver_events")[0]
        return rows, events

    def quarantine_records(self) -> list[dict[str, Any]]:
        files = sorted(self.layout.quarantine.glob("*/*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]

    def set_raw_aside(self) -> None:
        self.raw.rename(self.raw.with_name("raw gone"))
        self.raw.mkdir()

    def bring_raw_back(self) -> None:
        self.raw.rmdir()
        self.raw.with_name("raw gone").rename(self.raw)

    def remove_raw(self) -> None:
        shutil.rmtree(self.raw)
        self.raw.mkdir()


def check_datasets(ground: Ground) -> None:
    """Every event once in silver_events, and once in the view of its dataset, which holds nothing else."""
    rows, events = ground.seen()
    assert rows == events
    for dataset in DATASETS.values():
        if dataset.has_type_partition:
            continue
        types = ", ".join(f"'{entry.name}'" for entry in EVENT_TYPES.values() if entry.dataset == dataset.name)
        differing = ground.query(
            f"""SELECT * FROM (SELECT event_id, occurred_at_utc, status, error_code FROM {dataset.view})
            EXCEPT ALL
            SELECT event_id, occurred_at_utc, status, error_code FROM silver_events WHERE event_type IN ({types})
            UNION ALL
            (SELECT event_id, occurred_at_utc, status, error_code FROM silver_events WHERE event_type IN ({types})
            EXCEPT ALL
            SELECT event_id, occurred_at_utc, status, error_code FROM {dataset.view})"""
        )
        assert differing == [], dataset.name


def check_quarantine(ground: Ground) -> None:
    """Every broken line once, in the files and in the manifest's counts."""
    places = Counter((r["source_file"], r["source_offset"]) for r in ground.quarantine_records())
    assert len(places) == ground.written.malformed
    assert set(places.values()) <= {1}


def check_all(ground: Ground) -> None:
    """What an undisturbed run over the same spool gives."""
    assert ground.seen() == (ground.written.valid, ground.written.valid)
    check_datasets(ground)
    check_quarantine(ground)


def check_gold(ground: Ground) -> None:
    """Gold's totals against the spool's: of events and quarantined lines."""
    totals = ground.query("SELECT sum(total_events), sum(quarantined_lines) FROM gold_data_quality_daily")[0]
    assert totals == (ground.written.valid, ground.written.malformed)


def ingest(writer: Writer) -> None:
    writer.scan()
    while writer.ingest():
        pass


def rewrite(writer: Writer) -> None:
    """Every partition's chunks become one."""
    con = writer.store.con
    under_way = Rewrite.begin(writer.store, con)
    for partition in partitions(con):
        under_way.replace(con, partition)
    under_way.commit(now=writer.clock.now())


def forget(writer: Writer) -> None:
    """Delete what rewrites have hidden, however lately."""
    published = writer.store.progress().commit_seq
    forget_hidden(writer.store, published_seq=published, now=writer.clock.now(), after=timedelta(0))


def mask(writer: Writer) -> None:
    """All that a change of privacy.mask_users asks for, without waiting for readers."""
    hands = Hands(writer)
    rewrite_history(hands, core_share=1.0)
    hands.put_down()
    writer.publish()
    writer.refresh_gold(hands.con)
    clean_up(hands)
    clean_up(hands, grace=timedelta(0))
    writer.publish()
    hands.close()


def backfill(writer: Writer) -> None:
    """Every day, or what a run that died has left of them."""
    with closing(Hands(writer)) as hands:
        run = Backfill(is_live=False)
        run.begin(hands, Scope())
        while run.step(hands) is not None:
            pass


def replay(writer: Writer) -> None:
    """All of quarantine."""
    with closing(Hands(writer)) as hands:
        run = Replay(Only())
        while run.step(hands):
            pass


def prune_now(writer: Writer) -> None:
    """What the retention settings say."""
    with closing(Hands(writer)) as hands:
        prune(hands, writer.settings.retention)


def spill(writer: Writer) -> None:
    """Move keys to runs, as if FEW_KEYS were as many as the table may hold."""
    with patch("piper.silver.keys.SPILL_KEYS", FEW_KEYS):
        while writer.store.keys.spill_if_full(writer.store.prepared):
            pass


def merge(writer: Writer) -> None:
    """Merge such runs as upkeep does."""
    with patch("piper.silver.keys.SPILL_KEYS", FEW_KEYS), closing(Hands(writer)) as hands:
        while merge_keys(hands):
            pass


def repair(writer: Writer) -> None:
    """Repair what is broken, or go on with a repair that died."""
    with closing(Hands(writer)) as hands:
        run = Repair(is_live=False)
        run.begin(hands)
        while run.step(hands) is not None:
            pass


def hold(_writer: Writer) -> None:
    sys.stdout.write("holding\n")
    sys.stdout.flush()
    sys.stdin.readline()


STEPS = {
    "ingest": ingest,
    "seal": lambda writer: writer.seal(),
    "publish": lambda writer: writer.publish(),
    "export": lambda writer: writer.export_quarantine(),
    "gold": lambda writer: writer.refresh_gold(writer.store.con),
    "rewrite": rewrite,
    "forget": forget,
    "mask": mask,
    "backfill": backfill,
    "replay": replay,
    "prune": prune_now,
    "spill": spill,
    "merge": merge,
    "repair": repair,
    "hold": hold,
}
ALL_STEPS = ("ingest", "publish", "export", "gold", "seal", "publish")
"""Everything that a writer does, in an order that it may have."""
