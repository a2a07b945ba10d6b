"""Lines of both dialects with everything that can be wrong or odd about them, to compare piper with the reference."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from tests.support import gold_reference as raw
from tests.support import parse_reference as reference

Event = dict[str, Any]


class Raw:
    """JSON text, right or wrong, that goes into a line as it is."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"Raw({self.text[:40]!r})"


def dump(value: Any, space: str = "") -> str:
    """JSON of a value; a list of pairs in `Pairs` is an object that may have a key twice."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        value = Pairs(value.items())
    if isinstance(value, Pairs):
        inside = f"{space},{space}".join(f"{json.dumps(key)}{space}:{space}{dump(item, space)}" for key, item in value)
        return f"{{{space}{inside}{space}}}"
    return json.dumps(value, ensure_ascii=False)


class Pairs(list[tuple[str, Any]]):
    """The keys and values of an object, in order."""


TYPES = [*raw.REGISTRY, "publish.new_kind.usd", "studio.tea.break"]
DIALECTS = ("nested", "flat")


ONE_OF_EACH = list({reference.DATASET_OF.get(kind, kind): kind for kind in TYPES}.values())
"""One type for each dataset, and the unknown ones."""


def full_event(kind: str, dialect: str, event_id: str) -> Event:
    """An event that has every field of its dataset and its registry entry under every name."""
    payload, metrics = _full_fields(kind)
    scope = {name: f"{name} é" for name in ("show", "sequence", "shot", "asset", "department", "task")}
    error = {"code": "E1", "message": 'it "broke"\n'}
    shared: Event = {"event_id": event_id, "event_type": kind, "status": "error"}
    tail: Event = {"payload": payload, "metrics": metrics, "scope": scope, "error": error, "duration_ms": 77}
    if dialect == "flat":
        if kind.startswith("publish.") and kind in raw.REGISTRY:
            shared["event_type"], payload["kind"] = "publish.usd", kind.split(".")[1]
        who = {"occurred_at": "2030-03-01T10:00:00Z", "action_id": "a1", "hostname": "ws1", "host_user": "ana"}
        return {**shared, **who, "dcc": "maya", **tail, "error_code": "E2", "error_message": "flat"}
    return {
        "schema_version": "1.0",
        **shared,
        "occurred_at_utc": "2030-03-01T10:00:00+00:00",
        "pipeline": {"name": "pipe", "dcc": "maya"},
        "host": {"hostname": "ws1", "user": "ana", "os": "Linux", "pid": 3},
        "session": {"session_id": "s1", "action_id": "a1"},
        **tail,
    }


def _full_fields(kind: str) -> tuple[Event, Event]:
    found: dict[str, Event] = {"payload": {}, "metrics": {}}
    _, payload_fields, metrics_fields = raw.REGISTRY.get(kind, ("", "", ""))
    for part, names in (("payload", payload_fields), ("metrics", metrics_fields)):
        for name in names.split():
            for alias in raw.ALIASES.get(name, f"{part}.{name}").split():
                _put(found, alias)
    dataset = reference.DATASET_OF.get(kind, "")
    if dataset:
        for column in " ".join(reference.FIELDS[dataset][1:]).split():
            for alias in reference.names_of(dataset, column).split():
                _put(found, alias)
    return found["payload"], found["metrics"]


def _put(found: dict[str, Event], path: str) -> None:
    part, _, name = path.rpartition(".")
    if part in found:
        found[part][name] = 1000 + 10 * len(found["payload"]) + len(found["metrics"])


ODD_VALUES: list[Any] = [
    None, "", " ", "x", "é日本😀", "'; DROP TABLE events; --", 0, -7, 1.7, True, False, [], {}, [1, "x"], {"a": None},
    *map(Raw, (
        "5.0", "1e3", "1E3", "1e999", "-1e999", "1e-400", "1e15", "1e16", "1e18", "1e19", "-0", "-0.0", "123456.5e1",
        "9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809",
        "18446744073709551615", "18446744073709551616", "123456789012345678901234567890", "9007199254740993",
        "9007199254740993.0", "9.007199254740993e15", "1.0000000000000000001", "9.223372036854775807e18", "1e-7",
        "0.1", "1.7976931348623157e308", '"\\u0000"', '"\\u00e9\\n\\t\\/"', '"\\ud83d\\ude00"', '"\\ud83d"',
        '"\\ude00x"', '"\\x41"', '"a\tb"', "NaN", "nan", "-NaN", "Infinity", "-Infinity", "inf", "-inf", "iNfInItY",
        "[1,]", "[1 , \t]", '{"a":1,}', '{"a":1 ,\r}', "[,]", "[1,,2]", "01", "+1", ".5", "1.", "0x10", "tRuE", "nul",
        "'x'", "// c", "1 2", '{"a":{"b":[1,{"c":null}]},"a":2}', '["NaN, [1,] Infinity"]', reference.DEEP,
    )),
    "123", "-7", "+7", "007", " 7", "7 ", "1e3", "1E3", "1e999", "12.0", "12.00", "12.5", "1_000", "0x10", "٣", "nan",
    "inf", "Infinity", "9007199254740993", "9007199254740993.0", "9223372036854775808", "1e18", "1.", ".5", "-", "null",
    "true", "NaN", ",]", ":NaN", " ,}", "[nan]", "\\", '"', "/*",
]  # fmt: skip
"""Put into any field in turn."""

ODD_TYPES: list[Any] = [
    "File.open", "file", "file.", ".open", "file..open", "..", "file.open ", " file.open", "file.open\n", "file-x.open",
    "file.öffnen", "a." + "b" * 126, "a." + "b" * 127, "a.b'; --", 'a."b"', "a/b.c", "../x.y", "file.open\x00", "1.2",
    "_._", "publish.usd", "publish.Asset.usd", "publish.asset.usd", "a.b.c.d.e.f",
]  # fmt: skip

ODD_VERSIONS: list[Any] = [
    "1.0", "1.1", "1.99", "2.0", "0.9", "1", "1.", "1.x", "1.0.0", "11.0", " 1.0", "1.0\n", "flat", 1.0, 1, None, "",
    {},
]  # fmt: skip


def odd_times(now: datetime) -> Iterator[str]:
    """Times of every shape; `now` is when the lines are read."""
    for body in ("2030-03-01T10:11:12", "2030-03-01t10:11:12", "2030-03-01 10:11:12", "2030-03-01T10:11", "2030-03-01",
                 "20300301T101112", "2030-03-01_10:11:12", "2030-3-1T10:11:12", "2030-03-01T10:11:12 "):  # fmt: skip
        for offset in ("", "Z", "z", "+05:30", "+0530", "+05", "-05", "-00:00", "+24:00", "+23:59", "-23:59", "+00:60",
                       "+5:30", " Z", "UTC", "Z+01", "+05:3", "+05:30:10"):  # fmt: skip
            yield body + offset
    for digits in range(11):
        yield f"2030-03-01T10:11:12.{'9876543219'[:digits]}Z"
        yield f"2030-03-01T10:11:59,{'9999999999'[:digits]}+01:00"
    for body in ("2030-02-30T00:00:00", "2028-02-29T00:00:00", "2029-02-29T00:00:00", "2030-00-01T00:00:00",
                 "2030-13-01T00:00:00", "2030-01-32T00:00:00", "2030-01-00T00:00:00", "2030-01-01T24:00:00",
                 "2030-01-01T23:60:00", "2030-01-01T23:59:60", "0000-01-01T00:00:00", "0001-01-01T00:00:00",
                 "0001-01-01T04:59:59.999999", "0001-01-01T05:00:00", "1582-10-10T00:00:00", "1969-12-31T23:59:59.5",
                 "9999-12-31T23:59:59", "10000-01-01T00:00:00", "-001-01-01T00:00:00", "２030-01-01T00:00:00",
                 "infinity", "epoch", "now", ""):  # fmt: skip
        for offset in ("Z", "+05:00", "-05:00"):
            yield body + offset
    for micros in (-1_000_000, -1, 0, 1, 1_000_000):
        yield (now + timedelta(hours=1, microseconds=micros)).isoformat() + "+00:00"
        yield (now + timedelta(hours=3, microseconds=micros)).isoformat() + "+02:00"


def paths_of(event: Event) -> list[tuple[str, ...]]:
    """Where a value can be replaced or left out: every field, and every field of its objects."""
    found: list[tuple[str, ...]] = []
    for name, value in event.items():
        found.append((name,))
        if isinstance(value, dict):
            found += [(name, inner) for inner in value]
    return found


def replaced(event: Event, path: Sequence[str], value: Any) -> Event:
    """A copy of the event with another value at `path`."""
    copied = copy.deepcopy(event)
    at = copied
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    return copied


def without(event: Event, path: Sequence[str]) -> Event:
    """A copy of the event that lacks the field at `path`."""
    copied = copy.deepcopy(event)
    at = copied
    for name in path[:-1]:
        at = at[name]
    del at[path[-1]]
    return copied


def twice(event: Event, path: Sequence[str], value: Any, *, before: bool) -> Any:
    """The event with a second value for the key at `path`, before or after the first."""
    if len(path) > 1:
        return {**event, path[0]: twice(event[path[0]], path[1:], value, before=before)}
    added, pairs = (path[0], value), list(event.items())
    return Pairs([added, *pairs] if before else [*pairs, added])


BROKEN_LINES = [
    b"", b" ", b"\t\r", b"\x0b", b"\x0c", b"\xef\xbb\xbf", b"\xff", b"\xc3", b"\xed\xa0\x80", b"NaN", b" nan", b"-inf",
    b"Infinity", b"null", b"[]", b"[1,]", b'"text"', b"7", b"1e999", b"true", b"{}", b"{,}", b'{"a":1}{"a":2}', b"{",
    b"}", b'{"schema_version":"1.0"}', b'{"event_id":"x"}', b'{"hostname":"x"}', b'{"occurred_at":null}',
    b'\xa0{"a":1}', b'{"schema_version":null,"hostname":"x"}', b'{"occurred_at_utc":"x","hostname":"x"}', b"'", b"\\",
    b'"\\',
]  # fmt: skip


def spoiled(line: bytes) -> Iterator[bytes]:
    """The line with something wrong, or only odd, around or inside it."""
    middle = len(line) // 2
    yield from (
        b" \t" + line + b" \r",
        b"\xef\xbb\xbf" + line,
        line + b"\x0c",
        line + b",",
        line + line,
    )
    yield from (
        line[:-1],
        line[:middle],
        line[:-1] + b",}",
        line[:-1] + b" , }",
        line[:-1] + b',"x":NaN}',
        line + b" x",
    )
    yield from (
        line[:middle] + b"\xff" + line[middle:],
        line[:-1] + b',"x":"\xc3\x28"}',
        line[:-1] + b',"\xed\xa0\x80":1}',
    )
    yield line[:-1] + b',"x":[' + b",".join([b'"NaN ,]"'] * 3) + b"]}"
    yield line[:-1] + b',"x":"\\\\",}'
    yield line[:-1] + b',"x":"\\\\\\"",  "y":"\\",]"}'
    yield line[:-1] + b',"x":' + reference.DEEP.encode() + b"}"
