"""What doctor found, as a textfile of node_exporter: alerts on the warehouse that need no running piperd.

The file is replaced whole, so a scrape sees the last run or the one before. It is readable for all, as far as the umask
allows: node_exporter is another user.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from piper.errors import PiperError
from piper.files import write_atomic
from piper.ops.checks import EXIT_CODES, Check, worst

PUBLIC_MODE = 0o644


def write_textfile(path: Path, checks: Sequence[Check], *, now: float | None = None) -> None:
    """Replace `path` by the levels of `checks`. `now`: Unix seconds, defaults to the clock. Raises PiperError."""
    if path.suffix != ".prom":
        raise PiperError(f"{path} would be ignored", hint="node_exporter reads names that end in .prom.")
    try:
        write_atomic(path, generate_latest(_registry(checks, time.time() if now is None else now)), mode=PUBLIC_MODE)
    except OSError as error:
        raise PiperError(
            f"{path} cannot be written: {error.strerror or error}",
            hint="The directory must exist and belong to the user that doctor runs as (systemd/tmpfiles.d).",
        ) from error


def _registry(checks: Sequence[Check], now: float) -> CollectorRegistry:
    registry = CollectorRegistry()
    level = Gauge(
        "piper_doctor_check_level", "How bad a check of doctor is: 0 PASS, 1 WARN, 2 FAIL", ["check"], registry=registry
    )
    for check in checks:
        level.labels(check.name).set(EXIT_CODES[check.level])
    overall = Gauge("piper_doctor_level", "The worst level of all checks of doctor", registry=registry)
    overall.set(EXIT_CODES[worst(list(checks))])
    Gauge("piper_doctor_last_run_timestamp_seconds", "When doctor last looked", registry=registry).set(now)
    return registry
