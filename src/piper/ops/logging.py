"""Log lines: to stderr as JSON or text, and for a run that does work also as JSON to a file per run.

What can be lost: stderr gets every line at once, in the caller's thread. The run log is written by a thread
of its own, because a write to a share whose server is away can hang for minutes and must not take the
daemon with it; lines that it has not written when the process is killed are on stderr only. While the file
cannot be written (disk full, mount gone) its lines are dropped and counted, which is said on stderr once
when it starts and once when it is over. No log call fails because of a disk, or waits for that of the run
log.

`timestamp` (UTC, milliseconds), `level`, `component` and `event` come first in every line. Whatever a value
holds, names from a spool that anyone can write included, the line is valid JSON in UTF-8, or printable
text.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import re
import stat
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import NamedTuple, TextIO, cast

import orjson
import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, ExcInfo, FilteringBoundLogger, Processor, WrappedLogger

from piper.ops.terminal import printable, spelled_json

RETRY_AFTER = timedelta(seconds=60)
"""How long a run log that failed is left alone."""

_QUEUE_LINES_MAX = 10_000
_CLOSE_SECONDS = 2.0
_FRAMES_MAX = 30
_DEPTH_MAX = 8
_CHATTY = ("watchfiles", "asyncio")
"""Libraries that log each wake-up at info."""


def utc_now() -> datetime:
    """The clock of a real run."""
    return datetime.now(UTC)


def get_logger(component: str) -> FilteringBoundLogger:
    """A logger whose lines carry `component`, such as `spool.tail`. `configure_logging` may come later."""
    return cast(FilteringBoundLogger, structlog.get_logger(f"piper.{component}"))


class RunLogNotice(NamedTuple):
    """That a run log stopped or resumed being written; meant for the other place that lines go to."""

    level: int
    event: str
    details: dict[str, object]


class RunLog:
    """The files of one run: `<data_root>/run_logs/YYYY-MM-DD/<command>-<HHMMSS>Z-<pid>.jsonl`, one a UTC day.

    `clock` gives aware datetimes and decides day, name and retries. Files are 0640 in folders 0750, and
    opened with the first line. `data_root` itself is never created: where it is missing a mount is, and
    what was written below its mount point would be hidden by it. Not thread-safe; `configure_logging` gives
    it a thread.
    """

    def __init__(self, data_root: Path, command: str, clock: Callable[[], datetime] = utc_now) -> None:
        self._root = data_root
        self._command = re.sub(r"[^\w-]+", "-", command, flags=re.ASCII).strip("-") or "piper"
        self._clock = clock
        self._day: date | None = None
        self._fd: int | None = None
        self._torn = False
        self._failed_at: datetime | None = None
        self._lost = 0
        self.path: Path | None = None
        """The file of the current day; None before the first line."""

    def write(self, line: bytes) -> RunLogNotice | None:
        """Append one line, given without newline. Raises nothing: a notice tells of failure and recovery."""
        now = self._clock().astimezone(UTC)
        if self._failed_at is not None and abs(now - self._failed_at) < RETRY_AFTER:
            self._lost += 1
            return None
        try:
            fd = self._opened(now)
            # A write that was cut by a full disk left half a line, which ends here.
            self._append(fd, b"\n" + line + b"\n" if self._torn else line + b"\n")
        except OSError as error:
            return self._failed(error, now)
        return self._recovered()

    def lose(self, lines: int) -> None:
        """Count lines that never got here, for the next notice of recovery."""
        self._lost += lines

    def close(self) -> None:
        """Close the file; a later line opens it again."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            # What close reports (a quota on NFS) is about lines long counted as written: too late to act.
            with contextlib.suppress(OSError):
                os.close(fd)

    def _opened(self, now: datetime) -> int:
        if self._day != now.date() or self.path is None:
            self.close()
            self._day, self._torn = now.date(), False
            name = f"{self._command}-{now:%H%M%S}Z-{os.getpid()}.jsonl"
            self.path = self._root / "run_logs" / f"{now:%Y-%m-%d}" / name
        if self._fd is not None and os.fstat(self._fd).st_nlink == 0:  # somebody cleaned up: do not write into nowhere
            self.close()
        if self._fd is None:
            self._fd = _open_append(self.path)
        return self._fd

    def _append(self, fd: int, data: bytes) -> None:
        written = 0
        while written < len(data):
            count = os.write(fd, data[written:])
            written += count
            self._torn = written < len(data)
            if count == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(self.path))

    def _failed(self, error: OSError, now: datetime) -> RunLogNotice | None:
        first = self._failed_at is None
        self._failed_at = now
        self._lost += 1
        self.close()
        if not first:
            return None
        details = {"path": str(self.path), "error": str(error), "retry_seconds": RETRY_AFTER.total_seconds()}
        return RunLogNotice(logging.ERROR, "run log cannot be written, its lines are on stderr only", details)

    def _recovered(self) -> RunLogNotice | None:
        if not self._lost:
            return None
        details = {"path": str(self.path), "lost_lines": self._lost}
        self._failed_at, self._lost = None, 0
        return RunLogNotice(logging.WARNING, "run log is written again, with a gap", details)


