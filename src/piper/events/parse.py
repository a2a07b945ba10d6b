"""Parse: spans of bytes become rows of the table `parsed`, or rejections.

Vectorised throughout: newlines are found by NumPy, the lines reach DuckDB as an Arrow column over the very bytes that
were read, and one SQL statement decides validity, reason and envelope. Python touches single lines only when they fail.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from queue import Queue
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from piper.events.dialects import parse_sql, shapes_sql
from piper.events.quarantine import Reason, Rejection
from piper.events.registry import EVENT_TYPES
from piper.prepared import Prepared
from piper.spool.identity import display_path
from piper.spool.turn import Span

ROWS_PER_RECORD_BATCH = 2048
"""Arrow record batches are DuckDB's unit of parallel work."""
SHAPES_MAX = 10_000
"""Shapes of events that are remembered from batch to batch. A studio has hundreds; a spool can make up any number."""
IntArray = npt.NDArray[np.int64]


_BEFORE_VALUE, _FIRST_LETTER, _SECOND_LETTER, _BEFORE_CLOSE, _CLOSE, _ANY = 1, 2, 4, 16, 32, 64
"""Of two bits that are to meet, the one of the next byte is the higher, and that of the byte after it higher by two."""


def _byte_classes() -> bytes:
    """A translation table: which part each byte can play where DuckDB's reader is laxer than RFC 8259."""
    classes = bytearray([_ANY]) * 256
    for members, bit in (
        (b":,[ \t\r\n-", _BEFORE_VALUE),
        (b"nNiI", _FIRST_LETTER),
        (b"aAnN", _SECOND_LETTER),
        (b", \t\r", _BEFORE_CLOSE),
        (b"}]", _CLOSE),
    ):
        for byte in members:
            classes[byte] |= bit
    return bytes(classes)


