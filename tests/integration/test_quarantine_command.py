"""`piper quarantine list|show|stats`: every rejected line can be found, while piperd goes on rejecting."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import Place, until
from tests.support.warehouse import quarantine_records, raw_of

from piper.commands.quarantine import moment
from piper.events.quarantine import Reason
from piper.exits import UsageError
from piper.ops.rejected import MEANING

NOW = datetime.fromisoformat("2026-03-20T12:00:00+00:00")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def write(place: Place, host: str, *lines: bytes) -> None:
    folder = place.raw / host / "mia"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "a.jsonl").open("ab") as stream:
        stream.writelines(line + b"\n" for line in lines)


def listed(place: Place, *arguments: str) -> list[dict[str, Any]]:
    return list(place.json("quarantine", "list", "--limit", "0", *arguments)["records"])


def test_each_rejected_line_is_listed_and_shown_and_counted_once(place: Place) -> None:
    written = place.simulate(2000, malformed_ratio=0.02)
    place.json("ingest")
    kept = quarantine_records(place.data)
    records = listed(place)
    assert len({record["id"] for record in records}) == len(records) == written.malformed == len(kept)
    key = ("source_file", "source_offset", "raw_md5", "reason", "field")
    assert [[record[name] for name in key] for record in records] == [[r[name] for name in key] for r in kept[::-1]]
    for record, original in zip(records[:3], kept[::-1], strict=False):
        shown = place.json("quarantine", "show", record["id"])
        assert raw_of(shown) == raw_of(original)
        assert shown["meaning"]
    stats = place.json("quarantine", "stats")
    assert stats["lines"] == written.malformed == sum(stats["reasons"].values()) == sum(stats["days"].values())
    assert stats["reasons"] == place.json("status")["quarantined_by_reason"]
    assert sum(stats["hosts"].values()) == written.malformed
    only = listed(place, "--reason", "invalid_json")
    assert only == [record for record in records if record["reason"] == "invalid_json"]
    assert len(only) == stats["reasons"]["invalid_json"] > 0


def test_it_works_while_piperd_runs_and_sees_what_was_rejected_a_moment_ago(place: Place) -> None:
    write(place, "ws1", b"{broken")
    with place.piperd():
        until(lambda: len(listed(place)) == 1)
        write(place, "ws2", b"[1]", b"\xff\xfe")
        until(lambda: len(listed(place)) == 3)
        stats = place.json("quarantine", "stats")
        assert stats["hosts"] == {"ws2": 2, "ws1": 1}
        assert stats["reasons"] == {"invalid_utf8": 1, "not_an_object": 1, "invalid_json": 1}
        newest = listed(place)[0]
        assert (newest["reason"], newest["source_line"], newest["source_offset"]) == ("invalid_utf8", 2, 4)
        text = place.piper("quarantine", "show", newest["id"]).stdout
    assert "ws2/mia/a.jsonl, line 2, byte 4" in text
    assert "\\xff\\xfe" in text
    assert MEANING[Reason.INVALID_UTF8] in text


def test_a_record_that_is_just_being_written_is_no_record_yet(place: Place) -> None:
    write(place, "ws1", b"{1", b"{2")
    place.json("ingest")
    (file,) = place.layout.quarantine.glob("*/*.jsonl")
    file.write_bytes(file.read_bytes() + file.read_bytes()[:70])
    assert len(listed(place)) == 2
    assert place.json("quarantine", "stats")["lines"] == 2


def test_the_list_for_people_is_short_and_steers_no_terminal(place: Place) -> None:
    write(place, "ws1", *(b"\x1b[2J%d" % number for number in range(30)))
    place.json("ingest")
    lines = place.piper("quarantine", "list").stdout.splitlines()
    assert len(lines) == 21
    assert "ws1/mia/a.jsonl:30  ·[2J29" in lines[0]
    assert "--limit 0" in lines[-1]
    assert "no such line" in place.piper("quarantine", "list", "--reason", "clock_skew").stdout
    assert "30  invalid_json" in place.piper("quarantine", "stats").stdout


def test_the_beginning_of_an_id_is_enough_unless_two_begin_so(place: Place) -> None:
    write(place, "ws1", *(b"{%d" % number for number in range(40)))
    place.json("ingest")
    ids = [record["id"] for record in listed(place)]
    shortest = next(i for i in ids if sum(other[:4] == i[:4] for other in ids) == 1)
    assert place.json("quarantine", "show", shortest[:4])["id"] == shortest
    many = place.piper("quarantine", "show", "")
    assert many.returncode == 1
    assert "40 records" in many.stderr
    none = place.piper("quarantine", "show", "zzz", "--json")
    assert none.returncode == 1
    assert "piper quarantine list" in json.loads(none.stdout)["error"]["hint"]


def test_what_does_not_exist_is_a_usage_error_with_the_choices(place: Place) -> None:
    place.json("init")
    done = place.piper("quarantine", "list", "--reason", "bad_json")
    assert done.returncode == 2
    assert all(reason in done.stderr for reason in Reason)
    assert place.piper("quarantine", "stats", "--since", "yesterday").returncode == 2
    assert listed(place) == []
    assert place.json("quarantine", "stats")["lines"] == 0


def test_every_reason_is_explained() -> None:
    assert set(MEANING) == set(Reason)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31", "2026-01-31T00:00:00"),
        ("2026-01-31T10:00+02:00", "2026-01-31T08:00:00"),
        ("36h", "2026-03-19T00:00:00"),
        ("7d", "2026-03-13T12:00:00"),
    ],
)
def test_since_takes_dates_and_spans(text: str, expected: str) -> None:
    assert moment(text, NOW).isoformat() == expected


@pytest.mark.parametrize("text", ["", "7", "7w", "31.1.2026", "2026-02-30"])
def test_since_refuses_what_it_does_not_know(text: str) -> None:
    with pytest.raises(UsageError):
        moment(text, NOW)


def test_since_leaves_out_what_was_rejected_earlier(place: Place) -> None:
    write(place, "ws1", b"{1")
    place.json("ingest")
    (file,) = place.layout.quarantine.glob("*/*.jsonl")
    record = json.loads(file.read_bytes())
    old = place.layout.quarantine / "2020-01-02" / "invalid-0001.jsonl"
    old.parent.mkdir()
    old.write_text(json.dumps({**record, "quarantined_at_utc": "2020-01-02T23:00:00.000Z", "source_offset": 9}) + "\n")
    assert len(listed(place)) == 2
    assert len(listed(place, "--since", "1d")) == 1
    assert len(listed(place, "--since", "2020-01-02")) == 2
    assert len(listed(place, "--since", "2020-01-02T23:30")) == 1
    assert list(place.json("quarantine", "stats")["days"]) == ["2020-01-02", record["quarantined_at_utc"][:10]]
