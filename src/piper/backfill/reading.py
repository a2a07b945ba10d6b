"""Reading: raw lines, of spool files from their beginning or of quarantine records, into the workbench.

The tailer is not touched: these are looks of their own at the same files. A cut last line is left to the tailer, and so
is what it has not come to yet, and a file that is not what it read there; NUL bytes are believed once the file has
rested for NUL_REST_SECONDS.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import duckdb
import numpy as np
import orjson
import pyarrow as pa

from piper.backfill.scope import Scope, in_order
from piper.backfill.workbench import Workbench
from piper.errors import PiperError
from piper.events.parse import Lines, split
from piper.events.quarantine import Rejection, rejection_of
from piper.files import sql_literal
from piper.silver.commit import REJECTION_KEY
from piper.spool.discover import scan_spool
from piper.spool.identity import Checkpoint, Source, display_path, guard_holds, head_holds
from piper.spool.open import look_at, open_to_read
from piper.spool.tail import SLICE_LINES_MAX
from piper.spool.turn import SAMPLE_BYTES, Limits, Outcome, Skip, Span, take_turn
from piper.upkeep import Hands
from piper.writer import Writer

STEP_SECONDS = 2.0
SLICE_BYTES = 8 * 1024 * 1024
FILES_AT_ONCE = 500
"""Files that are asked for at a time."""
NUL_REST_SECONDS = 60.0
RECORD_BYTES_MAX = 1 << 24
"""A quarantine record is longer than its line: it may spell every byte with six."""
PLACE_BITS = 40
"""An ordinal is the place of the file and, in so many bits, the offset of the line."""
UNREAD = Checkpoint(0, 0, b"", 0, b"", 0)
_CHECKPOINT = pa.struct(
    [
        ("offset", pa.int64()),
        ("lines", pa.int64()),
        ("head", pa.binary()),
        ("head_bytes", pa.int64()),
        ("guard", pa.binary()),
        ("guard_bytes", pa.int64()),
    ]
)
_READ_ON = {Outcome.READ, Outcome.IDLE, Outcome.NUL}


@dataclass(slots=True)
class Candidate:
    """A file to be read. `taken`: how far the tailer has read it, None: no tailer reads it."""

    path: bytes
    size: int
    taken: Checkpoint | None


def candidates(hands: Hands, scope: Scope, *, is_live: bool) -> list[Candidate]:
    """The present spool files that can hold events of these days, in order. Raises PiperError without a spool.

    `is_live`: a tailer reads the same files now, and what it has not taken yet is left to it.
    """
    scan = scan_spool(os.fspath(hands.writer.settings.paths.raw_root))
    if scan.root_error:
        raise PiperError(
            f"the spool cannot be read: {scan.root_error}",
            hint="Check the mount and its permissions, or set paths.raw_root (--raw-root DIR).",
        )
    chosen = {path: status for path, status in scan.files.items() if scope.can_hold(path, status)}
    taken = hands.in_writer(_taken) if is_live else None
    found = []
    for path in in_order(chosen):
        status = chosen[path]
        at = None if taken is None else taken.get((path, status.st_ino), UNREAD)
        found.append(Candidate(path, status.st_size, at))
    return found


def _taken(writer: Writer) -> dict[tuple[bytes, int], Checkpoint]:
    """How far the tailer is in each file."""
    return {(source.path, source.inode): source.checkpoint for source in writer.tailer.sources}


# ---- spool files -----------------------------------------------------------------------------------------------------


def plan_files(bench: Workbench, files: Sequence[Candidate]) -> None:
    """Note what is to be read."""
    table = pa.table(
        {
            "place": pa.array(range(len(files)), pa.int64()),
            "path": pa.array([file.path for file in files], pa.binary()),
            "size_bytes": pa.array([file.size for file in files], pa.int64()),
            "taken": pa.array([asdict(file.taken) if file.taken else None for file in files], _CHECKPOINT),
        }
    )
    bench.con.register("planned", table)
    try:
        bench.con.execute("INSERT INTO bench.files SELECT *, FALSE FROM planned")
    finally:
        bench.con.unregister("planned")


def index_quarantine(bench: Workbench, hands: Hands) -> None:
    """Note what is in quarantine now, in the caller's transaction."""
    hands.in_writer(Writer.export_quarantine)
    bench.con.execute("DELETE FROM bench.quarantined")
    root = hands.writer.store.layout.quarantine
    known = hands.con.execute("SELECT path FROM ingest_manifest.main.quarantine_files ORDER BY path").fetchall()
    for (name,) in known:
        path = root / name
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            continue
        bench.con.execute(
            f"""INSERT INTO bench.quarantined
            SELECT {REJECTION_KEY}, ?, CAST(TRY_CAST(quarantined_at_utc AS TIMESTAMP) AS DATE), reason, source_file,
                source_offset, raw_md5
            FROM read_json('{sql_literal(path)}', format = 'newline_delimited', ignore_errors = true,
                columns = {{quarantined_at_utc: 'VARCHAR', source_file: 'VARCHAR', source_offset: 'BIGINT',
                    reason: 'VARCHAR', raw_md5: 'VARCHAR'}},
                maximum_object_size = {min(max(size, 1024), RECORD_BYTES_MAX)})
            WHERE raw_md5 IS NOT NULL AND quarantined_at_utc IS NOT NULL""",
            [name],
        )


