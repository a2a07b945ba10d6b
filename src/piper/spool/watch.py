"""Wake-ups: file events save latency, polling stays the truth (inotify does not see what other hosts write)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
from watchfiles import awatch
from watchfiles._rust_notify import WatchfilesRustInternalError

DEBOUNCE_MILLISECONDS = 50
"""Events are handed on after so long a silence, or after twice that where there is none."""
RETRY_SECONDS = 5.0


async def changed_paths(root: Path, stop: anyio.Event) -> AsyncIterator[tuple[list[bytes], bool]]:
    """Yield (paths relative to `root` of *.jsonl files that changed, whether anything else did) until `stop`.

    While the root is missing or cannot be watched this waits and tries again; polling goes on meanwhile.
    """
    prefix = os.fsencode(root) + b"/"
    while not stop.is_set():
        try:
            async for changes in awatch(
                root,
                watch_filter=None,
                stop_event=stop,
                step=DEBOUNCE_MILLISECONDS,
                debounce=2 * DEBOUNCE_MILLISECONDS,
                ignore_permission_denied=True,
                raise_interrupt=False,
            ):
                names = {os.fsencode(name) for _, name in changes}
                files = [name.removeprefix(prefix) for name in names if name.endswith(b".jsonl")]
                yield files, len(files) < len(names)
        except (OSError, WatchfilesRustInternalError):  # no root yet, no watches left, or the watcher failed later
            pass
        with anyio.move_on_after(RETRY_SECONDS):
            await stop.wait()
