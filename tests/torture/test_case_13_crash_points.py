"""Case 13: a death between any two steps, of commit, seal, publish, gold, compaction, backfill and the others.

For each operation, and each instant with a name that it passes: a process dies there by SIGKILL, the next ones too, at
later instants of the same work, until one lives and finishes it; and all is as if nobody had died. A reader on
DuckDB 1.5.4 is connected the whole time. Every instant alone, from the same ground: `pytest -m minutes tests/torture`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.crashes import OPERATIONS, Stage, assert_same, state_of
from tests.support.failpoints import failpoints_in_source
from tests.support.ground import KILLED
from tests.support.reader_engine import require_reader_site
from tests.support.readers import Reader

TESTS = Path(__file__).parents[1]

DEATHS = {
    "ingest": (
        ("commit.written commit.committed publish.tail.swapped export.appended gold.committed publish.gold.linked"
        " seal.staged:3 commit.committed reveal.moved:2"),
    ),
    "keys": ("keys.written keys.renamed keys.committed keys.merged keys.switched",),
    "repair": ("repair.dropped backfill.applied repair.completed",),
    "upgrade": ("catalog.filled catalog.swapped",),
}  # fmt: skip
"""By operation: where the process dies; where the ones after it die, one after the other, before one lives.

Operations whose own tests (compaction, backfill, retention, masking) have deaths as well are in FULL alone.
"""
FULL = {
    "ingest": (
        ("commit.written commit.committed publish.tail.written publish.tail.swapped export.appended export.noted"
        " gold.computed gold.committed publish.gold.copied publish.gold.written publish.gold.linked"
        " publish.gold.swapped seal.copied seal.staged:3 commit.staged commit.committed reveal.moved:2 reveal.synced"),
    ),
    "keys": ("keys.written:2 keys.removed:2",),
    "compaction": ("rewrite.staged:4 rewrite.entered rewrite.committed reveal.moved:3 reveal.synced",),
    "forgetting": ("rewrite.parked:3 rewrite.deleted:3 rewrite.forgotten",),
    "backfill": (
        ("backfill.planned backfill.read backfill.compared:2 rewrite.staged:2 rewrite.entered rewrite.committed"
        " reveal.moved backfill.applied release.purged release.noted backfill.finished"),
    ),
    "repair": ("repair.set_aside repair.dropped backfill.read backfill.applied repair.completed",),
    "prune": ("prune.kept rewrite.committed prune.deleted",),
}  # fmt: skip
"""The same, through every instant."""
ALONE = {
    "ingest": (
        "commit.written", "commit.committed", "commit.written:2", "commit.staged", "commit.committed:2",
        "commit.revealed", "seal.copied", "seal.staged:3", "reveal.moved:5", "reveal.synced",
        "publish.tail.written:2", "publish.tail.swapped:2",
        "export.appended", "export.noted", "gold.computed:4", "gold.committed", "publish.gold.copied:2",
        "publish.gold.written:2", "publish.gold.linked:2", "publish.gold.swapped:2",
        "commit.committed:2 reveal.moved:2 reveal.synced", "export.appended export.appended export.noted",
    ),
    "large batch": ("seal.staged:7", "commit.written", "commit.committed reveal.moved:2"),
    "keys": (
        "keys.written", "keys.renamed", "keys.committed", "keys.merged", "keys.switched", "keys.removed",
        "keys.removed:4", "commit.committed keys.switched",
    ),
    "compaction": ("rewrite.staged:4", "rewrite.entered", "rewrite.revealed"),
    "forgetting": ("rewrite.parked:3", "rewrite.deleted:3", "rewrite.forgotten"),
    "backfill": (
        "backfill.planned", "backfill.read", "backfill.compared:2", "rewrite.staged:2", "rewrite.entered:2",
        "rewrite.committed:2", "backfill.applied:2", "backfill.finished", "release.purged release.noted",
        "rewrite.committed reveal.moved backfill.applied",
    ),
    "replay": (
        "backfill.compared", "rewrite.entered", "rewrite.committed reveal.moved", "rewrite.revealed",
        "release.purged release.noted",
    ),
    "repair": (
        "repair.set_aside", "repair.dropped", "rewrite.entered", "rewrite.committed", "backfill.compared",
        "rewrite.entered:2", "rewrite.committed:2 reveal.moved", "repair.completed",
    ),
    "prune": ("prune.kept", "rewrite.committed", "rewrite.revealed"),
    "masking": (
        "masking.noted", "masking.named", "masking.sealed", "rewrite.staged:3", "masking.staged",
        "rewrite.committed reveal.moved:2", "masking.gold_copied masking.gold_swapped", "rewrite.deleted:2",
    ),
}  # fmt: skip
"""The same, with a ground to itself for each instant."""
CASES = [pytest.param(name, deaths, id=name) for name, several in DEATHS.items() for deaths in several] + [
    pytest.param(name, deaths, marks=pytest.mark.minutes)
    for deaths_of in (FULL, ALONE)
    for name, several in deaths_of.items()
    for deaths in several
]
MISSED = re.compile("Cannot open file .*: No such file or directory")
NAME = re.compile(r"[a-z]+(?:\.[a-z_]+)+")

Staged = Callable[[str], Stage]


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Staged:
    stages: dict[str, Stage] = {}

    def stage_of(name: str) -> Stage:
        if name not in stages:
            stages[name] = Stage.build(OPERATIONS[name], tmp_path_factory.mktemp(name.replace(" ", "-")))
        return stages[name]

    return stage_of


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("operation", "deaths"), CASES)
def test_case_13_a_death_anywhere_leaves_what_an_undisturbed_run_gives(
    operation: str, deaths: str, staged: Staged
) -> None:
    stage = staged(operation)
    ground, steps = stage.put_back(), stage.operation.steps
    may_shrink = stage.operation.may_shrink
    with Reader(require_reader_site(), ground.layout.catalog, may_shrink=may_shrink) as reader:
        reader.wait_started()
        for failpoint in deaths.split():
            assert ground.die_at(failpoint, *steps) == KILLED, f"{failpoint} is not reached"
            reader.wait_round()
        ground.run(*steps)
        reader.wait_round()
        report = reader.stop()

    problems = [each for each in report["problems"] if stage.operation.waits_for_readers or not MISSED.search(each)]
    assert problems == []
    assert report["version"] == "v1.5.4"
    assert_same(state_of(ground), stage.undisturbed)
    stage.operation.check(ground)
    assert list(ground.layout.staging.iterdir()) == []
    assert not list(ground.layout.state.glob("backfill*")) + list(ground.layout.state.glob("replay*"))
    if operation in {"compaction", "forgetting"}:
        for view, rows in stage.before.items():
            assert report["saw"][view] == [rows], "nothing of it may be seen"
    if operation == "prune":
        for view, rows in stage.before.items():
            assert set(report["saw"][view]) <= {rows, report["counts"][view]}, "all of it at once"


def test_case_13_every_named_instant_of_the_source_is_one_at_which_a_test_dies() -> None:
    named = {name for file in TESTS.rglob("test_*.py") for name in NAME.findall(file.read_text("utf-8"))}
    assert [name for name in failpoints_in_source() if name not in named] == []
