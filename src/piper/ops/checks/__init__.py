"""The questions of `piper doctor`, each a function from facts to a `Check`: ground (disks, files, versions), data
(what the views hold) and standing (what the writer says). They ask nothing themselves, so a test can ask them anything.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Level(enum.StrEnum):
    """How bad it is."""

    PASS = "PASS"  # noqa: S105 - no password
    WARN = "WARN"
    FAIL = "FAIL"


EXIT_CODES = {Level.PASS: 0, Level.WARN: 1, Level.FAIL: 2}


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer; `hint` says what to do and is empty for PASS."""

    name: str
    level: Level
    value: str
    hint: str = ""

    def as_row(self) -> dict[str, str]:
        """The check as `--json` shows it."""
        return {"name": self.name, "status": self.level.value, "value": self.value, "hint": self.hint}


def worst(checks: Iterable[Check]) -> Level:
    """The level of the whole."""
    return max((check.level for check in checks), key=EXIT_CODES.__getitem__, default=Level.PASS)


def grade(value: float, warn: float, fail: float | None) -> Level:
    """The level of a number that is the worse the larger it is."""
    if fail is not None and value > fail:
        return Level.FAIL
    return Level.WARN if value > warn else Level.PASS


def judged(name: str, level: Level, value: str, hint: str) -> Check:
    """A check whose hint counts only if there is something to do."""
    return Check(name, level, value, "" if level is Level.PASS else hint)
