"""privacy.mask_users as an operator changes it: under piperd with a reader connected, and from cron."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from tests.conftest import MakePiperd
from tests.support.commands import Place
from tests.support.people import NAMES, People, files_with
from tests.support.polling import wait_until
from tests.support.reader_engine import require_reader_site
from tests.support.readers import Reader

FEW = NAMES[:2]


def piper(ground: People, *arguments: str) -> subprocess.CompletedProcess[str]:
    place = Place(ground.raw.parent)
    return place.piper(*arguments, env=place.env | ground.environment)


def privacy(ground: People) -> dict[str, str]:
    done = piper(ground, "doctor", "--json")
    return next(check for check in json.loads(done.stdout)["checks"] if check["name"] == "privacy")


def test_piperd_masks_history_in_the_background_and_no_reader_notices(tmp_path: Path, make_piperd: MakePiperd) -> None:
    ground = People(tmp_path / "ground", FEW)
    ground.write_all()
    ground.run("ingest", "seal", "publish", "gold")
    ground.write_all()
    ground.masks = True
    piperd = make_piperd({"PRIVACY__MASK_USERS": "true"}, raw_root=ground.raw, data_root=ground.data)
    with Reader(require_reader_site(), ground.layout.catalog) as reader:
        reader.wait_started()
        piperd.start_ready()
        wait_until(lambda: ground.seen() == (72, 72) and not named(ground), 120, what=piperd.log_text)
        assert piperd.metric("piper_privacy_rewrite_pending") == 1  # replaced files stay for a minute
        assert privacy(ground)["status"] == "WARN"
        piperd.stop()
        report = reader.stop()
    # In between, what is called after somebody (a host, a show) has two rows a day in gold.
    assert [found for found in report["problems"] if not re.match("gold_.* went back", found)] == []
    assert [event["event"] for event in piperd.log_events() if event.get("level") in {"warning", "error"}] == []


def named(ground: People) -> list[str]:
    return [name for name in ground.names if name in ground.texts()]


def test_a_run_from_cron_masks_history_and_leaves_no_file_with_a_name(tmp_path: Path) -> None:
    ground = People(tmp_path, FEW)
    ground.write_all()
    assert piper(ground, "ingest").returncode == 0
    assert files_with(ground, FEW) != []
    ground.masks = True
    ground.write_all()
    assert piper(ground, "ingest").returncode == 0
    assert files_with(ground, FEW) == []
    assert ground.seen() == (72, 72)
    check = privacy(ground)
    assert (check["status"], check["value"]) == ("PASS", "user names are masked")