def _open_append(path: Path) -> int:
    for folder in (path.parent.parent, path.parent):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o750)
            # The umask may have taken bits; a group that the share hands down (setgid) stays.
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) & ~0o777 | 0o750)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    try:
        os.fchmod(fd, 0o640)
    except OSError:
        os.close(fd)
        raise
    return fd


def configure_logging(
    level: str,
    format: str,  # noqa: A002
    run_log: RunLog | None = None,
    *,
    stderr_level: str | None = None,
) -> None:
    """Send structlog's and the standard library's lines to stderr and, if given, to `run_log`.

    `level` and `format` are `logging.level` and `logging.format` of the settings; `stderr_level` holds back
    more from stderr only, where a command shows its own summary. May be called again; what an earlier call
    set up is closed first. The end of the process closes the run log, and so does `close_run_log`.
    """
    _remove_handlers()
    root = logging.getLogger()
    logging.captureWarnings(True)
    stderr = _StderrHandler(logging.getLevelNamesMapping()[stderr_level.upper()] if stderr_level else logging.NOTSET)
    stderr.setFormatter(_json_formatter() if format == "json" else _text_formatter(colors=sys.stderr.isatty()))
    root.addHandler(stderr)
    if run_log is not None:
        to_file = _RunLogHandler(run_log, stderr)
        to_file.setFormatter(_json_formatter())
        root.addHandler(to_file)
    set_level(level)


def set_level(level: str) -> None:
    """Log what is of `level` (`logging.level` of the settings) or worse from now on, where lines go already."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger().setLevel(threshold)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(
            logging.INFO if threshold == logging.DEBUG else max(threshold, logging.WARNING)
        )
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def close_run_log() -> None:
    """Write what is queued for the run log, for two seconds at most, and close it; stderr goes on."""
    for handler in logging.getLogger().handlers[:]:
        if isinstance(handler, _RunLogHandler):
            logging.getLogger().removeHandler(handler)
            handler.close()


def _remove_handlers() -> None:
    close_run_log()
    for handler in logging.getLogger().handlers[:]:
        if isinstance(handler, _StderrHandler):
            logging.getLogger().removeHandler(handler)
            handler.close()


class _StderrHandler(logging.Handler):
    """Writes to what `sys.stderr` is at the time, a line in one write."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)  # the way of the standard library: told on stderr if that still works


