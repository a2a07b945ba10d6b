"""Failpoints: named instants at which a test has this process die, as kill -9 or a power cut would, or hang.

`PIPER_FAILPOINT=commit.committed` dies the first time that instant is reached, `PIPER_FAILPOINT=commit.committed:3` the
third; `PIPER_FAILPOINT=daemon.turn:3:hang` has the thread that reaches it wait for ever, as in a dead mount. Read once,
at import; without it a failpoint is one comparison of strings.
"""

from __future__ import annotations

import os
import signal
import threading

_NAME, _COUNT, _ACTION = (*os.environ.get("PIPER_FAILPOINT", "").split(":"), "", "")[:3]
_reached = 0


def failpoint(name: str) -> None:
    """Die here, by SIGKILL, or hang, if the environment says so."""
    if name == _NAME:
        _fail_if_due()


def _fail_if_due() -> None:
    global _reached
    _reached += 1
    if _reached >= int(_COUNT or 1):
        if _ACTION == "hang":
            threading.Event().wait()
        os.kill(os.getpid(), signal.SIGKILL)
