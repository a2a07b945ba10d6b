"""No case of the list without a test that names it."""

from __future__ import annotations

import re
from pathlib import Path

CASES = 24


def test_each_of_the_24_cases_is_named_by_a_test() -> None:
    names = re.findall(
        r"^def (test_\w+)",
        "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py")),
        re.MULTILINE,
    )
    named = {int(number) for name in names for number in re.findall(r"case_(\d\d)", name)}
    assert sorted(set(range(1, CASES + 1)) - named) == []
