"""The contract row by row: reasons, places of lines, names, the flat dialect, the registry, quarantine."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.support.spool_run import NOW, Row, SpoolRun, spool_run

from piper.events import parse
from piper.events.quarantine import Reason, record_line
from piper.events.registry import EVENT_TYPES, PUBLISH_KINDS
from piper.spool.identity import Source
from piper.spool.turn import Span

Event = dict[str, Any]
LIMIT = 2000
"""line_bytes_max of these runs."""


def nested(kind: str = "file.open", **fields: Any) -> Event:
    return {
        "schema_version": "1.0",
        "event_id": "e",
        "event_type": kind,
        "occurred_at_utc": "2030-03-01T10:00:00Z",
        "status": "success",
        "pipeline": {"name": "pipe"},
        "host": {"hostname": "ws1", "user": "ana"},
        "session": {"session_id": "s"},
        **fields,
    }


def flat(kind: str, **fields: Any) -> Event:
    return {
        "event_id": "e",
        "event_type": kind,
        "status": "success",
        "occurred_at": "2030-03-01T10:00:00Z",
        "action_id": "a",
        "hostname": "ws1",
        "host_user": "ana",
        **fields,
    }


def line(event: object) -> bytes:
    return json.dumps(event).encode()


def lacking(name: str) -> Event:
    event = nested()
    part, _, field = name.rpartition(".")
    del (event[part] if part else event)[field or part]
    return event


REJECTED: list[tuple[bytes, str, str | None]] = [
    (b'{"caf\xe9": 1}', "invalid_utf8", None),
    (b'{"a": 1', "invalid_json", None),
    (line(nested())[:-1] + b', "x": NaN}', "invalid_json", None),
    (line(nested())[:-1] + b", }", "invalid_json", None),
    (line(nested()) + b" 1", "invalid_json", None),
    (b"[1, 2]", "not_an_object", None),
    (b"null", "not_an_object", None),
    (line(lacking("schema_version")), "missing_field", "schema_version"),
    (line(lacking("event_id")), "missing_field", "event_id"),
    (line(lacking("occurred_at_utc")), "missing_field", "occurred_at_utc"),
    (line(lacking("pipeline.name")), "missing_field", "pipeline.name"),
    (line(lacking("host.user")), "missing_field", "host.user"),
    (line(nested(host=None)), "missing_field", "host.hostname"),
    (line(nested(event_id="")), "missing_field", "event_id"),
    (line(nested(status=None)), "missing_field", "status"),
    (line(flat("file.open", action_id="")), "missing_field", "action_id"),
    (line(nested(event_id=7)), "invalid_field", "event_id"),
    (line(nested(session={"session_id": ["s"]})), "invalid_field", "session.session_id"),
    (line(nested("File.Open")), "invalid_field", "event_type"),
    (line(nested("open")), "invalid_field", "event_type"),
    (line(nested(status="done")), "invalid_field", "status"),
    (line(nested(payload=[])), "invalid_field", "payload"),
    (line(nested(metrics="none")), "invalid_field", "metrics"),
    (line(nested(scope=1)), "invalid_field", "scope"),
    (line(nested(error=True)), "invalid_field", "error"),
    (line(nested(occurred_at_utc="2030-03-01T10:00:00")), "invalid_field", "occurred_at_utc"),
    (line(nested(occurred_at_utc="2030-02-30T10:00:00Z")), "invalid_field", "occurred_at_utc"),
    (line(flat("file.open", occurred_at="yesterday")), "invalid_field", "occurred_at"),
    (line(nested(schema_version="2.0")), "unsupported_schema_version", "schema_version"),
    (line(nested(occurred_at_utc="2030-03-04T13:00:01Z")), "clock_skew", "occurred_at_utc"),
    (line(flat("file.open", occurred_at="2030-03-04T15:00:01+02:00")), "clock_skew", "occurred_at"),
    (line(nested(payload={"x": "y" * LIMIT})), "line_too_long", None),
]

PREFERENCES = [
    ("publish_usd", "publish.anim.usd", "output_path", ["payload.publish_path", "payload.output_path"]),
    *(
        (dataset, kind, "duration_ms",
         ["metrics.duration_ms", "metrics.launch_duration_ms", "payload.duration_ms", "duration_ms"])
        for dataset, kind in (("publish_usd", "publish.anim.usd"), ("tool_events", "dcc.launch"))
    ),
    ("tractor_farm_snapshot", "tractor.farm.snapshot", "running_jobs", ["payload.running_jobs", "payload.active_jobs"]),
    ("render_stats_summary", "render.stats.summary", "frame_count", ["payload.total_frames", "payload.frame_count"]),
    ("render_stats_summary", "render.stats.summary", "peak_memory_gb",
     ["payload.memory_peak_gb", "metrics.peak_memory_gb"]),
    ("render_stats_summary", "render.stats.summary", "retry_count", ["payload.retry_count_total"]),
    ("storage_scan_summary", "storage.scan.summary", "bucket_count",
     ["payload.buckets_emitted_count", "payload.bucket_count"]),
    ("storage_scan_summary", "storage.scan.summary", "total_size_bytes",
     ["metrics.size_bytes_total", "metrics.total_size_bytes"]),
    ("storage_scan_summary", "storage.scan.summary", "total_file_count",
     ["metrics.file_count_total", "payload.total_file_count"]),
    ("storage_scan_summary", "storage.scan.summary", "total_dir_count", ["metrics.dir_count_total"]),
    *(
        (dataset, kind, "scan_duration_s",
         ["payload.scan_duration_ms", "metrics.scan_duration_s", "payload.duration_ms"])
        for dataset, kind in (
            ("storage_scan_summary", "storage.scan.summary"), ("storage_scan_bucket", "storage.scan.bucket")
        )
    ),
    ("storage_scan_bucket", "storage.scan.bucket", "bucket", ["payload.bucket", "payload.category"]),
    ("storage_scan_bucket", "storage.scan.bucket", "root_path", ["payload.path", "payload.root_path"]),
    ("storage_scan_bucket", "storage.scan.bucket", "total_size_bytes",
     ["metrics.size_bytes", "metrics.total_size_bytes", "payload.size_bytes"]),
    ("storage_scan_bucket", "storage.scan.bucket", "file_count", ["metrics.file_count", "payload.file_count"]),
    ("storage_scan_bucket", "storage.scan.bucket", "dir_count", ["metrics.dir_count", "payload.dir_count"]),
]  # fmt: skip
"""The contract's table of names: dataset, a type of it, column, names in order of preference."""