class _RunLogHandler(logging.Handler):
    """Hands formatted lines to a thread that writes them; drops and counts them when it cannot keep up."""

    def __init__(self, run_log: RunLog, other: logging.Handler) -> None:
        super().__init__()
        self._run_log = run_log
        self._other = other
        self._dropped = 0
        self._counting = threading.Lock()  # not the handler's own, which is held while close waits for the thread
        self._lines: queue.Queue[bytes | None] = queue.Queue(_QUEUE_LINES_MAX)
        self._thread = threading.Thread(target=self._write_lines, name="run-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record).encode())
        except queue.Full:
            with self._counting:
                self._dropped += 1
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Write what is queued and end the thread; one that hangs in a dead mount is left behind."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=_CLOSE_SECONDS)
            self._thread.join(_CLOSE_SECONDS)
        super().close()

    def _write_lines(self) -> None:
        while (line := self._lines.get()) is not None:
            if self._dropped:
                with self._counting:
                    dropped, self._dropped = self._dropped, 0
                self._run_log.lose(dropped)
            notice = self._run_log.write(line)
            if notice is not None:
                self._tell(notice)
        self._run_log.close()

    def _tell(self, notice: RunLogNotice) -> None:
        msg = cast(str, {"event": notice.event, **notice.details})  # what structlog makes of an event
        extra = {"_logger": None, "_name": logging.getLevelName(notice.level).lower()}
        record = logging.getLogger().makeRecord("piper.ops.logging", notice.level, "", 0, msg, (), None, extra=extra)
        self._other.handle(record)
        if notice.level == logging.WARNING:  # the file is back: the gap is explained where it is
            self._run_log.write(self.format(record).encode())


def _json_formatter() -> ProcessorFormatter:
    exceptions = ExceptionDictTransformer(show_locals=False, max_frames=_FRAMES_MAX)
    return _formatter(structlog.processors.ExceptionRenderer(exceptions), _to_json)


def _text_formatter(*, colors: bool) -> ProcessorFormatter:
    renderer = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=_plain_traceback, sort_keys=False)
    return _formatter(_only_printable, renderer)


def _formatter(*last: Processor) -> ProcessorFormatter:
    return ProcessorFormatter(processors=[_with_head, ProcessorFormatter.remove_processors_meta, *last])


def _with_head(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
    record: logging.LogRecord = event_dict["_record"]
    moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    head = {
        "timestamp": moment.replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "component": event_dict.get("component") or record.name.removeprefix("piper."),
        "event": event_dict.get("event"),
    }
    return {**head, **event_dict, **head}


def _to_json(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> str:
    try:
        line = orjson.dumps(event_dict, default=_text_of, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:  # lone surrogates, integers beyond 64 bits, circles: rare, so only then is each value looked at
        line = orjson.dumps(_encodable(event_dict))
    return spelled_json(line.decode())


def _encodable(value: object, depth: int = 0) -> object:
    if depth < _DEPTH_MAX and isinstance(value, Mapping):
        return {_text_of(key): _encodable(item, depth + 1) for key, item in value.items()}
    if depth < _DEPTH_MAX and isinstance(value, list | tuple | set | frozenset):
        return [_encodable(item, depth + 1) for item in value]
    try:
        return orjson.Fragment(orjson.dumps(value, default=_text_of, option=orjson.OPT_NON_STR_KEYS))
    except TypeError:
        return _text_of(value)


def _text_of(value: object) -> str:
    """Any value as text that UTF-8 can hold; bytes of a path that are no UTF-8 show as `\\xff`."""
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    try:
        text = str(value) if isinstance(value, str | os.PathLike) else repr(value)
    except Exception as error:  # an object's own repr may do anything, and a log line must not fail for it
        text = f"<{type(value).__name__} whose repr raised {type(error).__name__}>"
    try:
        return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return text.encode(errors="backslashreplace").decode()


def _only_printable(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
    """Escape what would steer a terminal: a file name on the spool can hold any control character."""
    return {
        key: value if key == "exc_info" or isinstance(value, int | float) else printable(_text_of(value), keep="")
        for key, value in event_dict.items()
    }


def _plain_traceback(out: TextIO, exc_info: ExcInfo) -> None:
    text = StringIO()
    traceback.print_exception(*exc_info, file=text, limit=-_FRAMES_MAX)
    out.write(printable(_text_of(text.getvalue()), keep="\n\t"))


__all__ = [
    "RETRY_AFTER",
    "RunLog",
    "RunLogNotice",
    "close_run_log",
    "configure_logging",
    "get_logger",
    "set_level",
    "utc_now",
]
