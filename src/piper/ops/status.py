"""Where a warehouse stands, for `piper status` and `piper doctor`: the daemon's word, or that of a manifest at rest.

`collect_status` is what the daemon answers; it adds `state`, `pid`, `uptime_seconds` and `problems` (why not ready).
Without a daemon `read_status` gives the same keys from the manifest, opened read-only, and from the spool's directory
entries. Nothing is created or changed. Times are ISO 8601 in UTC, sizes bytes; what cannot be known is None.
"""

from __future__ import annotations

import os
import platform
import shutil
import stat
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from piper import __version__
from piper.errors import ManifestNewerError, PiperError, WriterLockedError
from piper.gold.store import ALIAS, WATERMARK_TABLE
from piper.layout import Layout
from piper.ops.backlog import Unread, by_host, total
from piper.ops.control import DaemonNotRunningError, ask
from piper.ops.metric_list import ERRNOS, FILE_EVENTS
from piper.settings import Settings
from piper.silver import schema
from piper.silver.diagnosis import translate
from piper.silver.masking import read_state
from piper.silver.segments import segments_in
from piper.silver.store import utc_now
from piper.spool.discover import scan_spool
from piper.spool.identity import display_path
from piper.spool.open import open_to_read
from piper.writer import Writer

LOOKS_MAX = 1000
"""Files that are opened to tell a cut last line from unread lines; where more have grown, all counts as unread."""
NAMED_MAX = 10
MASKING_VERSION = 2
"""Older manifests know nothing of masking."""
ASK_SECONDS = 15.0
"""How long a daemon may take to answer: it answers between two steps, and a seal of a full batch takes seconds."""

GROWTH_DAYS = 14
"""Two whole weeks: weekends count as often as they come."""


class NotInitialisedError(PiperError):
    """There is no warehouse at the data root yet."""


def collect_status(writer: Writer) -> dict[str, Any]:
    """What the writer knows. Call it in the writer's thread, between two steps: the tailer belongs to that thread."""
    waiting = [
        Unread(display_path(source.path), source.unread_bytes, seconds) for source, seconds in writer.tailer.waiting()
    ]
    error = writer.tailer.spool_error
    return {
        **_head(writer.settings, writer.store.layout),
        "spool": {
            "reachable": not error,
            "error": error,
            **total(waiting),
            "lost_bytes": int(writer.metrics.registry.get_sample_value("piper_lost_bytes_total") or 0),
            "unreadable": [display_path(path) for path in writer.tailer.unreadable[:NAMED_MAX]],
            "unreadable_files": len(writer.tailer.unreadable),
            "special_files": writer.tailer.special,
            "file_events": _counted(writer, "piper_file_events_total", "kind", FILE_EVENTS),
            "errors": _counted(writer, "piper_spool_errors_total", "errno", ERRNOS),
            "old_events": int(writer.metrics.registry.get_sample_value("piper_old_events_total") or 0),
        },
        "hosts": by_host(waiting),
        "rates": writer.pace.rates(),
        **_stored(writer.store.con, with_gold=True),
    }


def _counted(writer: Writer, name: str, label: str, values: Sequence[str]) -> dict[str, int]:
    """Those of a counter's series that are not 0."""
    counts = {value: writer.metrics.registry.get_sample_value(name, {label: value}) for value in values}
    return {value: int(count) for value, count in counts.items() if count}


def read_status(settings: Settings) -> dict[str, Any]:
    """The status, from whoever can tell it. Raises NotInitialisedError, and PiperError where nobody can tell.

    `state` is the daemon's own word, or `stopped`, or `busy` where another piper holds the manifest (`holder`: who).
    """
    layout = Layout.of(settings)
    try:
        answer = ask(layout.control_socket, "status", {}, timeout_seconds=ASK_SECONDS)
        return {"state": "running", **_head(settings, layout), **answer}
    except DaemonNotRunningError:
        pass  # the usual case of a warehouse at rest: what follows looks for itself
    if not layout.manifest.exists():
        if layout.catalog.exists():
            raise PiperError(
                f"the ingest manifest {layout.manifest} is missing, although there is a warehouse",
                hint="Check paths.state_root and its mount. If it is really lost, run `piper rebuild`.",
            )
        raise NotInitialisedError(f"there is no warehouse at {layout.data_root}", hint="Run `piper init` to make one.")
    try:
        return {"state": "stopped", **_read_manifest(settings, layout)}
    except WriterLockedError as error:
        return {"state": "busy", "holder": error.holder, **_head(settings, layout)}