def preference_events() -> Iterator[tuple[str, str, str, list[str], Event]]:
    """(dataset, column, name that counts, all names, event): each name first, the earlier ones null or absent."""
    for dataset, kind, column, names in PREFERENCES:
        for dialect in (nested, flat):
            for first in range(len(names)):
                for null in (False, True):
                    event = dialect(kind, event_id=f"{dialect.__name__}-{dataset}-{column}-{first}-{null}")
                    for at, name in enumerate(names):
                        if at >= first or null:
                            put(event, name, None if at < first else 1000 * (at + 1))
                    yield dataset, column, names[first], names, event


def put(event: Event, name: str, value: object) -> None:
    part, _, field = name.rpartition(".")
    (event.setdefault(part, {}) if part else event)[field] = value


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpoolRun]:
    """A run that took in all the events of this module's tests, each from a file of its own."""
    registry = {f"ws1/ana/{name}.jsonl": content for name, content in REGISTRY_FILES.items()}
    preferences = b"".join(line(event) + b"\n" for *_, event in preference_events())
    with spool_run(tmp_path_factory.mktemp("run"), INGEST__LINE_BYTES_MAX=str(LIMIT)) as opened:
        opened.ingest({"ws1/ana/preferences.jsonl": preferences, "ws1/ana/rejected.jsonl": rejected_file(), **registry})
        yield opened


def rejected_file() -> bytes:
    """Every bad line, with a good one and a blank one of growing width before it."""
    parts = []
    for n, (bad, _, _) in enumerate(REJECTED):
        parts += [line(nested(event_id=f"good-{n}")), b" \t" * n, bad]
    return b"\n".join(parts) + b"\n"


def stored(run: SpoolRun, dataset: str) -> dict[str, Row]:
    return {row["event_id"]: row for row in run.rows(dataset)}


# ---- reasons and places ----------------------------------------------------------------------------------------------


