"""Hours of the day, as a setting names them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

_HOURS = re.compile(r"([01]\d|2[0-4]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)")


@dataclass(frozen=True, slots=True)
class Hours:
    """Minutes of the local day, from `start` up to `end`; it may go over midnight."""

    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> Hours | None:
        """'20:00-06:00', 'always' or 'never' (None). Raises ValueError for anything else."""
        if text == "never":
            return None
        if text == "always":
            return cls(0, 24 * 60)
        found = _HOURS.fullmatch(text)
        if found is None:
            raise ValueError("must be always, never, or hours such as 20:00-06:00")
        first, first_minute, last, last_minute = map(int, found.groups())
        start, end = first * 60 + first_minute, last * 60 + last_minute
        if max(start, end) > 24 * 60 or start == end:
            raise ValueError("must be always, never, or two different times of a day such as 20:00-06:00")
        return cls(start, end)

    def include(self, moment: datetime) -> bool:
        """Whether `moment`, which is local time, is within."""
        minute = moment.hour * 60 + moment.minute
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end
