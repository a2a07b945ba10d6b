"""Quarantine files: each rejected line once, whatever dies or is moved."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.support.ground import KILLED, Ground, check_quarantine

from piper.silver import export
from piper.writer import Clock

TODAY = datetime.now(UTC).timestamp()


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


def spool(ground: Ground, *lines: bytes, name: str = "a.jsonl") -> None:
    path = ground.raw / "host" / "user" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        stream.write(b"".join(line + b"\n" for line in lines))


@pytest.mark.parametrize("failpoint", ["export.appended", "export.noted"])
def test_a_death_while_exporting_writes_no_line_twice(ground: Ground, failpoint: str) -> None:
    ground.simulate(500)
    assert ground.die_at(failpoint, "ingest", "export") == KILLED
    ground.simulate(500)
    ground.run("ingest", "export", "publish")
    check_quarantine(ground)


def test_a_record_holds_the_line_its_place_and_the_reason(ground: Ground) -> None:
    spool(ground, b"not json", b"\xff\xfe", b"[1]")
    ground.run("ingest", "export")
    first, second, third = ground.quarantine_records()
    assert (first["reason"], first["raw_text"], first["source_offset"], first["source_line"]) == (
        "invalid_json", "not json", 0, 1,
    )  # fmt: skip
    assert first["source_file"] == "host/user/a.jsonl"
    assert (second["reason"], base64.b64decode(second["raw_base64"])) == ("invalid_utf8", b"\xff\xfe")
    assert "raw_text" not in second
    assert (third["reason"], third["source_offset"], third["source_line"]) == ("not_an_object", 12, 3)


def test_lines_of_two_days_go_to_the_folders_of_their_days(ground: Ground) -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
    for day in range(2):
        spool(ground, b"bad", name=f"{day}.jsonl")
        with ground.writer(Clock(utc=lambda at=noon + day * 86_400: at)) as writer:
            writer.scan()
            writer.ingest()
    ground.run("export")
    found = [str(path.relative_to(ground.layout.quarantine)) for path in sorted(ground.layout.quarantine.glob("*/*"))]
    assert found == ["2026-03-01/invalid-0001.jsonl", "2026-03-02/invalid-0001.jsonl"]


def test_a_file_that_somebody_moved_is_not_missed_and_none_is_overwritten(ground: Ground) -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
    folder = ground.layout.quarantine / "2026-03-01"

    def quarantine(line: bytes) -> None:
        spool(ground, line)
        with ground.writer(Clock(utc=lambda: noon)) as writer:
            writer.scan()
            writer.ingest()
            writer.export_quarantine()

    quarantine(b"one")
    (folder / "invalid-0001.jsonl").rename(ground.raw.parent / "moved")
    quarantine(b"two")
    quarantine(b"three")
    lines = [json.loads(line)["raw_text"] for line in (folder / "invalid-0002.jsonl").read_bytes().splitlines()]
    assert lines == ["two", "three"]
    assert [path.name for path in folder.iterdir()] == ["invalid-0002.jsonl"]


def test_a_full_file_is_followed_by_the_next_number(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "FILE_BYTES_MAX", 1)
    monkeypatch.setattr(export, "ROWS_PER_STEP", 1)
    with ground.writer(Clock(utc=lambda: TODAY)) as writer:
        for number in range(12):
            spool(ground, b"bad %d" % number)
        writer.scan()
        writer.ingest()
        assert writer.export_quarantine() == 12
    files = sorted(ground.layout.quarantine.glob("*/*.jsonl"))
    assert [file.name for file in files] == [f"invalid-{number:04d}.jsonl" for number in range(1, 13)]
    assert len({record["source_offset"] for record in ground.quarantine_records()}) == 12