def test_every_bad_line_is_quarantined_with_its_reason_field_and_place(run: SpoolRun) -> None:
    content = rejected_file()
    records = sorted(run.quarantined(), key=lambda record: record["source_offset"])

    assert [(record["reason"], record["field"]) for record in records] == [(reason, at) for _, reason, at in REJECTED]
    assert [record["source_line"] for record in records] == [3 * n + 3 for n in range(len(REJECTED))]
    for record, (bad, _, _) in zip(records, REJECTED, strict=True):
        assert record["source_file"] == "ws1/ana/rejected.jsonl"
        assert content[record["source_offset"] :].startswith(bad + b"\n")
    assert {record["reason"] for record in records} == set(Reason) - {Reason.TRUNCATED_LINE}


def test_good_lines_between_bad_and_blank_ones_keep_their_place(run: SpoolRun) -> None:
    content, events = rejected_file(), stored(run, "events")

    for n in range(len(REJECTED)):
        event = events[f"good-{n}"]
        assert event["source_line"] == 3 * n + 1
        assert content[event["source_offset"] :].startswith(line(nested(event_id=f"good-{n}")))


def test_one_hour_ahead_is_the_last_moment_that_is_accepted(run: SpoolRun) -> None:
    assert stored(run, "events")["just in time"]["occurred_at_utc"] == NOW + timedelta(hours=1)


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", PREFERENCES, ids=lambda row: f"{row[0]}.{row[2]}")
def test_the_first_name_that_is_present_and_not_null_is_taken(
    run: SpoolRun, row: tuple[str, str, str, list[str]]
) -> None:
    rows = stored(run, row[0])
    cases = [case for case in preference_events() if case[0] == row[0] and case[1] == row[2]]

    assert len(cases) == 4 * len(row[3])
    for dataset, column, taken, names, event in cases:
        value: object = 1000 * (names.index(taken) + 1)
        if column in ("output_path", "bucket", "root_path"):
            value = str(value)
        elif column == "scan_duration_s" and taken.endswith("_ms"):
            value = 1 + names.index(taken)
        assert rows[event["event_id"]][column] == value, (dataset, taken, event)


# ---- dialects, registry ----------------------------------------------------------------------------------------------

GOOD_SNAPSHOT = {
    "engine_url": "x", "waiting_jobs": 1, "running_jobs": 1, "busy_slots": 1, "total_slots": 1, "active_blades": 1,
    "total_blades": 1,
}  # fmt: skip
SNAPSHOT = "tractor.farm.snapshot"
VIOLATIONS: dict[str, tuple[Event, str | None]] = {
    "all there": (nested(SNAPSHOT, status="info", payload=GOOD_SNAPSHOT), None),
    "other name": (
        flat(SNAPSHOT, status="info", payload={**GOOD_SNAPSHOT, "running_jobs": None, "active_jobs": 2}), None),
    "status": (nested(SNAPSHOT, status="success", payload=GOOD_SNAPSHOT), "status"),
    "no payload": (nested(SNAPSHOT, status="info"), "payload.engine_url"),
    "one lacks": (
        nested(SNAPSHOT, status="info", payload={k: v for k, v in GOOD_SNAPSHOT.items() if k != "busy_slots"}),
        "payload.busy_slots"),
    "one is null": (
        nested(SNAPSHOT, status="info", payload={**GOOD_SNAPSHOT, "busy_slots": None}), "payload.busy_slots"),
    "wrong type": (nested(SNAPSHOT, status="info", payload={**GOOD_SNAPSHOT, "busy_slots": "many"}), None),
    "no duration": (
        nested("publish.anim.usd", payload={"publish_type": "anim", "publish_path": "/x"}), "metrics.duration_ms"),
    "top duration": (flat("publish.usd", duration_ms=5, payload={"kind": "anim", "output_path": "/x"}), None),
    "unknown": (nested("studio.tea.break", status="warning"), None),
}  # fmt: skip
UNKNOWN = ("studio.tea.break", "publish.usd", "publish.new.usd", "a.b.c.d")
FLAT_KINDS = (*PUBLISH_KINDS, "camerax", "", None, 5, ["anim"])
REGISTRY_FILES = {
    "violations": b"".join(line({**event, "event_id": name}) + b"\n" for name, (event, _) in VIOLATIONS.items()),
    "unknown": b"".join(line(nested(name, event_id=f"unknown-{name}")) + b"\n" for name in UNKNOWN),
    "kinds": b"".join(
        line(flat("publish.usd", event_id=f"kind-{kind}", payload={"kind": kind})) + b"\n" for kind in FLAT_KINDS
    ),
    "known": b"".join(line(nested(name, event_id=f"known-{name}")) + b"\n" for name in EVENT_TYPES),
    "times": line(nested(event_id="just in time", occurred_at_utc="2030-03-04T13:00:00Z")) + b"\n",
    "flat": line(flat("dcc.launch", event_id="flat", dcc="maya", error_code="E", error_message="m", duration_ms=5))
    + b"\n",
}