def read_some(bench: Workbench, hands: Hands) -> list[str]:
    """Read files for STEP_SECONDS; returns those that could not be read to their end (as display paths)."""
    started = time.monotonic()
    reader = _Reader(bench, hands)
    bench.con.execute(  # what a step has left that died on its way through a file
        f"""DELETE FROM bench.staged
        WHERE ordinal >> {PLACE_BITS} IN (SELECT place FROM bench.files WHERE NOT is_read)"""
    )
    files = bench.rows(
        "SELECT place, path, taken FROM bench.files WHERE NOT is_read ORDER BY place LIMIT ?", [FILES_AT_ONCE]
    )
    for place, path, taken in files:
        reader.read(place, path, Checkpoint(**taken) if taken else None)
        if time.monotonic() - started >= STEP_SECONDS:
            break
    reader.flush()
    return reader.unreadable


class _Reader:
    """Gathers slices of several files; a file is done when all of its lines are in the workbench."""

    def __init__(self, bench: Workbench, hands: Hands) -> None:
        self._bench, self._hands = bench, hands
        writer = hands.writer
        self._root = os.fsencode(writer.settings.paths.raw_root)
        line_bytes_max = writer.settings.ingest.line_bytes_max
        self._limits = Limits(max(SLICE_BYTES, 2 * line_bytes_max), line_bytes_max)
        self._spans: list[Span] = []
        self._skips: list[Skip] = []
        self._places: dict[str, int] = {}
        self._finished: list[int] = []
        self._bytes = self._lines = 0
        self.unreadable: list[str] = []

    def read(self, place: int, path: bytes, taken: Checkpoint | None) -> None:
        """Take a file in."""
        self._places[display_path(path)] = place
        for piece in self._pieces(path, taken):
            if isinstance(piece, Skip):
                self._skips.append(piece)
                continue
            self._spans.append(piece)
            self._bytes += len(piece.data)
            self._lines += piece.lines
            if self._bytes >= SLICE_BYTES or self._lines >= SLICE_LINES_MAX:
                self.flush()
        self._finished.append(place)

    def flush(self) -> None:
        """Parse what was gathered."""
        self._hands.check()
        if self._spans or self._skips:
            parse_into(self._bench, self._hands, self._spans, self._skips, self._places, self._finished)
        elif self._finished:
            _finish(self._bench, self._finished)
        self._spans, self._skips, self._finished, self._bytes, self._lines = [], [], [], 0, 0

    def _pieces(self, path: bytes, taken: Checkpoint | None) -> Iterator[Span | Skip]:
        """Complete lines from the beginning, as far as they are `taken`; and what is no line."""
        try:
            status = look_at(self._root, path)
        except (FileNotFoundError, NotADirectoryError):
            return
        source = Source(path=path, device=status.st_dev, inode=status.st_ino)
        at: Checkpoint | None = None
        limit = taken.offset if taken else None
        while limit is None or (at.offset if at else 0) < limit:
            turn = take_turn(self._root, source, at, self._limits)
            if turn.outcome not in _READ_ON:
                if turn.outcome is not Outcome.GONE:
                    self.unreadable.append(display_path(path))
                return
            # What was just read, and each later turn goes on from; asked now, so it was no other file before.
            if at is None and taken and not self._is_as_taken(path, taken):
                return
            if turn.span is not None:
                yield _cut(turn.span, limit)
            if turn.skip is not None:
                yield turn.skip
            at = turn.checkpoint or at
            rested = self._hands.writer.clock.utc() - status.st_mtime >= NUL_REST_SECONDS
            if turn.outcome is Outcome.NUL and rested and source.nul_until < source.size:
                source.nul_until = source.size
            elif not turn.more:
                return

    def _is_as_taken(self, path: bytes, taken: Checkpoint) -> bool:
        """Whether the file is what the tailer has read: an inode, and a name, can be another file's by now."""
        try:
            fd = open_to_read(self._root, path)
        except OSError:
            return False
        try:
            return head_holds(fd, taken) and guard_holds(fd, taken)
        except OSError:
            return False
        finally:
            os.close(fd)


