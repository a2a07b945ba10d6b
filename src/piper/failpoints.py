"""Failpoints: named instants at which a test has this process die, as kill -9 or a power cut would.

`PIPER_FAILPOINT=commit.committed` dies the first time that instant is reached, `PIPER_FAILPOINT=commit.committed:3` the
third. Read once, at import; without it a failpoint is one comparison of strings.
"""

from __future__ import annotations

import os
import signal

_NAME, _, _COUNT = os.environ.get("PIPER_FAILPOINT", "").partition(":")
_reached = 0


def failpoint(name: str) -> None:
    """Die here, by SIGKILL, if the environment says so."""
    if name == _NAME:
        _die_if_due()


def _die_if_due() -> None:
    global _reached
    _reached += 1
    if _reached >= int(_COUNT or 1):
        os.kill(os.getpid(), signal.SIGKILL)
