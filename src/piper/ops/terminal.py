"""What may reach a terminal: names and texts from a spool that anyone can write must not steer it.

An escape sequence in a file name could hide lines, rewrite what stands above, or set a title that a shell then reads.
"""

from __future__ import annotations

import re

_STEERS_IN_JSON = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What JSON lets through as it is: C1 controls, line separators, and what turns the direction of writing."""


def one_line(text: str) -> str:
    """`text` on one line, with a dot for every character that cannot be seen as such."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "·" for char in text)


def printable(text: str, *, keep: str = "\n") -> str:
    """`text` with every character that is not printable spelled as an escape, but those to keep."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def spelled_json(text: str) -> str:
    """The same JSON, with what could steer a terminal as \\uXXXX: such characters stand inside of strings only."""
    return _STEERS_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
