"""Real lines, mangled by chance: bytes flipped, structure moved, numbers and texts spelled otherwise.

One seed, one line. Everything comes from a seed, so that a failure comes again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from tests.support.odd_lines import DIALECTS, ODD_VALUES, TYPES, Raw, dump, full_event, odd_times, paths_of, replaced
from tests.support.parse_reference import DEEP
from tests.support.spool_run import NOW

DEPTH_MAX = 300
"""The reference is Python's json, which goes no deeper than the stack; 10,000 levels are in odd_lines."""
_STRUCTURE = b'{}[]:,"\\ \t\r0123456789-+.eEnNtTfFuUaAiIlL/\x7f\xc2\x80\xe2\x80\xa8\xef\xbb\xbf\xed\xa0\x80\xff'
_NUMBERS = (
    "0", "-0", "0.0", "-0.0", "00", "1", "1.0", "1.50", "1e0", "1E+2", "1e-2", "1.e1", ".1", "-", "+1", "1e", "1e+",
    "9007199254740993", "9223372036854775807", "9223372036854775808", "-9223372036854775809", "18446744073709551616",
    "1e308", "1e309", "-1e400", "5e-324", "1e-500", "0.1e1", "123456789.123456789", "1" * 40, "1" * 400, "1" * 5000,
    "0." + "1" * 60, "1.0000000000000000000001", "NaN", "-NaN", "Infinity", "-Infinity", "inf", "nan", "0x1", "1_0",
    "1 0", "--1", "1.5.5", "٣", "true", "null", "nul", "True",
)  # fmt: skip
_ESCAPES = (
    "\\u0000", "\\u000a", "\\u00e9", "\\u2028", "\\ud800", "\\udc00", "\\ud83d\\ude00", "\\ud83d\\u0041",
    "\\ude00\\ud83d",
    "\\u12", "\\uZZZZ", "\\U0041", "\\x41", "\\n", "\\/", "\\'", "\\", "\\\\", '\\"', "\\b\\f\\r\\t", "\x00", "\x01",
    "\x1f", "\x7f", "\x85", "\u2028", "\ufeff", "\U0001f600", "é",
)  # fmt: skip
_TIMES = list(odd_times(NOW))
_VALUES = [value for value in ODD_VALUES if not (isinstance(value, Raw) and value.text == DEEP)]


def mangled(seed: int) -> bytes:
    """A line without newline and NUL bytes: those are the tailer's business."""
    chance = random.Random(seed)
    line = _event_line(chance)
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
        line = chance.choice(_WAYS)(line, chance)
    return line.translate(None, b"\n\x00")


def _event_line(chance: random.Random) -> bytes:
    event = full_event(chance.choice(TYPES), chance.choice(DIALECTS), f"e{chance.randrange(10**6)}")
    for _ in range(chance.choice((0, 0, 1, 2))):
        path = chance.choice(paths_of(event))
        if len(path) == 1 or isinstance(event.get(path[0]), dict):
            event = replaced(event, path, chance.choice(_VALUES))
    if chance.random() < 0.1:
        event = replaced(
            event, ("occurred_at" if "occurred_at" in event else "occurred_at_utc",), chance.choice(_TIMES)
        )
    if chance.random() < 0.3:
        items = list(event.items())
        chance.shuffle(items)
        event = dict(items)
    return dump(event, chance.choice(("", "", "", " ", "\t"))).encode("utf-8", "surrogatepass")


def _flip_a_bit(line: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(line) or 1)
    return line[:at] + bytes(byte ^ 1 << chance.randrange(8) for byte in line[at : at + 1]) + line[at + 1 :]


def _put_a_byte(line: bytes, chance: random.Random) -> bytes:
    at, instead = chance.randrange(len(line) + 1), chance.randrange(2)
    return line[:at] + bytes([chance.choice(_STRUCTURE)]) + line[at + instead :]


def _cut_a_piece(line: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(line) + 1)
    return line[:at] + line[at + chance.choice((1, 2, 5, 50, len(line))) :]


def _repeat_a_piece(line: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(line) + 1)
    end = start + chance.choice((1, 3, 10, 100))
    return line[:end] + line[start:]


def _spell_a_number(line: bytes, chance: random.Random) -> bytes:
    return _at_a_value(line, chance, lambda: chance.choice(_NUMBERS))


def _nest_deeply(line: bytes, chance: random.Random) -> bytes:
    depth, kind = chance.randrange(1, DEPTH_MAX), chance.choice(("[]", '{"a":}', "[[]"))
    opening, closing = (kind[:-1], kind[-1:]) if kind != "[[]" else ("[", "]" * chance.randrange(2))
    inside = chance.choice(("", "1", "null")) if kind != '{"a":}' else "1"
    return _at_a_value(line, chance, lambda: opening * depth + inside + closing * depth)


def _escape_something(line: bytes, chance: random.Random) -> bytes:
    """Into a string, or where one begins: an escape, right or wrong, or a character that needs one."""
    quotes = [at for at, byte in enumerate(line) if byte == 0x22]
    if not quotes:
        return line
    at = chance.choice(quotes) + 1
    return line[:at] + chance.choice(_ESCAPES).encode("utf-8", "surrogatepass") + line[at:]


def _spell_a_character(line: bytes, chance: random.Random) -> bytes:
    """One letter as \\uXXXX: of a key, a value, or outside of both."""
    letters = [at for at, byte in enumerate(line) if chr(byte).isalpha() and byte < 0x80]
    if not letters:
        return line
    at = chance.choice(letters)
    return line[:at] + f"\\u{line[at]:04{chance.choice('xX')}}".encode() + line[at + 1 :]


def _repeat_a_key(line: bytes, chance: random.Random) -> bytes:
    """Some key of the line once more, at the beginning of some object, with some value."""
    keys = [piece.split(b'"')[-1] for piece in line.split(b'":')[:-1]]
    opens = [at for at, byte in enumerate(line) if byte == 0x7B]
    if not keys or not opens:
        return line
    at, value = chance.choice(opens) + 1, chance.choice(_VALUES)
    text = value.text if isinstance(value, Raw) else json.dumps(value)
    return line[:at] + b'"' + chance.choice(keys) + b'":' + text.encode("utf-8", "surrogatepass") + b"," + line[at:]


def _at_a_value(line: bytes, chance: random.Random, text: Callable[[], str]) -> bytes:
    """Something else where a value begins, in place of it if it is a number, in front of it if not."""
    colons = [at for at, byte in enumerate(line) if byte == 0x3A]
    if not colons:
        return line
    start = chance.choice(colons) + 1
    end = start
    while end < len(line) and line[end : end + 1] in b"0123456789.":
        end += 1
    return line[:start] + text().encode() + (line[end:] if end > start else b"," + line[start:])


_WAYS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip_a_bit, _put_a_byte, _cut_a_piece, _repeat_a_piece, _spell_a_number, _spell_a_number, _nest_deeply,
    _escape_something, _escape_something, _spell_a_character, _repeat_a_key, _repeat_a_key,
)  # fmt: skip
