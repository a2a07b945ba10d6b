"""privacy.mask_users: names and masks in everything that readers mount, in new rows, in history, and back again."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.ground import KILLED, check_datasets, mask
from tests.support.people import NAMES, NEWCOMER, People, files_with, values_of_readers
from tests.support.reader_engine import require_reader_site

from piper.privacy import rewrite_history
from piper.silver.masking import SEARCH_PAUSE, read_state
from piper.silver.rebuild import forget_recounts, rebuild
from piper.silver.rewrite import partitions
from piper.upkeep import Hands
from piper.writer import Clock

FAILPOINTS = (
    "masking.noted", "masking.named", "masking.sealed", "rewrite.staged:3", "masking.staged", "rewrite.committed",
    "reveal.moved:2", "rewrite.revealed", "masking.gold_copied", "masking.gold_swapped", "rewrite.deleted:2",
)  # fmt: skip
WORDS = [name for name in NAMES if not name.isdigit()]
"""A number is not looked for: it may be one."""
READ = ("ingest", "publish", "export", "gold")


def with_history(ground: People) -> People:
    """Sealed rows and rows of the tail."""
    ground.write_all()
    ground.run(*READ, "seal", "publish")
    ground.write_all()
    ground.run(*READ)
    return ground


@pytest.fixture
def people(tmp_path: Path) -> People:
    return with_history(People(tmp_path / "one"))


@pytest.fixture
def others(tmp_path: Path) -> People:
    """The same spool, for another data root."""
    return People(tmp_path / "two")


def has_names(ground: People) -> bool:
    """Whether readers see any; fails when they see names in some rows and masks in others."""
    users = {row[0] for row in ground.query("SELECT host_user FROM silver_events")}
    masked = {user for user in users if user.startswith("user-")}
    assert masked in (set(), users)
    found = [name for name in WORDS if '"' not in name and name in ground.texts()]
    assert bool(found) != bool(masked), found
    return not masked


def test_after_switching_on_nothing_that_readers_mount_holds_a_name(people: People) -> None:
    site = require_reader_site()
    assert [place for place in files_with(people, NAMES) if place.startswith("warehouse/gold.duckdb")] != []
    people.masks = True
    people.write_all()
    people.run("ingest", "mask")

    assert files_with(people, NAMES) == []
    values = values_of_readers(site, people)
    assert len(values["silver_events"]) == people.query("SELECT count(*) FROM silver_events")[0][0] > 0
    for place, rows in values.items():
        for value in {value for row in rows for value in row if isinstance(value, str)}:
            assert not [name for name in WORDS if name.lower() in value.lower()], place
    check_datasets(people)


def test_history_comes_out_as_new_rows_do(people: People, others: People) -> None:
    (others.layout.state).mkdir(parents=True)
    (others.layout.state / "mask.key").write_bytes((people.layout.state / "mask.key").read_bytes())
    people.masks = others.masks = True
    people.run("mask")
    with_history(others)

    assert people.rows() == others.rows()
    assert not has_names(people)


@pytest.mark.parametrize("between", ["nothing", "rebuild", "new rows"])
def test_masked_and_unmasked_is_as_if_it_had_never_been_masked(people: People, others: People, between: str) -> None:
    with_history(others)
    people.masks = True
    people.run("mask")
    if between == "rebuild":
        lose_manifest(people)
    if between == "new rows":
        people.write_all()
        people.run(*READ, "seal", "mask")
        others.write_all()
        others.run(*READ)
    assert not has_names(people)

    people.masks = False
    people.run("mask")
    assert people.rows() == others.rows()
    gold = "SELECT * FROM gold_storage_growth_weekly ORDER BY ALL"
    assert people.query(gold) == others.query(gold) != []


def lose_manifest(people: People) -> None:
    """All that was in the manifest alone is gone; `state/mask.names` is not."""
    people.layout.manifest.unlink()
    rebuild(people.settings)
    with people.writer() as writer:
        forget_recounts(writer.store)
    people.run(*READ, "mask")


def test_a_change_that_is_taken_back_before_history_followed_leaves_one_form(people: People) -> None:
    before = people.rows()
    people.masks = True
    people.run("ingest", "seal", "publish")
    people.masks = False
    people.run("ingest", "mask")
    assert people.rows() == before
    with people.writer() as writer:
        state = read_state(writer.store.con)
        assert state is not None
        assert state.is_done


def test_readers_see_the_old_form_until_one_tail_switches_them(people: People) -> None:
    people.masks = True
    with people.writer() as writer:
        hands = Hands(writer)
        before = people.rows()
        assert rewrite_history(hands, core_share=1.0)
        assert people.rows() == before
        writer.publish()
        assert not has_names(people)
        assert writer.metrics.registry.get_sample_value("piper_privacy_rewrite_pending") == 1
        hands.close()


@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_a_death_leaves_all_or_nothing_and_the_next_start_goes_on(tmp_path: Path, failpoint: str) -> None:
    people = with_history(People(tmp_path, NAMES[:2]))
    people.masks = True
    assert people.die_at(failpoint, "mask") == KILLED
    has_names(people)
    people.run("publish")
    has_names(people)
    check_datasets(people)
    people.run("ingest", "mask")
    assert not has_names(people)
    assert files_with(people, NAMES) == []
    assert list(people.layout.staging.iterdir()) == []


def test_somebody_who_was_mentioned_before_he_wrote_is_masked_in_history_a_day_later(tmp_path: Path) -> None:
    people = People(tmp_path)
    people.masks = True
    people.write("zorblatt")
    people.write("zorblatt", mentions=NEWCOMER)
    people.run(*READ, "seal", "publish")
    assert files_with(people, [NEWCOMER]) != []  # nobody could know
    people.write(NEWCOMER)
    people.run(*READ, "mask")
    assert NEWCOMER in people.texts()

    later = Clock(utc=lambda: Clock().utc() + SEARCH_PAUSE.total_seconds())
    with people.writer(later) as writer:
        whole = {partition.directory: partition.paths for partition in partitions(writer.store.con)}
        mask(writer)
        after = {partition.directory: partition.paths for partition in partitions(writer.store.con)}
        assert whole != after
        mask(writer)
        assert after == {partition.directory: partition.paths for partition in partitions(writer.store.con)}
    assert NEWCOMER not in people.texts()
    assert files_with(people, [NEWCOMER]) == []


def test_masks_are_the_same_after_the_key_was_lost_for_names_that_come_back(people: People) -> None:
    before = people.rows()
    people.masks = True
    people.run("mask")
    (people.layout.state / "mask.key").unlink()
    people.write_all()
    people.run("ingest", "mask")
    assert files_with(people, NAMES) == []
    assert people.query("SELECT count(DISTINCT host_user) FROM silver_events") == [(2 * len(NAMES),)]
    people.masks = False
    people.run("mask")
    after = {name: [row for row in rows if row in before[name]] for name, rows in people.rows().items()}
    assert after == before


def test_what_names_are_known_is_for_the_owner_only(people: People) -> None:
    people.masks = True
    people.run("mask")
    for file in ("mask.key", "mask.names"):
        assert (people.layout.state / file).stat().st_mode & 0o777 == 0o600
