"""Torture cases 16, 17 and 22, and what else somebody who can write to the spool may put into it.

Each line is a row or a quarantine entry at its right offset, and the writer goes on to the next one.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.support.odd_lines import dump, full_event
from tests.support.parse_reference import DEEP
from tests.support.spool import Spool
from tests.support.spool_run import SpoolRun, spool_run

from piper.spool.tail import SLICE_LINES_MAX, Batch
from piper.spool.turn import SAMPLE_BYTES

FILE = "ws1/ana/a.jsonl"
MIB = 1024 * 1024


def line(event_id: str, **fields: Any) -> bytes:
    return dump({**full_event("file.open", "nested", event_id), **fields}).encode() + b"\n"


def ids(run: SpoolRun) -> set[str]:
    return {row["event_id"] for row in run.rows("events")}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---- case 16: very long lines ----------------------------------------------------------------------------------------


def write_long_lines(path: Path, sizes: list[int]) -> list[int]:
    """A long line and a good one for each size, without a hole; returns the offsets of the long ones."""
    path.parent.mkdir(parents=True)
    offsets: list[int] = []
    with path.open("wb") as stream:
        for number, size in enumerate(sizes):
            offsets.append(stream.tell())
            for start in range(0, size, MIB):
                stream.write(b"x" * min(MIB, size - start))
            stream.write(b"\n" + line(f"after-{number}"))
    return offsets


@pytest.mark.parametrize("sizes", [[5 * MIB, 64 * MIB], pytest.param([2048 * MIB], marks=pytest.mark.minutes)])
def test_case_16_a_line_of_any_length_is_one_rejection_and_memory_stays_flat(tmp_path: Path, sizes: list[int]) -> None:
    with spool_run(tmp_path) as run:
        offsets = write_long_lines(tmp_path / "spool" / FILE, sizes)
        run.ingest({"ws1/ana/warm.jsonl": line("warm")})
        before = resident_bytes()
        peak = before
        while run.writer.tailer.ready:
            run.writer.ingest()
            peak = max(peak, resident_bytes())
        run.ingest({})

        assert ids(run) == {"warm", *(f"after-{number}" for number in range(len(sizes)))}
        entries = sorted(run.quarantined(), key=lambda record: record["source_offset"])
        assert [(e["reason"], e["source_offset"], e["raw_bytes"], len(e["raw_text"])) for e in entries] == [
            ("line_too_long", offset, size, SAMPLE_BYTES) for offset, size in zip(offsets, sizes, strict=True)
        ]
        assert peak - before < max(sizes)


# ---- case 17: odd bytes ----------------------------------------------------------------------------------------------

ODD = {
    "not UTF-8": (line("x").replace(b"file.open", b"file.\xff"), "invalid_utf8"),
    "a lone surrogate in UTF-8": (line("x").replace(b"ws1", b"\xed\xa0\x80"), "invalid_utf8"),
    "a lone surrogate as an escape": (line("x").replace(b"ws1", b"\\ud800"), "invalid_json"),
    "a BOM in the middle of the file": (b"\xef\xbb\xbf" + line("x"), "invalid_json"),
    "NaN": (line("x", payload={"a": 0}).replace(b'"a":0', b'"a":NaN'), "invalid_json"),
    "minus Infinity": (line("x", payload={"a": 0}).replace(b'"a":0', b'"a":-Infinity'), "invalid_json"),
    "a form feed": (b"\x0c\n", "invalid_json"),
    "CRLF": (line("crlf")[:-1] + b"\r\n", ""),
    "U+2028 and U+2029": (line("lines", payload={"a": "\u2028\u2029\x85"}), ""),
    "an escaped NUL in a string": (line("nul").replace(b"ws1", b"ws\\u00001"), ""),
    "nested deeply": (line("deep", payload={"a": 0}).replace(b'"a":0', b'"a":' + DEEP.encode()), ""),
    "nested as deep as a line is long": (
        line("deepest", payload={"a": 0}).replace(b'"a":0', b'"a":' + b"[" * 500_000 + b"]" * 500_000), ""
    ),
    "duplicate keys": (b'{"event_id":"twice",' + line("second")[1:], ""),
    "numbers beyond 64 bits": (line("big", duration_ms=2**70, payload={"a": 10**400}), ""),
    "an empty line": (b"\n", None),
    "a blank line": (b" \t\r\n", None),
}  # fmt: skip


def test_case_17_each_odd_line_is_a_row_or_an_entry_at_its_offset(tmp_path: Path) -> None:
    contents: dict[str, bytes] = {}
    expected: dict[tuple[str, int], str] = {}
    for number, (odd, reason) in enumerate(ODD.values()):
        path, before = f"ws1/ana/{number}.jsonl", line(f"before-{number}")
        contents[path] = before + odd + line(f"after-{number}")
        if reason:
            expected[path, len(before)] = reason
    with spool_run(tmp_path) as run:
        run.ingest(contents, seal=True)
        run.writer.refresh_gold(run.writer.store.cursor())

        assert {(e["source_file"], e["source_offset"]): e["reason"] for e in run.quarantined()} == expected
        around = {f"{place}-{number}" for place in ("before", "after") for number in range(len(ODD))}
        assert ids(run) == around | {"crlf", "lines", "nul", "deep", "deepest", "twice", "big"}


NAMES = ['it\'s "quoted"', "new\nline", "\x1b]0;title\x07", "'; DROP TABLE events_tail; --", "%s {} $HOME `id`", "日本"]


def test_case_17_names_of_files_hosts_and_users_may_be_anything(tmp_path: Path) -> None:
    with spool_run(tmp_path) as run:
        for number, name in enumerate(NAMES):
            path = tmp_path / "spool" / name / name / f"{name}.jsonl"
            path.parent.mkdir(parents=True)
            host = {"hostname": name, "user": name}
            path.write_bytes(line(f"e{number}", host=host, scope={"show": name}) + b"bad\n")
        folder = os.fsencode(tmp_path / "spool") + b"/h\xff/u\xfe"
        os.makedirs(folder)  # noqa: PTH103 - no name of a Path is like this one
        with open(folder + b"/f\xfd.jsonl", "wb") as stream:  # noqa: PTH123
            stream.write(line("bytes") + b"bad\n")
        run.ingest({}, seal=True)
        run.writer.refresh_gold(run.writer.store.cursor())

        rows = {row["event_id"]: row for row in run.rows("events")}
        for number, name in enumerate(NAMES):
            row = rows[f"e{number}"]
            assert row["source_file"] == f"{name}/{name}/{name}.jsonl"
            assert (row["host_user"], row["scope_show"]) == (name, name)
        assert rows["bytes"]["source_file"] == "h\\xff/u\\xfe/f\\xfd.jsonl"
        assert Counter(e["reason"] for e in run.quarantined()) == {"invalid_json": len(NAMES) + 1}


# ---- case 22: values that would be paths, SQL, partitions ------------------------------------------------------------


def test_case_22_no_value_reaches_a_path_or_sql_and_unknown_types_share_a_partition(tmp_path: Path) -> None:
    evil = ["../../../evil", "/etc/evil", "a'; DROP TABLE events_tail; --", 'x" || y', "y" * 10_000, "a\x00b", "{}"]
    content = [
        line(f"v{number}", host={"hostname": text, "user": text}, scope=dict.fromkeys(("show", "shot"), text),
             payload={"kind": text, text: text}, error={"code": text, "message": text})
        for number, text in enumerate(evil)
    ]  # fmt: skip
    content += [line(f"t{number}", event_type=text) for number, text in enumerate(evil)]
    template = line("NUMBER", payload={})
    unknown = [
        template.replace(b"NUMBER", b"u%d" % number).replace(b"file.open", b"evil.type_%d" % number)
        for number in range(20_000)
    ]
    with spool_run(tmp_path) as run:
        run.ingest({FILE: b"".join(content), "ws1/ana/b.jsonl": b"".join(unknown)}, seal=True)
        run.writer.refresh_gold(run.writer.store.cursor())

        assert len(run.rows("events")) == len(evil) + len(unknown)
        assert {(e["reason"], e["field"]) for e in run.quarantined()} == {("invalid_field", "event_type")}
        made = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert not [path for path in made if "evil" in str(path.relative_to(tmp_path)) or "DROP" in path.name]
        types = {path.parent.name for path in (tmp_path / "data/silver/events").rglob("*.parquet")}
        assert types <= {"event_type=unknown", "event_type=file.open"}
        unknown_counted = run.writer.metrics.registry.get_sample_value("piper_unknown_type_events_total")
        assert unknown_counted == len(unknown)


# ---- beyond the list: what is small for whoever writes it and large for whoever reads it -----------------------------


def test_a_flood_of_tiny_lines_comes_in_bounded_slices_and_complete(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "raw", turn_bytes=4 * MIB, line_bytes_max=MIB)
    for name in ("a", "b"):
        spool.append(f"ws1/ana/{name}.jsonl", b"x\n" * 150_000 + b"y\n")
    spool.scan()
    batch, slices = Batch(), []
    while spool.tailer.ready:
        slices.append(sum(span.lines for span in spool.tailer.read(batch, 16 * MIB)))

    assert sum(slices) == 2 * 150_001
    assert max(slices) <= SLICE_LINES_MAX + spool.limits.turn_lines
    spool.tailer.applied(batch)
    assert spool.tailer.backlog()[0] == 0


def test_a_backlog_of_the_longest_lines_does_not_exhaust_the_memory_of_duckdb(tmp_path: Path) -> None:
    text = "é" * 500_000
    with spool_run(tmp_path) as run:
        path = tmp_path / "spool" / FILE
        path.parent.mkdir(parents=True)
        with path.open("wb") as stream:
            for number in range(140):
                stream.write(line(f"e{number}", payload={"a": text}))
        run.ingest({})

        assert run.writer.totals.accepted == 140


def test_a_file_may_say_that_it_was_written_in_any_year(tmp_path: Path) -> None:
    with spool_run(tmp_path) as run:
        for number, seconds in enumerate((14_000_000_000, -5_000_000_000)):
            path = tmp_path / "spool" / f"ws1/ana/{number}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(line(f"e{number}") + b"cut")
            os.utime(path, (seconds, seconds))
        run.ingest({})
        run.ingest({"ws1/ana/2.jsonl": line("e2")})
    with spool_run(tmp_path) as run:
        run.ingest({})

        assert ids(run) == {"e0", "e1", "e2"}


def test_a_line_with_very_many_keys_is_judged_like_any_other(tmp_path: Path) -> None:
    keys = {f"{number:x}": 1 for number in range(60_000)}
    payload = {**keys, "entity_type": "shot", "entity_code": "A", "path": "/x", "versioned": True}
    with spool_run(tmp_path) as run:
        run.ingest({FILE: line("e1", payload=payload)})

        (row,) = run.rows("events")
        assert len(json.loads(row["payload"])) == len(payload)
        assert row["contract_violation"] is None
