"""Doctor's textfile: what node_exporter reads is what doctor found, whole or not at all."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.support.commands import Place

from piper.errors import PiperError
from piper.ops.checks import Check, Level
from piper.ops.textfile import write_textfile

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
CHECKS = [
    Check("spool", Level.PASS, "fine"),
    Check("disk", Level.FAIL, "full", "Make room."),
    Check("lag", Level.WARN, "", "x"),
]


def samples(path: Path) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(path.read_text())
    return {(one.name, one.labels.get("check", "")): one.value for family in families for one in family.samples}


def test_the_textfile_has_every_check_the_worst_level_and_the_time(tmp_path: Path) -> None:
    path = tmp_path / "piper.prom"
    path.write_text("what was there before")
    write_textfile(path, CHECKS, now=1_760_000_000.5)
    assert samples(path) == {
        ("piper_doctor_check_level", "spool"): 0,
        ("piper_doctor_check_level", "disk"): 2,
        ("piper_doctor_check_level", "lag"): 1,
        ("piper_doctor_level", ""): 2,
        ("piper_doctor_last_run_timestamp_seconds", ""): 1_760_000_000.5,
    }
    assert [found.name for found in tmp_path.iterdir()] == ["piper.prom"]


def test_every_metric_of_the_textfile_is_documented_and_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "piper.prom"
    write_textfile(path, CHECKS)
    section = DOCS.read_text("utf-8").split("## Doctor's textfile")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == {name for name, _ in samples(path)}


def test_doctor_writes_it_beside_its_report_and_keeps_its_exit_code(tmp_path: Path) -> None:
    place = Place(tmp_path)
    path = tmp_path / "piper.prom"
    done = place.piper("doctor", "--json", "--textfile", str(path))
    report = json.loads(done.stdout)
    assert done.returncode == samples(path)["piper_doctor_level", ""] == 2
    checks = {check for name, check in samples(path) if name == "piper_doctor_check_level"}
    assert checks == {check["name"] for check in report["checks"]}


@pytest.mark.parametrize(
    ("name", "words"), [("piper.txt", "would be ignored"), ("gone/piper.prom", "cannot be written")]
)
def test_a_textfile_that_nobody_would_read_or_that_cannot_be_written_is_refused(
    tmp_path: Path, name: str, words: str
) -> None:
    with pytest.raises(PiperError, match=words) as caught:
        write_textfile(tmp_path / name, CHECKS)
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []
