"""Opening a data root: who may, who is told why not, and what readers find in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest
from tests.support.ground import ALL_STEPS, KILLED, Ground, check_all, check_gold, ingest

from piper.errors import DataRootError, ManifestDamagedError, ManifestNewerError, PiperError
from piper.gold.models import load_models
from piper.publish.snapshots import GENERATION_SECONDS
from piper.silver.datasets import DATASETS
from piper.silver.store import Store

NOBODY = 65534


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


@contextmanager
def mounted(target: Path, *options: str) -> Iterator[None]:
    """Something mounted at `target`; skips where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    target.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *options, str(target)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(target)], check=True)


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """Every file below `root` with its inode and its size."""
    return {
        str(path.relative_to(root)): (path.stat().st_ino, path.stat().st_size)
        for path in root.rglob("*")
        if path.is_file()
    }


def test_the_second_writer_is_told_who_holds_it_and_leaves_no_trace(ground: Ground) -> None:
    ground.simulate(20)
    first = ground.child("ingest", "publish", "hold")
    try:
        assert first.stdout is not None
        while "holding" not in first.stdout.readline():
            assert first.poll() is None
        before = tree(ground.data)
        second = ground.child("ingest", "publish")
        said = second.communicate()[0]
        assert second.returncode == 1
        assert "WriterLockedError" in said
        assert "piper test" in said
        assert f"PID {first.pid}" in said
        assert tree(ground.data) == before
    finally:
        first.communicate("\n")
    assert first.returncode == 0
    assert not ground.layout.writer_file.exists()
    ground.run(*ALL_STEPS)
    check_all(ground)


def test_a_killed_holder_is_not_waited_for(ground: Ground) -> None:
    ground.simulate(20)
    assert ground.die_at("commit.committed", "ingest") == KILLED
    assert ground.layout.writer_file.exists()
    ground.run(*ALL_STEPS)
    check_all(ground)


def test_a_manifest_of_a_newer_version_is_refused_untouched(ground: Ground) -> None:
    ground.run()
    with duckdb.connect(str(ground.layout.manifest)) as con:
        con.execute("UPDATE manifest_meta SET value = '2000' WHERE key = 'schema_version'")
    before = tree(ground.data)
    with pytest.raises(ManifestNewerError, match="schema version 2000"):
        Store.open(ground.settings, command="test")
    assert tree(ground.data) == before


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def scramble_blocks(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for start in range(12_288, len(data), 4096):
        data[start : start + 16] = b"\xa5" * 16
    path.write_bytes(data)


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(b"garbage" * 1000),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        truncate,
        scramble_blocks,
    ],
    ids=["garbage", "empty", "missing", "truncated", "scrambled"],
)
def test_a_damaged_or_lost_manifest_is_refused_and_the_way_out_is_named(ground: Ground, harm: object) -> None:
    ground.simulate(50)
    ground.run(*ALL_STEPS)
    assert callable(harm)
    harm(ground.layout.manifest)
    with pytest.raises(ManifestDamagedError, match="piper rebuild"):
        ground.run("ingest")
    assert ground.seen() == (50, 50)


def test_a_manifest_from_a_backup_is_refused(ground: Ground) -> None:
    ground.simulate(50)
    ground.run(*ALL_STEPS)
    backup = shutil.copy(ground.layout.manifest, ground.raw.parent / "backup")
    ground.simulate(50)
    ground.run(*ALL_STEPS)
    shutil.copy(backup, ground.layout.manifest)
    with pytest.raises(ManifestDamagedError, match="backup"):
        ground.run("ingest")


def test_a_data_root_without_its_silver_is_refused_until_it_is_mounted_again(ground: Ground) -> None:
    """The manifest is at hand, as one on a local disk is."""
    ground.simulate(50)
    ground.run(*ALL_STEPS)
    elsewhere = ground.layout.silver.rename(ground.raw.with_name("not mounted"))
    ground.simulate(50)
    with pytest.raises(DataRootError, match=r"silver is missing(?s:.*)mounted"):
        ground.run(*ALL_STEPS)
    assert not ground.layout.silver.exists()
    elsewhere.rename(ground.layout.silver)
    ground.run(*ALL_STEPS)
    check_all(ground)


def test_a_log_without_its_manifest_is_refused(ground: Ground) -> None:
    ground.simulate(5)
    assert ground.die_at("commit.committed", "ingest") == KILLED
    ground.layout.manifest.unlink()
    with pytest.raises(ManifestDamagedError, match="log"):
        ground.run()
    assert not ground.layout.manifest.exists()


