"""One simulated writer process: buffers lines, flushes them in pieces, starts a new file at the size limit.

As with real writers a reader sees lines cut anywhere; the rest of a cut line goes out with the next flush.
What is still buffered when the simulating process dies is lost, like the last second of a DCC that crashed;
`finish` writes it. An existing file is never opened, so two simulations into one root cannot mix their bytes.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

from piper.errors import DataRootError

BUFFER_BYTES_MAX = 64 * 1024
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class SpoolWriter:
    """Writes to one `<host>/<user>` directory; `files` and `bytes_total` count what all its processes wrote.

    `backdate`: give every finished file the time of its last line, as a spool of past days would have it.
    """

    def __init__(
        self, directory: Path, rng: Random, *, rotate_bytes: int, flush_seconds: float, backdate: bool
    ) -> None:
        self._directory = directory
        self._rng = rng
        self._rotate_bytes = rotate_bytes
        self._flush_seconds = flush_seconds
        self._backdate = backdate
        # Real writers did not start in the same instant: their flushes are spread over the interval.
        self._flush_due = rng.uniform(0.0, flush_seconds)
        self._buffer = bytearray()
        self._held_back = 0
        self._fd = -1
        self._name = ""
        self._seq = 0
        self._file_bytes = 0
        self._last_at = 0.0
        self.files = 0
        self.bytes_total = 0

    def begin(self, started_at: float, pid: int) -> int:
        """Start a writer process (after `finish` of the one before) and its first file.

        Returns the process id in the file's name: `pid`, or the next one whose name is free.
        Raises DataRootError when the file cannot be created.
        """
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(started_at))
        self._seq = 0
        self._last_at = started_at
        while True:
            self._name = f"telemetry-{stamp}-{pid}"
            if self._open_next():
                return pid
            pid += 1

    def append(self, line: bytes, at: float) -> None:
        """Buffer one line (with its newline), in a new file when it does not fit into this one."""
        if self._file_bytes and self._file_bytes + len(line) > self._rotate_bytes:
            self.finish()
            while not self._open_next():
                pass
        self._buffer += line
        self._file_bytes += len(line)
        self._last_at = at
        if len(self._buffer) >= BUFFER_BYTES_MAX:
            self._flush()

    def flush_if_due(self, elapsed: float) -> None:
        """Flush when this writer's next moment has come; `elapsed`: seconds since the simulation began."""
        if elapsed >= self._flush_due:
            self._flush()
            self._flush_due = elapsed + self._flush_seconds * self._rng.uniform(0.8, 1.2)

    def finish(self) -> None:
        """End the file cleanly: everything buffered is written."""
        if self._fd < 0:
            return
        self._write(len(self._buffer))
        if self._backdate:
            os.utime(self._fd, (self._last_at, self._last_at))
        self.close()

    def close(self) -> None:
        """Give the file up as it is; buffered bytes are lost."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._buffer.clear()
        self._held_back = 0

    def _open_next(self) -> bool:
        """Create the file with the next sequence number; false when that name is taken."""
        self._seq += 1
        path = self._directory / f"{self._name}-{self._seq:04d}.jsonl"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, _FLAGS, 0o644)
        except OSError as error:
            # A directory's name may be taken by a file: FileExistsError too, and it would never come free.
            if isinstance(error, FileExistsError) and self._directory.is_dir():
                return False
            raise self._disk_error(error) from error
        self._file_bytes = 0
        self.files += 1
        return True

    def _flush(self) -> None:
        end = len(self._buffer)
        # Cut only the last line, and never bytes that were held back before: they have waited already.
        low = max(self._buffer.rfind(b"\n", 0, max(0, end - 1)) + 1, self._held_back) + 1
        if low < end and self._rng.random() < 0.5:
            end = self._rng.randrange(low, end)
        self._write(end)
        self._held_back = len(self._buffer)

    def _write(self, count: int) -> None:
        if not count:
            return
        try:
            written = 0
            while written < count:
                written += os.write(self._fd, self._buffer[written:count])
        except OSError as error:
            raise self._disk_error(error) from error
        del self._buffer[:count]
        self.bytes_total += count

    def _disk_error(self, error: OSError) -> DataRootError:
        return DataRootError(
            f"cannot write the simulated spool in {self._directory}: {error.strerror}",
            hint="Give --root a directory that you may write to, on a disk with free space.",
        )