def _head(settings: Settings, layout: Layout) -> dict[str, Any]:
    paths = settings.paths
    usage = shutil.disk_usage(layout.data_root)
    return {
        "version": __version__,
        "paths": {
            "raw_root": str(paths.raw_root), "data_root": str(paths.data_root), "state_root": str(paths.state_root),
        },
        "disk": {"free_bytes": usage.free, "size_bytes": usage.total},
        "versions": {"piper": __version__, "duckdb": duckdb.__version__, "python": platform.python_version()},
        "last_publish_utc": _published(layout),
    }  # fmt: skip


def _published(layout: Layout) -> str | None:
    """When the tail that readers see was swapped in."""
    try:
        newest = segments_in(layout.tail)[-1]
        return _iso(datetime.fromtimestamp(newest.stat().st_mtime, UTC).replace(tzinfo=None))
    except (OSError, IndexError):
        return None


def _read_manifest(settings: Settings, layout: Layout) -> dict[str, Any]:
    try:
        with duckdb.connect(str(layout.manifest), read_only=True) as con:
            con.execute("SET TimeZone = 'UTC'")
            version = schema.stored_version(con)
            if version > schema.VERSION:
                raise ManifestNewerError(
                    f"the ingest manifest {layout.manifest} has schema version {version}, this piper knows up to"
                    f" {schema.VERSION}",
                    hint="Install the piper that wrote it, or a newer one.",
                )
            spool, hosts = _look_at_spool(settings.paths.raw_root, con)
            return {
                **_head(settings, layout),
                "spool": spool,
                "hosts": hosts,
                "rates": None,
                **_stored(con, with_gold=_attach_gold(con, layout)),
            }
    except duckdb.Error as error:
        raise translate(error, layout.manifest) from error


def _attach_gold(con: duckdb.DuckDBPyConnection, layout: Layout) -> bool:
    """Whether the gold state could be opened; where it cannot, the next writer makes it anew."""
    try:
        con.execute(f"ATTACH '{_literal(layout.gold_state)}' AS {ALIAS} (READ_ONLY)")
    except duckdb.Error:
        return False
    return True


def _stored(con: duckdb.DuckDBPyConnection, *, with_gold: bool) -> dict[str, Any]:
    """What the manifest holds, and the gold database that is attached to it."""
    progress = _one(
        con,
        """SELECT commit_seq, sealed_through, committed_at_utc, sealed_at_utc, accepted, duplicates, quarantined
        FROM progress""",
    )
    files, vanished, doubtful = _one(
        con, "SELECT count(*) FILTER (NOT vanished), count(*) FILTER (vanished), count(doubt) FROM sources"
    )
    reasons = con.execute(
        "SELECT reason, sum(lines)::BIGINT FROM quarantine_counts GROUP BY reason ORDER BY 2 DESC, 1"
    ).fetchall()
    today = con.execute(
        "SELECT reason, lines FROM quarantine_counts WHERE quarantine_date = ? ORDER BY 2 DESC, 1", [utc_now().date()]
    ).fetchall()
    marks = con.execute(f"SELECT model, refreshed_at_utc FROM {WATERMARK_TABLE}").fetchall() if with_gold else []
    return {
        "commits": {
            "commit_seq": progress[0], "sealed_through": progress[1], "last_commit_utc": _iso(progress[2]),
            "last_seal_utc": _iso(progress[3]),
        },
        "events": {"accepted": progress[4], "duplicates": progress[5], "quarantined": progress[6]},
        "quarantined_by_reason": dict(reasons),
        "quarantined_today": dict(today),
        "quarantined_pending": _one(con, "SELECT count(*) FROM rejections")[0],
        "files": {"tracked": files, "vanished": vanished, "doubtful": doubtful},
        "tail_rows": _one(con, "SELECT count(*) FROM events_tail")[0],
        "chunks": _chunks(con),
        "gold": {model: _iso(refreshed) for model, refreshed in sorted(marks)},
        "privacy": _privacy(con),
        "schema_version": schema.stored_version(con),
    }  # fmt: skip


