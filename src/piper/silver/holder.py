"""Holder: who has the manifest open for writing. DuckDB's lock keeps others out, this file says whom they wait for.

It may outlast its process: only together with a lock that is held does it mean anything.
"""

from __future__ import annotations

import json
import os
import re
import socket
from datetime import UTC, datetime
from pathlib import Path

from piper.files import write_atomic
from piper.layout import Layout


def write_holder(layout: Layout, command: str) -> None:
    """Say in the state directory who holds the manifest."""
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": command,
        "since_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_atomic(layout.writer_file, json.dumps(holder).encode() + b"\n")


def read_holder(writer_file: Path) -> dict[str, object] | None:
    """Who wrote the holder file last; None when there is none or it cannot be read."""
    try:
        holder = json.loads(writer_file.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return holder if isinstance(holder, dict) else None


def holder_of(writer_file: Path, text: str = "") -> str:
    """Who holds the manifest, as the holder file and DuckDB's message about its lock tell."""
    pid = re.search(r"PID (\d+)", text)
    holder = read_holder(writer_file)
    if holder and (pid is None or int(pid[1]) == holder.get("pid")):
        return f"`{holder['command']}` (PID {holder['pid']} on {holder['host']}, since {holder['since_utc']})"
    return f"another process (PID {pid[1]} on this machine)" if pid else "a process on another machine"
