"""Masks take the place of names, and names that of masks, exactly as a few lines of Python with lookarounds say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from piper.events.privacy import MASK, mask
from piper.events.words import is_searched, pattern_of
from piper.silver.translation import Found, Search, Translation, known_keys
from piper.silver.user_names import name_patterns

KEY = b"k" * 32
NAMES = (
    "anna", "anna.k", "k", "ana.lópez", "jörg", "josé", "名前", "O'Neil", 'we"ird', "corp\\bert", "nanna", "max_m",
    "1001", "5e", "true", "null", "path", "user", "kind", "0123456789abcdef", "two words", "e\u0301mil", "ms",
    "tab\tname", "bell\u0007",
)  # fmt: skip
OTHERS = (
    "/home/", "/", " ", "_", "-", "@", ".", ",", ":", "\\", "\\\\", '"', "\n", "\t", "\u0007", "joanna", "annabel",
    "2", "12", "é", "x", "n", "user-0123456789abcdef", "1.5e+20", "{", "}", "\0",
)  # fmt: skip
KEYS = (*NAMES, "path", "duration_ms", "kind", "frame_start", "max_memory", "mine")
STRANGERS = st.text(st.sampled_from('aknéßIıſ²½_ .-/\\"\u0301名'), max_size=6)


def texts() -> st.SearchStrategy[str]:
    names = st.sampled_from(NAMES).flatmap(lambda name: st.sampled_from([name, name.upper(), name.capitalize()]))
    return st.lists(st.one_of(names, st.sampled_from(OTHERS), STRANGERS), max_size=9).map("".join)


def values() -> st.SearchStrategy[Any]:
    scalars = st.one_of(texts(), st.sampled_from([1001, 1, True, None, 1.5e20, 10.01, -1001, "1001"]))
    return st.recursive(
        scalars,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.sampled_from(KEYS), texts()), inner, max_size=3)
        ),
        max_leaves=8,
    )


@pytest.fixture(scope="module")
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 1}) as con:
        con.execute("CREATE TABLE cases (text VARCHAR, json VARCHAR, source_file VARCHAR)")
        yield con


# ---- the reference ---------------------------------------------------------------------------------------------------


def replaced(text: str) -> str:
    ordered = sorted((name for name in NAMES if is_searched(name)), key=lambda name: (-len(name), name))
    words = "|".join([f"(?-i:{MASK})", *map(re.escape, ordered)])
    return re.sub(
        rf"(?i)(?<![^\W_])(?:{words})(?![^\W_])",
        lambda found: found[0] if re.fullmatch(MASK, found[0]) else mask(found[0], KEY),
        text,
    )


@dataclass
class Object:
    """A JSON object, whose keys may have become equal."""

    pairs: list[tuple[str, Any]]


def parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=Object)


def replaced_inside(value: Any) -> Any:
    match value:
        case str():
            return replaced(value)
        case list():
            return [replaced_inside(item) for item in value]
        case Object(pairs):
            return Object([(k if k in known_keys() else replaced(k), replaced_inside(item)) for k, item in pairs])
    return value


# ---- what piper does -------------------------------------------------------------------------------------------------


def searched(con: duckdb.DuckDBPyConnection, search: Search) -> set[str]:
    rows = con.execute(
        f"""SELECT 'text', unnest({search.hits("text")}) FROM cases WHERE {search.is_hit("text")}
        UNION ALL SELECT 'json', unnest({search.json_hits("json")}) FROM cases WHERE {search.is_hit("''", "json")}"""
    ).fetchall()
    return set(Found.of(rows).words)


def translated(con: duckdb.DuckDBPyConnection, by: Translation) -> tuple[str, str]:
    row = con.execute(f"SELECT {by.text('text')}, {by.json('json')} FROM cases").fetchone()
    assert row is not None
    return row


def fill(con: duckdb.DuckDBPyConnection, text: str, written: str) -> None:
    con.execute("DELETE FROM cases")
    con.execute("INSERT INTO cases VALUES (?, CAST(from_json(?, '{\"p\":\"JSON\"}').p AS VARCHAR), '')",
                [text, f'{{"p":{written}}}'])  # fmt: skip


DEFAULTS = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@DEFAULTS
@given(text=texts(), value=st.dictionaries(st.sampled_from(KEYS), values(), max_size=4))
@example(text="anna/anna_anna anna", value={"path": "C:\\nanna\nanna", "x": ["anna\nanna\nanna", 1001, True]})
@example(text="C:\\anna", value={"path": {"path": "path", "kind": "1001"}, "1001": 1001, "duration_ms": "5 ms"})
@example(text="anna/anna.k", value={})
@example(text="user user-0123456789abcdef", value={"user": "user-0123456789abcdef/user"})
def test_masking_is_what_the_reference_says_and_can_be_undone(
    con: duckdb.DuckDBPyConnection, text: str, value: dict[str, Any]
) -> None:
    fill(con, text, json.dumps(value, ensure_ascii=False))
    before = con.execute("SELECT text, json FROM cases").fetchone()
    assert before is not None

    words = searched(con, Search(name_patterns(NAMES)))
    masks = {word: mask(word, KEY) for word in words if not re.fullmatch(MASK, word)}
    masked_text, masked_json = translated(con, Translation(masks, {}))
    assert masked_text == replaced(text)
    assert parsed(masked_json) == replaced_inside(parsed(before[1]))

    con.execute("UPDATE cases SET text = ?, json = ?", [masked_text, masked_json])
    found = searched(con, Search([pattern_of(MASK)]))
    back = {masked: name for name, masked in masks.items() if masked in found}
    assert translated(con, Translation(back, {})) == before