_CLASSES = _byte_classes()
_BLOCK_BYTES = 1 << 17
"""Small enough for the working set of a step to stay in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Lines:
    """The lines of some spans: where each begins and ends in `data`, and of which file it is."""

    files: Sequence[str]
    """Of each span, the name that `source_file` shows."""
    data: bytes
    starts: IntArray
    ends: IntArray
    span_of: IntArray
    offsets: IntArray
    numbers: IntArray

    def raw(self, index: int) -> bytes:
        """Line `index` without its newline."""
        return self.data[int(self.starts[index]) : int(self.ends[index]) - 1]

    def reject(self, index: int, reason: Reason, field: str = "", sample_bytes: int | None = None) -> Rejection:
        """The rejection of line `index`."""
        raw = self.raw(index)
        path = self.files[int(self.span_of[index])]
        return Rejection(
            reason, field, path, int(self.offsets[index]), int(self.numbers[index]), raw[:sample_bytes], len(raw)
        )


class Parser:
    """Fills the tables `parsed` and `shapes` of the in-memory database `work`.

    `parsed` has the columns of sql/parse.sql, accepted and rejected lines alike; `line_index` counts through a whole
    batch. Slices are parsed side by side, one core each: DuckDB itself would use one core for a scan of this size.
    Everything but that belongs to the writer's thread. `cursors` are the parser's own connections to the same instance,
    one a slice.
    """

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        cursors: Sequence[duckdb.DuckDBPyConnection],
        *,
        line_bytes_max: int,
        sample_bytes: int,
    ) -> None:
        self._con, self._prepared = con, Prepared(con)
        self._line_bytes_max, self._sample_bytes = line_bytes_max, sample_bytes
        self._next_index = self._shapes = 0
        self._idle: Queue[tuple[duckdb.DuckDBPyConnection, Prepared]] = Queue()
        self._pool = ThreadPoolExecutor(len(cursors), "piper-parse")
        self.slices_at_once = len(cursors)
        self._create_tables()
        for cursor in cursors:
            self._idle.put((cursor, Prepared(cursor)))

    def close(self) -> None:
        """Wait for slices under way and give up the threads and connections."""
        self._pool.shutdown()
        while not self._idle.empty():
            self._idle.get()[0].close()

    def begin(self) -> None:
        """Start a new batch: forget the rows of the last one. Shapes are kept, for they come again and again."""
        if not self._next_index:
            return  # there was none
        self._prepared.execute("TRUNCATE work.parsed")
        with suppress(duckdb.TransactionException):  # somebody else is at it: the next batch does it
            self._con.execute("CHECKPOINT work")  # else the rows that TRUNCATE deletes stay in memory for ever
        if self._shapes > SHAPES_MAX:
            self._prepared.execute("TRUNCATE work.shapes")
            self._shapes = 0
        self._next_index = 0

    def add(self, lines: Lines, received_at: datetime) -> Future[list[Rejection]]:
        """Begin to parse `lines` into `parsed`; the future gives those that are no events. `received_at`: naive UTC."""
        first, self._next_index = self._next_index, self._next_index + len(lines.starts)
        return self._pool.submit(self._parse, lines, first, received_at)

    def finish(self) -> None:
        """After the last slice: check each shape of events that is new against the registry."""
        is_new = "shape IS NOT NULL AND shape NOT IN (SELECT shape FROM shapes)"
        new = self._prepared.execute(f"SELECT count(DISTINCT shape) FROM parsed WHERE {is_new}").fetchone()
        if new is not None and new[0]:
            self._shapes += new[0]
            self._prepared.execute(f"INSERT INTO work.shapes FROM ({shapes_sql()}) WHERE {is_new}")

    def _create_tables(self) -> None:
        con = self._con
        entries = ", ".join(f"('{entry.name}', '{entry.group}', '{entry.dataset}')" for entry in EVENT_TYPES.values())
        con.execute(
            f"CREATE OR REPLACE TABLE work.registry AS FROM (VALUES {entries}) AS r (event_type, event_group, dataset)"
        )
        con.register("lines", self._table(split([]), np.empty(0, dtype=bool), 0))
        con.execute(f"CREATE OR REPLACE TABLE work.parsed AS {parse_sql()}", {"received_at": datetime(1970, 1, 1)})  # noqa: DTZ001
        con.execute(f"CREATE OR REPLACE TABLE work.shapes AS {shapes_sql()}")
        con.unregister("lines")

    def _parse(self, lines: Lines, first: int, received_at: datetime) -> list[Rejection]:
        rejections, bad = self._screen(lines)
        con, prepared = self._idle.get()
        try:
            with prepared.given("lines", self._table(lines, bad, first)):
                prepared.execute(f"INSERT INTO work.parsed {parse_sql()}", received_at=received_at)
            rows = prepared.execute(
                """SELECT line_index, verdict FROM work.parsed
                WHERE verdict <> 'blank:' AND line_index >= $first AND line_index < $last""",
                first=first,
                last=first + len(lines.starts),
            ).fetchall()
        finally:
            self._idle.put((con, prepared))
        for index, verdict in rows:
            reason, _, field = verdict.partition(":")
            rejections.append(lines.reject(index - first, Reason(reason), field))
        return rejections

    def _screen(self, lines: Lines) -> tuple[list[Rejection], npt.NDArray[np.bool_]]:
        """Lines that may not reach SQL: over the limit, or not UTF-8 (a single one would fail the whole query)."""
        bad = (lines.ends - lines.starts - 1) > self._line_bytes_max
        rejections = [
            lines.reject(int(i), Reason.LINE_TOO_LONG, sample_bytes=self._sample_bytes) for i in np.flatnonzero(bad)
        ]
        for index in _not_utf8(lines):
            if not bad[index]:
                bad[index] = True
                rejections.append(lines.reject(index, Reason.INVALID_UTF8))
        return rejections, bad

    def _table(self, lines: Lines, bad: npt.NDArray[np.bool_], first: int) -> pa.Table:
        count = len(lines.starts)
        text = _line_column(lines, bad)
        good = slice(None) if not bad.any() else ~bad
        columns = {
            "line_index": np.arange(first, first + count)[good],
            "line": text,
            "suspicious": suspicious_lines(lines)[good],
            "source_file": pa.DictionaryArray.from_arrays(
                lines.span_of[good].astype(np.int32), pa.array(lines.files, pa.string())
            ),
            "source_offset": lines.offsets[good],
            "source_line": lines.numbers[good],
        }
        table = pa.table(columns)
        return pa.Table.from_batches(table.to_batches(max_chunksize=ROWS_PER_RECORD_BATCH), schema=table.schema)


def split(spans: Sequence[Span]) -> Lines:
    """Put the lines of `spans` one behind the other: no object a line."""
    data = b"".join(span.data for span in spans)
    counts = np.array([span.lines for span in spans], dtype=np.int64)
    sizes = np.array([len(span.data) for span in spans], dtype=np.int64)
    span_of = np.repeat(np.arange(len(spans)), counts)
    data_at = np.cumsum(sizes) - sizes
    line_at = np.cumsum(counts) - counts
    ends = np.concatenate([np.empty(0, np.int64), *(span.ends for span in spans)]) + data_at[span_of]
    starts = np.concatenate([np.zeros(min(1, len(ends)), np.int64), ends[:-1]])
    first_offset = np.array([span.start_offset for span in spans], dtype=np.int64)
    first_line = np.array([span.start_line for span in spans], dtype=np.int64)
    offsets = starts - data_at[span_of] + first_offset[span_of]
    numbers = np.arange(len(starts)) - line_at[span_of] + first_line[span_of]
    files = [display_path(span.source.path) for span in spans]
    return Lines(files, data, starts, ends, span_of, offsets, numbers)


def _line_column(lines: Lines, bad: npt.NDArray[np.bool_]) -> pa.Array[Any]:
    """The lines as an Arrow string column, newline included (it is white space to JSON), sharing the read buffer."""
    offsets = np.zeros(len(lines.ends) + 1, dtype=np.int32)
    offsets[1:] = lines.ends
    buffers = [None, pa.py_buffer(offsets.data), pa.py_buffer(lines.data)]
    if not bad.any():
        return pa.Array.from_buffers(pa.string(), len(lines.ends), buffers)
    return pa.Array.from_buffers(pa.binary(), len(lines.ends), buffers).filter(pa.array(~bad)).cast(pa.string())


def suspicious_lines(lines: Lines) -> npt.NDArray[np.bool_]:
    """Which lines need a closer look at their JSON: those with neighbouring bytes that a laxity needs.

    A value that begins with nan or inf in any case, or a bracket closed after a comma or white space.
    """
    flags = np.zeros(len(lines.ends), dtype=np.bool_)
    flags[:1] = True  # the first line has no byte before it
    data = np.frombuffer(lines.data, dtype=np.uint8)
    for start in range(0, len(data), _BLOCK_BYTES):
        block = lines.data[start : start + _BLOCK_BYTES + 2].translate(_CLASSES)
        classes = np.frombuffer(block, dtype=np.uint8)
        hits = (classes[1:-1] >> 1) & classes[:-2]  # the last byte of all is a line's end and begins nothing
        hits &= classes[2:] >> 2
        found = np.flatnonzero(hits)
        if len(found):
            at = found + start + 1
            is_close = hits[found] & _BEFORE_CLOSE > 0
            first, third = data[at] | 0x20, data[np.minimum(at + 2, len(data) - 1)] | 0x20  # in lower case
            is_word = third == np.where(first == ord("n"), ord("n"), ord("f"))
            flags[np.searchsorted(lines.ends, at[is_close | is_word], side="right")] = True
    return flags


def _not_utf8(lines: Lines) -> list[int]:
    """Indexes of the lines that are not UTF-8: one pass over the bytes, and line by line only where that fails."""
    if is_utf8(lines.data) or not len(lines.starts):
        return []
    high = np.frombuffer(lines.data, dtype=np.uint8) >= 0x80
    suspects = np.flatnonzero(np.logical_or.reduceat(high, lines.starts))
    return [index for index in suspects.tolist() if not is_utf8(lines.raw(index))]


def is_utf8(data: bytes) -> bool:
    """Whether it can be decoded, which is done block by block, and only where it is more than ASCII."""
    if data.isascii():
        return True
    view, at = memoryview(data), 0
    while at < len(data):
        block = view[at : at + _BLOCK_BYTES]
        try:
            at += codecs.utf_8_decode(block, "strict", at + len(block) == len(data))[1]
        except UnicodeDecodeError:
            return False
    return True
