"""With privacy.mask_users on, a keyed hash stands for every user name in silver."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest
from tests.support.odd_lines import dump, full_event
from tests.support.spool_run import spool_run

from piper.events.privacy import load_key, mask
from piper.events.words import SEARCHED_NAMES_MAX
from piper.silver.datasets import DATASETS
from piper.silver.translation import Search
from piper.silver.user_names import name_patterns

NAMES = ("ana.lópez", "bo")


def lines_of(user: str, first: int) -> bytes:
    events = [
        {**full_event("file.open", "flat", f"e{first}"), "host_user": user},
        {**full_event("dcc.launch", "nested", f"e{first + 1}"), "host": {"hostname": "ws1", "user": user}},
    ]
    return "".join(dump(event) + "\n" for event in events).encode()


def test_no_user_name_reaches_silver_and_a_mask_is_stable_over_restarts(tmp_path: Path) -> None:
    found: list[dict[str, str]] = []
    for first, seal in ((0, False), (10, True)):
        with spool_run(tmp_path, PRIVACY__MASK_USERS="true") as run:
            files = {f"ws1/{name}/{first}.jsonl": lines_of(name, first + 2 * n) for n, name in enumerate(NAMES)}
            run.ingest(files, seal=seal)

            rows = {dataset: run.rows(dataset) for dataset in DATASETS}
            assert len(rows["events"]) == 4 + 4 * (first // 10)
            assert not any(name in str(rows) for name in NAMES)
            users = {row["event_id"]: row["host_user"] for row in rows["events"]}
            tools = {row["event_id"]: row["username"] for row in rows["tool_events"]}
            assert users == tools
            assert all(row["source_file"].split("/")[1] == row["host_user"] for row in rows["events"])
            found.append(users)
    assert found[0].items() <= found[1].items()
    assert len({found[1]["e0"], found[1]["e2"]}) == 2
    assert found[1]["e0"] == found[1]["e10"] == found[1]["e11"]


def test_a_batch_without_a_single_event_can_be_masked(tmp_path: Path) -> None:
    with spool_run(tmp_path, PRIVACY__MASK_USERS="true") as run:
        run.ingest({"ws1/ana/a.jsonl": b"not an event\n\n"})

        assert [record["reason"] for record in run.quarantined()] == ["invalid_json"]


def test_the_key_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    key = load_key(tmp_path)

    assert load_key(tmp_path) == key
    assert (tmp_path / "mask.key").stat().st_mode & 0o777 == 0o600


def test_a_mask_depends_on_the_key_and_on_the_name() -> None:
    masks = {mask(name, key) for name in ("ana", "Ana", "bo") for key in (b"1" * 32, b"2" * 32)}

    assert len(masks) == 6
    assert all(text.startswith("user-") and len(text) == 21 for text in masks)


@pytest.mark.parametrize("count", [3, 1000])
def test_names_are_found_however_many_patterns_they_need(count: int) -> None:
    names = [f"name{number}x" for number in range(count)]
    search = Search(name_patterns(names))
    query = f"SELECT {search.hits('t')} FROM (SELECT ? AS t)"

    row = duckdb.execute(query, [" ".join(name.upper() for name in names)]).fetchone()

    assert row is not None
    assert set(row[0]) == {name.upper() for name in names}


def test_whoever_invents_names_cannot_displace_those_that_were_there_before() -> None:
    invented = [f"x{number}" for number in range(SEARCHED_NAMES_MAX)]

    found = [name for pattern in name_patterns(["anna", *invented]) for name in pattern.names]

    assert len(found) == SEARCHED_NAMES_MAX
    assert "anna" in found


def test_a_name_of_any_length_and_kind_is_masked_as_a_whole_user(tmp_path: Path) -> None:
    names = ("--", "n" * 200, "a\x00b", " ", "user")
    with spool_run(tmp_path, PRIVACY__MASK_USERS="true") as run:
        run.ingest({"ws1/ana/a.jsonl": b"".join(lines_of(name, 2 * n) for n, name in enumerate(names))})

        users = {row["host_user"] for row in run.rows("events")}
    assert len(users) == len(names)
    assert all(len(user) == 21 and user.startswith("user-") for user in users)