def _cut(span: Span, limit: int | None) -> Span:
    """The lines that begin before `limit`."""
    if limit is None or span.start_offset + len(span.data) <= limit:
        return span
    ends = span.ends[: np.searchsorted(span.ends, limit - span.start_offset) + 1]
    return replace(span, data=span.data[: int(ends[-1])], ends=ends)


# ---- into the workbench ----------------------------------------------------------------------------------------------


def parse_into(
    bench: Workbench,
    hands: Hands,
    spans: Sequence[Span],
    skips: Sequence[Skip],
    places: dict[str, int],
    finished: Sequence[int],
) -> None:
    """Parse lines of files by `places`, and put them into the workbench together with which files are `finished`."""
    lines = split(spans)
    bench.parser.begin()
    rejections = bench.parser.add(lines, hands.writer.clock.now()).result()
    rejections += [rejection_of(skip) for skip in skips]
    passing = _passing(bench, lines)
    con = bench.con
    con.register("places", pa.table({"source_file": list(places), "place": pa.array(places.values(), pa.int64())}))
    try:
        with bench.transaction():
            con.execute(
                f"""INSERT INTO bench.staged
                SELECT (place << {PLACE_BITS}) + source_offset, key, p.* EXCLUDE (line_index, key)
                FROM work.parsed AS p JOIN places USING (source_file) WHERE verdict IS NULL"""
            )
            insert_rejected(con, rejections)
            con.register("passing_now", passing)
            con.execute("INSERT INTO bench.passing FROM passing_now")
            _mark(con, finished)
    finally:
        con.unregister("places")
        con.unregister("passing_now")


def _passing(bench: Workbench, lines: Lines) -> pa.Table:
    """The records of those accepted lines that are in quarantine, by content and place."""
    found = bench.con.execute(
        """SELECT line_index, raw_md5, q.key::VARCHAR AS key, file, day, reason, event_date
        FROM work.parsed JOIN bench.quarantined AS q USING (source_file, source_offset) WHERE verdict IS NULL"""
    ).to_arrow_table()
    places = zip(found["line_index"].to_numpy(), found["raw_md5"].to_pylist(), strict=True)
    same = [raw_md5 in _sums(lines.raw(int(index))) for index, raw_md5 in places]
    return found.drop_columns(["line_index", "raw_md5"]).filter(pa.array(same, pa.bool_()))


def _sums(raw: bytes) -> set[str]:
    """The md5 that a quarantine record of this line has; of an over-long one only the beginning was kept."""
    return {hashlib.md5(kept, usedforsecurity=False).hexdigest() for kept in (raw, raw[:SAMPLE_BYTES])}


def insert_rejected(con: duckdb.DuckDBPyConnection, rejections: Sequence[Rejection]) -> None:
    """Note lines that are no events."""
    if not rejections:
        return
    table = pa.table(
        {
            "reason": [r.reason.value for r in rejections],
            "field": [r.field for r in rejections],
            "source_file": [r.source_file for r in rejections],
            "source_offset": pa.array([r.source_offset for r in rejections], pa.int64()),
            "source_line": pa.array([r.source_line for r in rejections], pa.int64()),
            "raw": pa.array([r.raw for r in rejections], pa.binary()),
            "raw_bytes": pa.array([r.raw_bytes for r in rejections], pa.int64()),
            "event_id": pa.array([_event_id(r.raw) for r in rejections], pa.string()),
        }
    )
    con.register("new_rejected", table)
    try:
        con.execute("INSERT INTO bench.rejected FROM new_rejected")
    finally:
        con.unregister("new_rejected")


def _event_id(raw: bytes) -> str | None:
    """The event that a rejected line would be, if it says so."""
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    event_id = found.get("event_id") if isinstance(found, dict) else None
    return event_id if isinstance(event_id, str) else None


def _finish(bench: Workbench, finished: Sequence[int]) -> None:
    with bench.transaction():
        _mark(bench.con, finished)


def _mark(con: duckdb.DuckDBPyConnection, finished: Sequence[int]) -> None:
    if finished:
        con.execute("UPDATE bench.files SET is_read = TRUE WHERE place IN (SELECT unnest(?::BIGINT[]))", [finished])


def read_bytes(bench: Workbench) -> tuple[int, int]:
    """(bytes of the files that were read, bytes of all)."""
    [(done, total)] = bench.rows(
        """SELECT coalesce(sum(size_bytes) FILTER (is_read), 0)::BIGINT, coalesce(sum(size_bytes), 0)::BIGINT
        FROM bench.files"""
    )
    return done, total


def bench_path(hands: Hands, name: str) -> Path:
    """Where a workbench lies."""
    return hands.writer.store.layout.state / name
