"""Every line ends in silver or in quarantine, with exactly the values that the reference in plain Python gives it."""

from __future__ import annotations

import json
from itertools import count, product
from pathlib import Path

import pytest
from tests.support import gold_reference as raw
from tests.support.odd_lines import (
    BROKEN_LINES,
    DIALECTS,
    ODD_TYPES,
    ODD_VALUES,
    ODD_VERSIONS,
    ONE_OF_EACH,
    TYPES,
    Raw,
    dump,
    full_event,
    odd_times,
    paths_of,
    replaced,
    spoiled,
    twice,
    without,
)
from tests.support.spool_run import NOW, check_agreement, spool_run


def check(tmp_path: Path, lines: list[bytes], *, seal: bool = False) -> None:
    files = {"ws1/ana/a.jsonl": b"".join(line + b"\n" for line in lines)}
    with spool_run(tmp_path) as run:
        run.ingest(files, seal=seal)
        check_agreement(run, files)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_odd_values_in_any_field_of_any_event(tmp_path: Path, dialect: str) -> None:
    number = count()
    lines: list[bytes] = []
    for kind in ONE_OF_EACH:
        for path in paths_of(full_event(kind, dialect, "")):
            # Envelopes are alike in all types, so odd values come there once only.
            if path[0] not in ("payload", "metrics", "duration_ms") and kind != ONE_OF_EACH[0]:
                continue
            for value in ODD_VALUES:
                event = full_event(kind, dialect, f"e{next(number)}")
                lines.append(dump(replaced(event, path, value)).encode())

    check(tmp_path, lines)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_fields_that_are_missing_or_there_twice(tmp_path: Path, dialect: str) -> None:
    number = count()
    lines: list[bytes] = []
    for kind in TYPES:
        for path in paths_of(full_event(kind, dialect, "")):
            event = full_event(kind, dialect, f"e{next(number)}")
            lines.append(dump(without(event, path)).encode())
            for value, before in ((None, True), (None, False), ("second", True), (5, False), ({}, True)):
                event = full_event(kind, dialect, f"e{next(number)}")
                lines.append(dump(twice(event, path, value, before=before), " \t").encode())

    check(tmp_path, lines, seal=True)


def test_times_types_and_versions_of_every_shape(tmp_path: Path) -> None:
    number = count()
    lines: list[bytes] = []
    for dialect, time_field in (("nested", "occurred_at_utc"), ("flat", "occurred_at")):
        tries = [(time_field, time) for time in odd_times(NOW)]
        tries += [("event_type", name) for name in ODD_TYPES]
        tries += [("schema_version", version) for version in ODD_VERSIONS]
        tries += [(extra, "2030-03-01T10:00:00Z") for extra in ("occurred_at", "occurred_at_utc", "hostname", "x")]
        for field, value in tries:
            event = full_event("file.open", dialect, f"e{next(number)}")
            lines.append(dump(replaced(event, (field,), value)).encode())

    check(tmp_path, lines, seal=True)


def test_lines_that_are_broken_or_only_look_so(tmp_path: Path) -> None:
    lines = list(BROKEN_LINES)
    for n, dialect in enumerate(DIALECTS):
        length = len(list(spoiled(b"{}")))
        events = [dump(full_event("shot.setup", dialect, f"e{n}-{k}")).encode() for k in range(length)]
        lines += [list(spoiled(line))[k] for k, line in enumerate(events)]

    check(tmp_path, lines)


def test_a_byte_order_mark_is_let_through_at_the_beginning_of_a_file_only(tmp_path: Path) -> None:
    lines = [b"\xef\xbb\xbf" + dump(full_event("file.open", "nested", f"e{n}")).encode() for n in range(2)]

    check(tmp_path, lines)


def test_payload_and_metrics_alone_give_the_duration_that_stood_at_the_top_of_the_event(tmp_path: Path) -> None:
    metrics = [None, {}, {"x": 1}, {"duration_ms": None, "x": 1}, {"launch_duration_ms": None}, {"duration_ms": 7}]
    payloads = [None, {}, {"duration_ms": None}, {"duration_ms": 8}]
    durations = [None, 5, 5.5, "6", "six", Raw("1e3"), Raw("1e30"), 2**53 + 1, True, [1]]
    lines = [
        dump(
            {**full_event("file.open", dialect, f"e{n}"), "metrics": of_metrics, "payload": payload, "duration_ms": top}
        )
        for n, (dialect, of_metrics, payload, top) in enumerate(product(DIALECTS, metrics, payloads, durations))
    ]
    files = {"ws1/ana/a.jsonl": "".join(line + "\n" for line in lines).encode()}
    with spool_run(tmp_path) as run:
        run.ingest(files)

        check_agreement(run, files)
        tools = {row["event_id"]: row["duration_ms"] for row in run.rows("tool_events")}
        for row in run.rows("events"):
            stored = {name: json.loads(row[name] or "{}") for name in ("payload", "metrics")}
            assert raw.integer(stored, raw.ALIASES["duration_ms"]) == tools[row["event_id"]]
