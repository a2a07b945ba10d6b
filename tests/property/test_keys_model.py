"""Keys over random histories of additions, removals, spills, merges and deaths: they equal a Python set."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from piper.errors import ManifestDamagedError
from piper.layout import Layout
from piper.prepared import Prepared
from piper.silver import key_run, keys, schema
from piper.silver.keys import Keys

SPILL = 6
UNIVERSE = [
    *(high << 64 | low for high in (0, 1, 7, 2**63, 2**64 - 1) for low in (0, 1, 2**64 - 1)),  # same upper halves
    *(random.Random(number).getrandbits(128) for number in range(60)),
]
STEPS = ("keys.written", "keys.renamed", "keys.committed", "keys.merged", "keys.switched", "keys.removed")


class Died(Exception):  # noqa: N818 - it is a death, not an error
    """In place of a SIGKILL: nothing after the failpoint is done."""


class Manifest:
    """A manifest with keys only; `die_at` names the failpoint at which it dies."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root, root / "state")
        self.layout.state.mkdir(parents=True)
        self.die_at = ""
        self.open()

    def open(self) -> None:
        self.con = duckdb.connect(str(self.layout.manifest))
        self.con.execute("ATTACH ':memory:' AS work")
        schema.upgrade(self.con)
        self.prepared = Prepared(self.con)
        self.con.execute("CREATE TABLE work.asked (key UHUGEINT)")
        self.keys = Keys(self.layout)
        self.keys.recover(self.con)

    def reopen(self) -> None:
        self.con.close()
        self.open()

    def failpoint(self, name: str) -> None:
        if name == self.die_at:
            raise Died

    def table(self, values: Iterable[int]) -> str:
        self.con.execute("TRUNCATE work.asked")
        self.con.execute("INSERT INTO work.asked SELECT unnest(?::VARCHAR[])::UHUGEINT", [[str(v) for v in values]])
        return "work.asked"

    def add(self, values: Iterable[int]) -> set[int]:
        """As a commit does it; returns which were new."""
        table = self.table(set(values))
        self.keys.drop_known(self.prepared, table)
        new = {key for (key,) in self.con.execute(f"SELECT key FROM {table}").fetchall()}
        self.con.execute("BEGIN")
        self.keys.add(self.prepared, table)
        self.con.execute("COMMIT")
        return new

    def forget(self, values: Iterable[int]) -> set[int]:
        table = self.table(set(values))
        self.con.execute("BEGIN")
        self.keys.forget(self.con, table)
        self.con.execute("COMMIT")
        return self._values("gone_keys")

    def known(self) -> set[int]:
        self.keys.find_known(self.con, f"SELECT key FROM {self.table(UNIVERSE)}")
        return self._values("known_keys")

    def _values(self, table: str) -> set[int]:
        values = [key for (key,) in self.con.execute(f"SELECT key FROM {table}").fetchall()]
        assert len(set(values)) == len(values)
        return set(values)


some_keys = st.lists(st.sampled_from(UNIVERSE), max_size=14)
actions = st.one_of(
    st.tuples(st.just("add"), some_keys),
    st.tuples(st.just("forget"), some_keys),
    st.tuples(st.just("merge"), st.none()),
    st.tuples(st.just("merge while they change"), some_keys),
    st.tuples(st.just("reopen"), st.none()),
    st.tuples(st.just("die"), st.sampled_from(STEPS)),
)


