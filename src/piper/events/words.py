"""Words: which stretches of a text are user names, as regular expressions of RE2, which DuckDB matches.

A name is found where it stands as a whole word, in upper or lower case: no letter and no digit on either side. An
underscore, a dot, a slash or an @ is no part of a word, for artists call their files `anna_v003.ma` and their mail
`anna@studio`. In the text of a JSON value an escape (`\\n`) is one character, not a backslash and a letter.

RE2 cannot look around, so each pattern has three groups: what stands before (a character or nothing), the name, what
stands after. Two names that share the character between them are found in two passes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_WORD = r"\p{L}\p{N}"
_BEFORE_IN_TEXT = f"(^|[^{_WORD}])"
_BEFORE_IN_JSON = (
    rf'(^|[^{_WORD}\\]|(?:^|[^\\])(?:\\\\)*(?:\\\\|\\["/bfnrt]|\\u[0-9A-Fa-f]{{4}}))'  # an escape, not its second half
)
_AFTER = f"($|[^{_WORD}])"

SEARCHED_CHARS_MAX = 64
"""A longer name is replaced where it is the whole value, and not looked for inside of texts. Logins have up to 32."""
SEARCHED_NAMES_MAX = 5000
"""So many names are looked for: everyone can write to a spool, and must not be able to make piper slow at will."""
PATTERN_NAMES_MAX, PATTERN_CHARS_MAX = 400, 8000
"""RE2 gets slow by a factor of 300 when the states of a pattern no longer fit into its cache, so there are several."""


def is_searched(name: str) -> bool:
    """Whether a name can be looked for inside of texts: it has a letter or digit, and a sane length."""
    return len(name) <= SEARCHED_CHARS_MAX and "\0" not in name and any(char.isalnum() for char in name)


def in_json(text: str) -> str:
    """`text` as DuckDB spells it inside a JSON string."""
    spelled = json.dumps(text, ensure_ascii=False)[1:-1]
    return re.sub(r"\\u[0-9a-f]{4}", lambda found: "\\u" + found[0][2:].upper(), spelled)


def from_json(spelled: str) -> str:
    """The inverse of `in_json`."""
    return str(json.loads(f'"{spelled}"'))


@dataclass(frozen=True, slots=True)
class Pattern:
    """One regular expression, for texts and for JSON; group 2 is the name. SQL has to double no quote in it."""

    names: tuple[str, ...]
    text: str
    json: str


def patterns(names: Iterable[str], *, any_case: bool) -> list[Pattern]:
    """Patterns that together find `names`, which must be `is_searched`; a longer name goes before one that it holds.

    Names of several words (`anna.k`) have patterns of their own, to be used first: behind a name that took the
    character between the two (`anna/anna.k`), a part of them could be found (`k`) before they are looked for again.
    """
    ordered = sorted(set(names), key=lambda name: (-len(name), name))
    several = [name for name in ordered if not name.isalnum()]
    single = [name for name in ordered if name.isalnum()]
    return [_pattern(tuple(group), "(?i)" if any_case else "") for group in (*_groups(several), *_groups(single))]


def pattern_of(expression: str) -> Pattern:
    """The pattern of words that match a regular expression without groups."""
    return Pattern((), f"{_BEFORE_IN_TEXT}({expression}){_AFTER}", f"{_BEFORE_IN_JSON}({expression}){_AFTER}")


def _pattern(names: tuple[str, ...], flags: str) -> Pattern:
    text, spelled = ("|".join(_escaped(spell(name)) for name in names) for spell in (str, in_json))
    return Pattern(names, f"{flags}{_BEFORE_IN_TEXT}({text}){_AFTER}", f"{flags}{_BEFORE_IN_JSON}({spelled}){_AFTER}")


def _groups(names: list[str]) -> Iterator[list[str]]:
    group: list[str] = []
    chars = 0
    for name in names:
        if group and (len(group) >= PATTERN_NAMES_MAX or chars + len(name) > PATTERN_CHARS_MAX):
            yield group
            group, chars = [], 0
        group.append(name)
        chars += len(name)
    if group:
        yield group


def _escaped(text: str) -> str:
    return "".join(char if char.isascii() and char.isalnum() else f"\\x{{{ord(char):x}}}" for char in text)


def is_number_like(name: str) -> bool:
    """Whether a name can be met in JSON outside of strings: in a number, or as true, false or null."""
    runs = re.findall(r"[^\W_]+", name)
    return all(re.fullmatch(r"[0-9eE]+|true|false|null", run, re.IGNORECASE) for run in runs)


def stands_in(name: str, text: str) -> bool:
    """Whether `name` is a whole word of an ASCII text, in any case."""
    return re.search(rf"(?i)(?:^|[\W_]){re.escape(name)}(?:$|[\W_])", text) is not None
