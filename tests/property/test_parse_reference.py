"""Whatever lines a spool holds, in whatever mixture: piper accepts, rejects and stores what the reference says."""

from __future__ import annotations

import json
from datetime import timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.odd_lines import (
    BROKEN_LINES,
    DIALECTS,
    ODD_TYPES,
    ODD_VALUES,
    TYPES,
    Pairs,
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

NUMBERS = st.one_of(
    st.integers(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1e6)
)
SCALARS = st.one_of(
    st.none(), st.booleans(), NUMBERS, NUMBERS.map(str), st.text(st.characters(exclude_characters="\0"))
)
VALUES = st.one_of(
    st.sampled_from(ODD_VALUES),
    SCALARS,
    st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=5
    ),
)
OFFSETS = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
TIMES = st.one_of(
    st.sampled_from(list(odd_times(NOW))),
    st.datetimes(timezones=OFFSETS).map(lambda moment: moment.isoformat()),
)
EXTRA_KEYS = (
    "extra",
    "occurred_at",
    "occurred_at_utc",
    "schema_version",
    "hostname",
    "duration_ms",
    "payload",
    "scope",
)


@st.composite
def mutated(draw: st.DrawFn, event: dict[str, Any]) -> Any:
    """The event with one thing changed."""
    paths = paths_of(event)
    path = draw(st.sampled_from(paths))
    how = draw(st.sampled_from(("set", "set", "drop", "twice", "add", "time", "type")))
    if how == "drop":
        return without(event, path)
    if how == "twice":
        return twice(event, path, draw(VALUES), before=draw(st.booleans()))
    if how == "add":
        return replaced(event, (draw(st.sampled_from(EXTRA_KEYS)),), draw(VALUES))
    if how == "time":
        return replaced(event, ("occurred_at" if "occurred_at" in event else "occurred_at_utc",), draw(TIMES))
    if how == "type":
        return replaced(event, ("event_type",), draw(st.sampled_from(ODD_TYPES)))
    return replaced(event, path, draw(VALUES))


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """One line: an event with up to three things changed and perhaps spoiled as a whole, or no event at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(BROKEN_LINES) | st.binary(max_size=20).map(lambda b: b.translate(None, b"\n\0")))
    # Few ids, so that some lines repeat one.
    event: Any = full_event(
        draw(st.sampled_from(TYPES)), draw(st.sampled_from(DIALECTS)), f"e{draw(st.integers(0, 99))}"
    )
    for _ in range(draw(st.integers(0, 3))):
        if not isinstance(event, Pairs) and not any(isinstance(value, Pairs) for value in event.values()):
            event = draw(mutated(event))
    line = dump(event, draw(st.sampled_from(("", "", " ", "\t \r")))).encode()
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(list(spoiled(line))))
    return line


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(files=st.lists(st.lists(lines(), min_size=1, max_size=12), min_size=1, max_size=3), seal=st.booleans())
def test_piper_agrees_with_the_reference_about_every_line(files: list[list[bytes]], seal: bool) -> None:
    # One file after the other, so that it is certain which of several lines with one event_id comes first.
    contents = {f"ws1/ana/{n}.jsonl": b"".join(line + b"\n" for line in of_file) for n, of_file in enumerate(files)}
    with TemporaryDirectory() as folder, spool_run(Path(folder) / "run") as run:
        for path, content in contents.items():
            run.ingest({path: content}, seal=seal)

        check_agreement(run, contents)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    values=st.lists(
        st.one_of(NUMBERS, st.sampled_from([5e-324, 1.7976931348623157e308, 1e16, 1e15, -0.0])), max_size=40
    )
)
def test_numbers_of_any_size_reach_every_kind_of_column(values: list[float]) -> None:
    events = [
        {**full_event("render.stats.summary", "flat", f"e{n}"), "payload": dict.fromkeys(
            ("total_frames", "frame_time_p50_ms", "job_id"), value
        )}
        for n, value in enumerate(values)
    ]  # fmt: skip
    content = "".join(json.dumps(event) + "\n" for event in events).encode()
    with TemporaryDirectory() as folder, spool_run(Path(folder) / "run") as run:
        run.ingest({"ws1/ana/a.jsonl": content})

        check_agreement(run, {"ws1/ana/a.jsonl": content})
