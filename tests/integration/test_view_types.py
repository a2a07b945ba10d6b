"""What Grafana's DuckDB makes of the views' columns: types that its plugin sends as what they are."""

from __future__ import annotations

from pathlib import Path

from tests.support.commands import Place
from tests.support.reader_engine import READER_VERSION, require_reader_site
from tests.support.readers import Reader
from tests.support.warehouse import GOLD_VIEWS, SILVER_VIEWS

SAFE = {"VARCHAR", "BIGINT", "INTEGER", "DOUBLE", "BOOLEAN", "DATE", "TIMESTAMP"}
"""No HUGEINT (it arrives as text), nothing unsigned, nothing nested, no time zones."""


def test_no_view_has_a_type_that_the_plugin_cannot_send(tmp_path: Path) -> None:
    site = require_reader_site()
    place = Place(tmp_path)
    place.simulate(200)
    place.json("ingest")
    with Reader(site, place.layout.catalog) as reader:
        reader.wait_started()
        report = reader.stop()
    assert report["version"] == f"v{READER_VERSION}"
    assert report["problems"] == []
    assert set(report["types"]) == {*SILVER_VIEWS, *GOLD_VIEWS}
    unsafe = {
        f"{view}.{column}": kind
        for view, columns in report["types"].items()
        for column, kind in columns.items()
        if kind not in SAFE
    }
    assert unsafe == {}