@settings(max_examples=12, deadline=None)
@given(history=st.lists(actions, min_size=4, max_size=16))
def test_keys_are_a_set_whatever_happens_to_them(
    history: list[tuple[str, list[int] | str | None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "SPILL_KEYS", SPILL)
        patch.setattr(keys, "MERGE_RUNS", 2)
        patch.setattr(keys, "RUNS_MAX", 5)
        patch.setattr(key_run, "MERGE_BLOCKS", 1)
        manifest, expected = Manifest(tmp_path_factory.mktemp("keys")), set[int]()
        patch.setattr(keys, "failpoint", manifest.failpoint)
        patch.setattr(key_run, "failpoint", manifest.failpoint)
        for action, given_keys in history:
            values = given_keys if isinstance(given_keys, list) else []
            try:
                apply(manifest, action, values, expected)
            except Died:
                manifest.die_at = ""
                manifest.reopen()
            if action == "die":
                manifest.die_at = str(given_keys)
            assert manifest.known() == expected, action
            assert manifest.keys.count(manifest.con) == len(expected)
        manifest.die_at = ""
        manifest.reopen()
        files = {path.name for path in manifest.layout.keys.iterdir()}
        assert files == {name for (name,) in manifest.con.execute("SELECT name FROM key_runs").fetchall()}
        manifest.con.close()


def apply(manifest: Manifest, action: str, values: list[int], expected: set[int]) -> None:
    """Do it to both; a death comes after both have it."""
    if action == "add":
        assert manifest.add(values) == set(values) - expected
        expected |= set(values)
        manifest.keys.spill_if_full(manifest.prepared)
    elif action == "forget":
        assert manifest.forget(values) == set(values) & expected
        expected -= set(values)
    elif action == "merge":
        manifest.keys.merge(manifest.con)
    elif action == "merge while they change":

        def in_writer(step: object) -> None:
            """The writer forgets some keys and meets others again before the merge takes effect."""
            assert callable(step)
            half = len(values) // 2
            expected.difference_update(manifest.forget(values))
            manifest.add(values[:half])
            expected.update(values[:half])
            step(manifest.con)

        manifest.keys.merge(manifest.con, in_writer=in_writer)
    elif action == "reopen":
        manifest.reopen()


def test_a_run_that_is_missing_cut_off_or_altered_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "SPILL_KEYS", 1000)
    manifest = Manifest(tmp_path)
    rng = random.Random(5)
    manifest.add(rng.getrandbits(128) for _ in range(3000))
    assert manifest.keys.spill_if_full(manifest.prepared)
    (run,) = manifest.layout.keys.iterdir()
    whole = run.read_bytes()
    manifest.con.close()
    for damaged in (None, b"", whole[:-100], whole[:-8] + b"12345678", bytes(4096) + whole[4096:]):
        run.unlink(missing_ok=True)
        if damaged is not None:
            run.write_bytes(damaged)
        with pytest.raises(ManifestDamagedError, match=run.name) as refused:
            manifest.open()
        assert "piper rebuild" in (refused.value.hint or "")
        manifest.con.close()
    run.write_bytes(whole[:4096] + bytes(4096) + whole[8192:])
    manifest.open()
    with pytest.raises(ManifestDamagedError, match=run.name):
        manifest.keys.find_known(manifest.con, "SELECT 5::UHUGEINT AS key")
    manifest.con.close()


def test_a_batch_is_found_in_runs_of_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "SPILL_KEYS", 4000)
    manifest = Manifest(tmp_path)
    for part in range(8):
        manifest.con.execute(
            f"CREATE OR REPLACE TABLE work.part AS SELECT md5_number('k' || i) AS key FROM range({part}, 40000, 8) t(i)"
        )
        manifest.keys.add(manifest.prepared, "work.part")
        manifest.keys.spill_if_full(manifest.prepared)
    while manifest.keys.merge(manifest.con):
        pass
    manifest.con.execute(
        "CREATE TABLE work.mixed AS SELECT i, md5_number('k' || i) AS key FROM range(0, 80000, 3) t(i)"
    )
    manifest.keys.drop_known(manifest.prepared, "work.mixed")
    row = manifest.con.execute("SELECT min(i), count(*), (SELECT count(*) FROM event_keys) FROM work.mixed").fetchone()
    assert row == (40002, len(range(40002, 80000, 3)), 0)
    assert len(list(manifest.layout.keys.iterdir())) < 8
    manifest.con.close()