def test_a_death_while_a_directory_was_tested_is_no_obstacle(ground: Ground) -> None:
    ground.run()
    (ground.layout.staging / ".probe-host-1").write_bytes(b"piper")
    ground.run()
    assert list(ground.layout.staging.iterdir()) == []


def test_a_data_root_that_cannot_be_written_is_said_and_nothing_is_made(ground: Ground) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    ground.data.mkdir(mode=0o755)
    child = ground.child("ingest", TEST_UID=str(NOBODY))
    said = child.communicate()[0]
    assert child.returncode == 1
    assert "DataRootError" in said
    assert str(ground.data) in said
    assert list(ground.data.iterdir()) == []


def test_a_full_disk_at_the_start_is_said(ground: Ground) -> None:
    with (
        mounted(ground.data, "-t", "tmpfs", "-o", "size=128k", "none"),
        pytest.raises(DataRootError, match="No space left"),
    ):
        ground.run()


def fill_up(ground: Ground, ballast: Path, room: int) -> None:
    """Do everything that a writer does, with so many bytes left on the disk."""
    with ground.writer() as writer:
        with ballast.open("wb", buffering=0) as stream:
            stream.write(b"\0" * (shutil.disk_usage(ground.data).free - room))
        ingest(writer)
        writer.seal()
        writer.publish()
        writer.export_quarantine()
        writer.refresh_gold(writer.store.con)


def test_a_disk_that_fills_up_costs_an_error_and_no_event(ground: Ground) -> None:
    """A little more room at each turn, until a turn has enough: the disk is full at one step after the other."""
    failures = 0
    with mounted(ground.data, "-t", "tmpfs", "-o", "size=64m", "none"):
        ground.simulate(300)
        ground.run("ingest", "publish", "export")
        ballast = ground.data / "ballast"
        for room_kib in range(200, 20_000, 1000):
            ground.simulate(1000)
            try:
                fill_up(ground, ballast, room_kib * 1024)
            except (PiperError, duckdb.Error, OSError):
                failures += 1
            else:
                break
            finally:
                ballast.unlink()
            rows, events = ground.seen()
            assert rows == events >= 300
        else:
            pytest.fail("no turn had enough room")
        assert failures >= 3
        ground.run(*ALL_STEPS)
        check_all(ground)
        check_gold(ground)


def test_a_replaced_gold_snapshot_keeps_a_name_for_a_minute(ground: Ground) -> None:
    generations = ground.layout.generations
    ground.run("publish")
    inode = ground.layout.gold.stat().st_ino
    ground.run("publish")
    assert inode in {path.stat().st_ino for path in generations.iterdir()}

    old = time.time_ns() - int((GENERATION_SECONDS + 1) * 1e9)
    for number, path in enumerate(sorted(generations.iterdir())):
        path.rename(generations / f"gold.duckdb.{old + number}")
    ground.run("publish")
    stamps = [int(path.suffix[1:]) for path in generations.iterdir()]
    assert stamps
    assert min(stamps) > old + 1000


def all_views() -> list[str]:
    return [dataset.view for dataset in DATASETS.values()] + [model.name for model in load_models()]


def test_every_view_answers_on_an_empty_warehouse(ground: Ground) -> None:
    ground.run()
    for view in all_views():
        assert ground.query(f"SELECT * FROM {view}") == []
        described = ground.query(f"DESCRIBE {view}")
        assert "NULL" not in {row[1] for row in described}


def test_a_catalog_that_may_only_be_read_is_enough(ground: Ground) -> None:
    ground.simulate(100)
    ground.run(*ALL_STEPS)
    ground.layout.catalog.chmod(0o444)
    ground.layout.warehouse.chmod(0o555)
    try:
        assert ground.seen() == (100, 100)
        check_gold(ground)
    finally:
        ground.layout.warehouse.chmod(0o755)


def test_a_reader_on_a_read_only_mount_sees_what_is_published_while_it_is_connected(ground: Ground) -> None:
    ground.simulate(100)
    ground.run(*ALL_STEPS)
    with mounted(ground.layout.warehouse, "-o", "bind", str(ground.layout.warehouse)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(ground.layout.warehouse)], check=True)
        for view in all_views():
            ground.query(f"SELECT count(*) FROM {view}")
        assert ground.seen() == (100, 100)
        with pytest.raises(DataRootError, match=r"warehouse"):
            ground.run("ingest")
    ground.simulate(50)
    ground.run(*ALL_STEPS)
    check_all(ground)
