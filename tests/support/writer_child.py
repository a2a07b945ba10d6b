"""A piper process for tests: `writer_child.py STEP…` with its settings in the environment; `rebuild` may come first."""

from __future__ import annotations

import os
import sys

from tests.support.ground import STEPS

from piper.errors import PiperError
from piper.ops.metrics import Metrics
from piper.settings_sources import load_settings
from piper.silver.rebuild import rebuild
from piper.writer import Writer


def main(steps: list[str]) -> None:
    settings = load_settings(env=dict(os.environ)).settings
    if uid := os.environ.get("TEST_UID"):  # only now: another user may be unable to read the interpreter's own files
        os.setgid(int(uid))
        os.setuid(int(uid))
    if steps[0] == "rebuild":
        rebuild(settings)
        steps = steps[1:]
    if not steps:
        return
    writer = Writer.open(settings, Metrics(), command="piper test")
    for step in steps:
        STEPS[step](writer)
    writer.close()


try:
    main(sys.argv[1:])
except PiperError as error:
    sys.stdout.write(f"{type(error).__name__} {error}\n")
    sys.exit(error.exit_code)