@pytest.mark.parametrize("kind", FLAT_KINDS, ids=str)
def test_a_flat_publish_has_the_type_of_its_kind(run: SpoolRun, kind: Any) -> None:
    known = kind in PUBLISH_KINDS
    event_id = f"kind-{kind}"

    assert stored(run, "events")[event_id]["event_type"] == (f"publish.{kind}.usd" if known else "publish.usd")
    assert (event_id in stored(run, "publish_usd")) == known
    if known:
        assert stored(run, "publish_usd")[event_id]["publish_type"] == kind


def test_a_flat_event_fills_the_columns_of_a_nested_one(run: SpoolRun) -> None:
    event = stored(run, "events")["flat"]

    assert {name: event[name] for name in (
        "schema_version", "pipeline_name", "pipeline_dcc", "host_hostname", "host_user", "session_id", "action_id",
        "error_code", "error_message", "payload", "metrics", "ingested_at_utc",
    )} == {
        "schema_version": "flat", "pipeline_name": "sandwich-pipeline", "pipeline_dcc": "maya", "host_hostname": "ws1",
        "host_user": "ana", "session_id": "a", "action_id": "a", "error_code": "E", "error_message": "m",
        "payload": None, "metrics": '{"duration_ms":5}', "ingested_at_utc": NOW,
    }  # fmt: skip


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_names_what_breaks_the_registry(run: SpoolRun, name: str) -> None:
    assert stored(run, "events")[name]["contract_violation"] == VIOLATIONS[name][1]


def test_a_known_type_is_in_its_dataset_and_in_no_other(run: SpoolRun) -> None:
    datasets = {entry.dataset for entry in EVENT_TYPES.values()}
    rows = {dataset: stored(run, dataset) for dataset in datasets}

    for name, entry in EVENT_TYPES.items():
        assert [dataset for dataset in datasets if f"known-{name}" in rows[dataset]] == [entry.dataset]
        assert stored(run, "events")[f"known-{name}"]["is_known_type"] is True


def test_unknown_types_share_one_partition_and_keep_their_names(tmp_path: Path) -> None:
    with spool_run(tmp_path) as run:
        run.ingest({"ws1/ana/a.jsonl": REGISTRY_FILES["unknown"]}, seal=True)

        partitions = {
            path.parent.name for path in (tmp_path / "data/silver/events/event_date=2030-03-01").rglob("*.parquet")
        }
        assert partitions == {"event_type=unknown"}
        assert {row["event_type"] for row in run.rows("events")} == set(UNKNOWN)
        assert not any(row["is_known_type"] for row in run.rows("events"))
        assert all(not run.rows(entry.dataset) for entry in EVENT_TYPES.values())


# ---- the quarantine record -------------------------------------------------------------------------------------------