def _chunks(con: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """How many chunks there are, and how fast they grow: bytes a day, over the whole days of the last GROWTH_DAYS."""
    rows = con.execute(
        "SELECT dataset, count(*), sum(size_bytes)::BIGINT FROM chunks GROUP BY dataset ORDER BY dataset"
    ).fetchall()
    today = utc_now().date()
    first, recent = _one(
        con,
        "SELECT min(event_date), sum(size_bytes)::BIGINT FROM chunks WHERE event_date >= ? AND event_date < ?",
        [today - timedelta(days=GROWTH_DAYS), today],
    )
    return {
        "files": sum(row[1] for row in rows),
        "bytes": sum(row[2] for row in rows),
        "by_dataset": {dataset: files for dataset, files, _ in rows},
        "dates": _one(con, "SELECT count(DISTINCT event_date) FROM chunks")[0],
        "bytes_per_day": None if first is None else round(recent / (today - first).days),
    }


def _privacy(con: duckdb.DuckDBPyConnection) -> dict[str, Any] | None:
    """What of names is masked; None before a piper of this version has opened the manifest to write.

    `history`: pending (older rows may have the other form), cleaning (only files that queries may still read), done.
    """
    state = read_state(con) if schema.stored_version(con) >= MASKING_VERSION else None
    if state is None:
        return None
    names, unsearched = _one(con, "SELECT count(*), count(*) FILTER (NOT is_searched) FROM user_names")
    history = "pending" if state.is_pending else "done" if state.is_done else "cleaning"
    return {"mask_users": state.is_on, "history": history, "names": names, "names_not_searched": unsearched}


def _one(con: duckdb.DuckDBPyConnection, query: str, parameters: object = None) -> tuple[Any, ...]:
    row = con.execute(query, parameters).fetchone()
    assert row is not None
    return tuple(row)


def _look_at_spool(raw_root: Path, con: duckdb.DuckDBPyConnection) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What the spool holds beyond the committed offsets, without reading it (one `stat` a file): in all, by host."""
    scan = scan_spool(str(raw_root))
    known = dict(con.execute("SELECT inode, read_offset FROM sources").fetchall())
    grown = {
        path: (status, known.get(status.st_ino, 0))
        for path, status in scan.files.items()
        if status.st_size > known.get(status.st_ino, 0)
    }
    if len(grown) <= LOOKS_MAX:
        grown = {path: item for path, item in grown.items() if _has_line(os.fsencode(raw_root), path, item[1])}
    now = time.time()
    waiting = [
        Unread(display_path(path), status.st_size - offset, max(0.0, now - status.st_mtime))
        for path, (status, offset) in grown.items()
    ]
    spool = {"reachable": not scan.root_error, "error": scan.root_error, **total(waiting), "lost_bytes": None,
             "unreadable": [display_path(path) for path in sorted(scan.failed)[:NAMED_MAX]],
             "unreadable_files": len(scan.failed), "special_files": len(scan.special), "file_events": {},
             "errors": {}, "old_events": 0}  # fmt: skip
    return spool, by_host(waiting)


def _has_line(root: bytes, path: bytes, offset: int) -> bool:
    """Whether a line ends after `offset`; a file that cannot be looked at counts as unread."""
    try:
        fd = open_to_read(root, path)
    except OSError:
        return True
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return False
        data = os.pread(fd, 1 << 20, offset)
        return b"\n" in data or len(data) == 1 << 20
    except OSError:
        return True
    finally:
        os.close(fd)


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else f"{moment.isoformat(timespec='seconds')}Z"


def _literal(path: Path) -> str:
    return str(path).replace("'", "''")
