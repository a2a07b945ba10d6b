"""Translation: rows of silver with masks in the place of user names, or the other way round, in SQL.

One mechanism for new rows and for history, so that both come out alike. It works on stored columns, after the
projections have read their numbers from what was really written; so no number is lost when somebody is called 1001.

- host_user, username: the whole value.
- source_file: the user directory as a whole, host and file name as text.
- payload, metrics: inside of strings and keys. Keys that piper itself reads stay, and so does what is no string.
- all other text but KEPT: whole words (`events.words`).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import duckdb
import pyarrow as pa

from piper.events.privacy import MASK
from piper.events.registry import ALTERNATIVES, EVENT_TYPES
from piper.events.words import Pattern, from_json, in_json, is_number_like, pattern_of, patterns, stands_in
from piper.silver.datasets import DATASETS, Dataset, projection_sql

KEPT = frozenset({"event_id", "event_type", "schema_version", "status", "contract_violation"})
"""Text that stays: what identifies an event, and closed vocabularies."""
USER = frozenset({"host_user", "username"})
JSON = ("payload", "metrics")
PROGRAM = frozenset({"dcc", "pipeline_dcc"})
PROGRAMS = (
    "3dsmax", "aftereffects", "arnold", "blender", "c4d", "cinema4d", "clarisse", "gaffer", "harmony", "hiero",
    "houdini", "hython", "karma", "katana", "krita", "mari", "max", "maya", "mayapy", "modo", "motionbuilder", "mudbox",
    "nuke", "photoshop", "premiere", "prman", "python", "renderman", "resolve", "rv", "silhouette", "standalone",
    "substance", "substance_designer", "substance_painter", "tractor", "unity", "unreal", "usdview", "zbrush",
)  # fmt: skip
"""A program stays in a PROGRAM column even if somebody is called Maya or Max: all its sessions would bear that mask,
and everyone could tell whose it is."""
_MARK = "m" + secrets.token_hex(12)
"""Set around what was found, for string_split. Letters and digits: what it encloses is no word of its own any more.
Nobody who writes to the spool can know it."""
_SEPARATOR = f"\n{_MARK[::-1]}\n"
_EMPTY = "''"
_PIECE = r'"(?:[^"\\]|\\.)*":?|[^"]+'
"""A string of a JSON text, with the colon if it is a key, or what is between two strings."""


@cache
def known_keys() -> tuple[str, ...]:
    """The keys of payload and metrics that piper reads or the registry asks for: closed vocabulary."""
    fields = [name for entry in EVENT_TYPES.values() for name in (*entry.payload_fields, *entry.metrics_fields)]
    fields += [name.partition(".")[2] for names in ALTERNATIVES.values() for name in names]
    for dataset in DATASETS:
        fields += re.findall(r'"(\w+)":"VARCHAR"', projection_sql(dataset))
    return tuple(sorted({*fields, "kind", "duration_ms"}))


def text_columns(dataset: Dataset) -> list[str]:
    """Columns of free text."""
    others = KEPT | USER | {"source_file", *JSON}
    return [name for name, kind in dataset.stored if kind == "VARCHAR" and name not in others]


def json_columns(dataset: Dataset) -> list[str]:
    """Columns of JSON."""
    return [name for name in JSON if (name, "VARCHAR") in dataset.stored]


def together(columns: Sequence[str]) -> str:
    """SQL: the values of several columns as one text."""
    values = [_but_programs(column) if column in PROGRAM else f'"{column}"' for column in columns]
    return f" || '{_SEPARATOR}' || ".join(f"coalesce({value}, '')" for value in values) or _EMPTY


def _but_programs(column: str) -> str:
    return f"CASE WHEN {_is_program(column)} THEN NULL ELSE {column} END"


def _is_program(column: str) -> str:
    return f"lower({column}) IN ({', '.join(map(_quoted, PROGRAMS))})"


def searched_parts(source_file: str) -> str:
    """SQL: what of a source_file is searched for words: the user directory is a name as a whole."""
    parts = f"string_split({source_file}, '/')"
    return f"{parts}[1] || '{_SEPARATOR}' || array_to_string({parts}[3:], '/')"


class Search:
    """SQL that finds words. `text` and `json` are SQL of what is searched, by `joined`."""

    def __init__(self, searched: Sequence[Pattern]) -> None:
        self.patterns = searched

    def is_hit(self, text: str, json: str = _EMPTY) -> str:
        """Whether anything is found."""
        tests = []
        if text != _EMPTY:
            tests += [f"regexp_matches({text}, '{pattern.text}')" for pattern in self.patterns]
        if json != _EMPTY:
            tests += [f"regexp_matches({json}, '{pattern.json}')" for pattern in self.patterns]
        return f"({' OR '.join(tests)})" if tests else "FALSE"

    def hits(self, text: str) -> str:
        """A list of what is found in a text."""
        return _all_of(text, [pattern.text for pattern in self.patterns])

    def json_hits(self, json: str) -> str:
        """A list of what is found in JSON, spelled as there: `from_json` reads it."""
        return _all_of(json, [pattern.json for pattern in self.patterns])


def _all_of(value: str, expressions: Sequence[str]) -> str:
    """Two passes: a character between two names belongs to the first one's match."""
    found = []
    for expression in expressions:
        rest = f"regexp_replace({value}, '{expression}', '\\1{_MARK}\\3', 'g')"
        found += [f"regexp_extract_all({text}, '{expression}', 2)" for text in (value, rest)]
    return f"list_concat({', '.join(found)})" if found else "CAST([] AS VARCHAR[])"


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found, each once: `words` anywhere in texts, `users` as whole users or user directories."""

    words: frozenset[str]
    users: frozenset[str]

    @classmethod
    def of(cls, rows: Iterable[tuple[str, str]]) -> Found:
        """From (where, what), where is 'text', 'json' or 'user'."""
        words: set[str] = set()
        users: set[str] = set()
        for where, what in rows:
            (users if where == "user" else words).add(from_json(what) if where == "json" else what)
        return cls(frozenset(words), frozenset(users))


class Translation:
    """Replaces the words of `words` and the users of `users`, each by what stands for it there.

    What looks like a mask and has nothing that stands for it is left alone, even by somebody who is called "user".
    """

    def __init__(self, words: Mapping[str, str], users: Mapping[str, str]) -> None:
        self._words, self._users = words, users
        self._patterns = patterns(words, any_case=False)
        keys = " ".join(known_keys())
        plain = [word for word in words if not is_number_like(word) and not stands_in(word, keys)]
        self._plain = patterns(plain, any_case=False)
        self._awkward = patterns(words.keys() - set(plain), any_case=False)
        self._masks_first = [pattern_of(MASK)] if any(_is_part_of_mask(word) for word in words) else []

    def prepare(self, con: duckdb.DuckDBPyConnection, source_files: str | None) -> None:
        """Make the tables that `rows` joins, in the database `work`. `source_files`: SQL of a column of that name."""
        table = pa.table(
            {"name": pa.array(self._users, pa.string()), "other": pa.array(self._users.values(), pa.string())}
        )
        con.register("translated_users", table)
        try:
            con.execute("CREATE OR REPLACE TABLE work.user_forms AS FROM translated_users")
        finally:
            con.unregister("translated_users")
        if source_files is not None:
            parts = f"string_split({self.text(searched_parts('source_file'))}, '{_SEPARATOR}')"
            con.execute(
                f"""CREATE OR REPLACE TABLE work.file_forms AS
                SELECT source_file AS name, parts[1] || '/' || coalesce(u.other, person) || '/' || parts[2] AS other
                FROM (SELECT DISTINCT source_file, split_part(source_file, '/', 2) AS person, {parts} AS parts
                    FROM ({source_files}))
                LEFT JOIN work.user_forms AS u ON u.name = person"""
            )

    def text(self, value: str, otherwise: str | None = None) -> str:
        """SQL: a text, translated. Where nothing is found it is `otherwise` (default: the text)."""
        return self._guarded(Search(self._patterns).is_hit(value), value, self._patterns, str, otherwise)

    def json(self, value: str, otherwise: str | None = None) -> str:
        """SQL: a JSON text as DuckDB writes it, translated, as `text`.

        Most words can be replaced in the text as it stands. One that could also be a number or a key that piper reads
        is looked for string by string.
        """
        plain = self._guarded(_json_hit(value, self._plain), value, self._plain, in_json, otherwise)
        if not self._awkward:
            return plain
        keys = ", ".join(f"'\"{key}\":'" for key in known_keys())
        is_open = f"t[1] = '\"' AND t NOT IN ({keys}) AND {_json_hit('t', self._patterns)}"
        by_string = (
            f"array_to_string(list_transform(regexp_extract_all({value}, '{_PIECE}'),"
            f" lambda t: {self._guarded(is_open, 't', self._patterns, in_json, 't')}), '')"
        )
        return f"CASE WHEN {_json_hit(value, self._awkward)} THEN {by_string} ELSE {plain} END"

    def _guarded(
        self, condition: str, value: str, used: Sequence[Pattern], spell: Callable[[str], str], otherwise: str | None
    ) -> str:
        otherwise = value if otherwise is None else otherwise
        return f"CASE WHEN {condition} THEN {self._swapped(value, used, spell)} ELSE {otherwise} END"

    def _swapped(self, value: str, used: Sequence[Pattern], spell: Callable[[str], str]) -> str:
        """Every second piece between two marks is a word. (A MAP costs a hundred times as much as a CASE.)"""
        swaps = [(spell(word), spell(self._words[word])) for pattern in used for word in pattern.names]
        if not swaps:
            return value
        other = f"CASE p {' '.join(f'WHEN {_quoted(word)} THEN {_quoted(form)}' for word, form in swaps)} ELSE p END"
        return (
            f"array_to_string(list_transform(string_split({self._marked(value, used, spell)}, '{_MARK}'),"
            f" lambda p, i: CASE WHEN i % 2 = 0 THEN {other} ELSE p END), '')"
        )

    def _marked(self, value: str, used: Sequence[Pattern], spell: Callable[[str], str]) -> str:
        for pattern in (*self._masks_first, *used):
            expression = pattern.text if spell is str else pattern.json
            for _ in range(2):
                value = f"regexp_replace({value}, '{expression}', '\\1{_MARK}\\2{_MARK}\\3', 'g')"
        return value

    def rows(self, dataset: Dataset, rows: str, mentions: str = "TRUE") -> str:
        """SELECT of the stored columns of `rows`, translated. `prepare` must have been called for these rows.

        `mentions`: SQL condition on a row without which its texts need no look. All texts of a row are translated as
        one and then taken apart: a statement with the patterns in every column would take longer to plan than to run.
        """
        texts, jsons = text_columns(dataset), json_columns(dataset)
        user = next(name for name, _ in dataset.stored if name in USER)
        columns = ", ".join(self._column(name, texts, jsons) for name, _ in dataset.stored)
        files = "LEFT JOIN work.file_forms AS f ON source_file = f.name" if dataset.has_type_partition else ""
        if self._words:
            parts = [f"string_split({self.text('texts', 'NULL')}, '{_SEPARATOR}') AS text_parts"]
            parts += [f"string_split({self.json('jsons', 'NULL')}, '{_SEPARATOR}') AS json_parts"] if jsons else []
            whole = [f"CASE WHEN {mentions} THEN {together(texts)} END AS texts"]
            whole += [f"CASE WHEN {mentions} THEN {together(jsons)} END AS jsons"] if jsons else []
            rows = f"SELECT *, {', '.join(parts)} FROM (SELECT *, {', '.join(whole)} FROM ({rows}))"
        return f"""SELECT {columns} FROM ({rows}) AS r
            LEFT JOIN work.user_forms AS u ON {user} = u.name {files}"""

    def _column(self, name: str, texts: Sequence[str], jsons: Sequence[str]) -> str:
        if name in USER:
            return f'coalesce(u.other, {name}) AS "{name}"'
        if name == "source_file":
            return "coalesce(f.other, source_file) AS source_file"
        if not self._words or name not in (*texts, *jsons):
            return f'r."{name}"'
        parts, columns = ("json_parts", jsons) if name in jsons else ("text_parts", texts)
        stays = f'"{name}" IS NULL OR {parts} IS NULL' + (f" OR {_is_program(name)}" if name in PROGRAM else "")
        return f'CASE WHEN {stays} THEN "{name}" ELSE {parts}[{columns.index(name) + 1}] END AS "{name}"'


def _json_hit(value: str, searched: Sequence[Pattern]) -> str:
    return Search(searched).is_hit(_EMPTY, value)


def _is_part_of_mask(word: str) -> bool:
    return any(re.fullmatch(r"(?i)user|[0-9a-f]{16}", run) for run in re.findall(r"[^\W_]+", word))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
