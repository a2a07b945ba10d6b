"""Rejections: lines that are no events, each with its reason, kept and never dropped."""

from __future__ import annotations

import base64
import codecs
import enum
import hashlib
from dataclasses import dataclass
from datetime import datetime

import orjson

from piper.spool.identity import display_path
from piper.spool.turn import Skip


class Reason(enum.StrEnum):
    """Why a line was not accepted: a closed set, also the label values of the metrics."""

    INVALID_UTF8 = "invalid_utf8"
    INVALID_JSON = "invalid_json"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_FIELD = "missing_field"
    INVALID_FIELD = "invalid_field"
    UNSUPPORTED_SCHEMA_VERSION = "unsupported_schema_version"
    CLOCK_SKEW = "clock_skew"
    LINE_TOO_LONG = "line_too_long"
    TRUNCATED_LINE = "truncated_line"


@dataclass(frozen=True, slots=True)
class Rejection:
    """One rejected line. `raw` is the line without its newline, cut to a sample when over the limit."""

    reason: Reason
    field: str
    """Which field was wrong; empty where the reason says it all."""
    source_file: str
    source_offset: int
    source_line: int
    raw: bytes
    raw_bytes: int
    """The line's true length."""

    @property
    def raw_md5(self) -> str:
        """With source file and offset this tells whether the same line was quarantined before."""
        return hashlib.md5(self.raw, usedforsecurity=False).hexdigest()


def rejection_of(skip: Skip) -> Rejection:
    """The rejection for a stretch that the tail could not hand on as a line."""
    return Rejection(
        Reason(skip.reason), "", display_path(skip.source.path), skip.offset, skip.line, skip.sample, skip.length
    )


def record_line(
    quarantined_at: datetime, source_file: str, source_offset: int, source_line: int, reason: str, field: str,
    raw: bytes, raw_bytes: int, raw_md5: str,
) -> bytes:  # fmt: skip
    """One line of a quarantine file: JSON, UTF-8, newline at the end.

    `raw_text` holds the line; `raw_base64` instead of it when the line is not UTF-8. `raw_bytes` is its true length,
    more than what is kept when the line was cut.
    """
    record: dict[str, object] = {
        "quarantined_at_utc": quarantined_at.isoformat(timespec="milliseconds") + "Z",
        "source_file": source_file,
        "source_offset": source_offset,
        "source_line": source_line,
        "reason": reason,
        "field": field or None,
        "raw_bytes": raw_bytes,
        "raw_md5": raw_md5,
    }
    text = _text(raw, is_cut=raw_bytes > len(raw))
    if text is None:
        record["raw_base64"] = base64.b64encode(raw).decode("ascii")
    else:
        record["raw_text"] = text
    return orjson.dumps(record) + b"\n"


def _text(raw: bytes, *, is_cut: bool) -> str | None:
    """`raw` as text, None when it is not UTF-8. A character that the cut went through is left out."""
    try:
        return codecs.utf_8_decode(raw, "strict", not is_cut)[0]
    except UnicodeDecodeError:
        return None