def test_a_record_holds_the_line_as_text(run: SpoolRun) -> None:
    for record in run.quarantined():
        bad = REJECTED[record["source_line"] // 3 - 1][0]
        assert record["quarantined_at_utc"] == "2030-03-04T12:00:00.000Z"
        assert record["raw_bytes"] == len(bad)
        if record["reason"] == "invalid_utf8":
            assert base64.b64decode(record["raw_base64"]) == bad
            assert "raw_text" not in record
        else:
            assert record["raw_text"] == bad.decode()
            assert "raw_base64" not in record


@pytest.mark.parametrize(
    ("kept", "raw_bytes", "text"),
    [
        ("é€😀".encode(), 9, "é€😀"),
        ("é€😀".encode()[:-1], 900, "é€"),
        ("é€".encode()[:-1], 900, "é"),
        ("é€".encode()[:-1], 4, None),
        (b"\xff and more", 900, None),
        ("\u2028\x00\x7f\\\"".encode(), 7, "\u2028\x00\x7f\\\""),
    ],
)  # fmt: skip
def test_a_line_is_text_when_it_is_utf8_as_far_as_it_is_kept(kept: bytes, raw_bytes: int, text: str | None) -> None:
    record = record_line(NOW, "h/u/f.jsonl", 5, 2, "line_too_long", "", kept, raw_bytes, "digest")

    assert record.endswith(b"\n")
    assert record.count(b"\n") == 1
    parsed = json.loads(record)
    assert parsed.get("raw_text") == text
    if text is None:
        assert base64.b64decode(parsed["raw_base64"]) == kept
    assert parsed["raw_bytes"] == raw_bytes


def test_a_huge_line_is_cut_and_says_its_true_length(tmp_path: Path) -> None:
    huge = line(nested(payload={"x": "é" * 100_000}))

    with spool_run(tmp_path, INGEST__LINE_BYTES_MAX="100000") as run:
        run.ingest({"ws1/ana/a.jsonl": huge + b"\n" + line(nested()) + b"\n"})

        (record,) = run.quarantined()
        assert record["reason"] == "line_too_long"
        assert record["raw_bytes"] == len(huge)
        assert len(record["raw_text"]) < len(huge)
        assert huge.startswith(record["raw_text"].encode())
        assert run.rows("events")[0]["source_line"] == 2


def test_a_nul_byte_that_stays_in_a_line_makes_it_invalid(tmp_path: Path) -> None:
    with spool_run(tmp_path) as run:
        run.ingest({"ws1/ana/a.jsonl": line(nested())[:-1] + b"\0}\n" + line(nested()) + b"\n"})
        for _ in range(5):  # the tailer believes in NUL bytes only when several looks agree
            run.seconds += 60
            run.look()
        run.writer.export_quarantine()

        assert [(record["reason"], record["source_line"]) for record in run.quarantined()] == [("invalid_json", 1)]
        assert [row["source_line"] for row in run.rows("events")] == [2]


def test_a_run_of_bad_lines_costs_each_of_them_only(tmp_path: Path) -> None:
    lines = [line(nested(event_id=f"e{n}")) if n % 5 == 0 else b'{"n": "\xff%d"}' % n for n in range(20_000)]

    with spool_run(tmp_path) as run:
        run.ingest({"ws1/ana/a.jsonl": b"\n".join(lines) + b"\n"})

        assert len(run.rows("events")) == 4000
        records = run.quarantined()
        assert len(records) == len({record["source_line"] for record in records}) == 16_000
        assert all(base64.b64decode(r["raw_base64"]) == lines[r["source_line"] - 1] for r in records)


@pytest.mark.parametrize("block_bytes", [4, 5, 7, 1 << 17])
def test_text_is_utf8_wherever_a_block_ends(block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse, "_BLOCK_BYTES", block_bytes)
    whole = "aé€😀" * 5
    assert parse.is_utf8(whole.encode())
    for bad in (b"\x80", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xff"):
        for at in range(len(whole)):
            assert not parse.is_utf8(whole[:at].encode() + bad + whole[at:].encode()), (bad, at)


LAX = re.compile(rb"[:,\[ \t\r\n-](n[an]n|i[an]f)|[, \t\r][}\]]", re.IGNORECASE)
"""A little more than what is lax: the second letter is looked at for both words alike."""


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 7, 64, 1 << 17])
def test_lines_that_may_be_lax_are_found_wherever_a_block_ends(
    block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parse, "_BLOCK_BYTES", block_bytes)
    random = Random(block_bytes)
    texts = [bytes(random.choices(b'nNaAiIfF:, -"}]x\t', k=random.randint(0, 12))) + b"\n" for _ in range(500)]
    data = b"".join(texts)
    source = Source(path=b"h/u/a.jsonl", device=0, inode=0)
    found = parse.suspicious_lines(parse.split([Span.of(source, 0, 1, data)]))
    wanted = [number == 0 or bool(LAX.search(b"\n" + text)) for number, text in enumerate(texts)]
    assert found.tolist() == wanted
    assert 0 < sum(wanted) < len(texts)
