"""Mangled lines: piper and a plain-Python reference agree on accept or reject, on the reason, and on every column.

A few hundred lines in the default run. Deeper, in lines of about 1,000 a second:

    PIPER_FUZZ_EXAMPLES=2000 python -m pytest tests/property/test_parse_fuzz.py --hypothesis-seed=random --timeout=0
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support import parse_reference as reference
from tests.support.mangled_lines import mangled
from tests.support.spool_run import NOW, check_agreement, spool_run

EXAMPLES = int(os.environ.get("PIPER_FUZZ_EXAMPLES", "3"))
LINES = 400
FILE = "ws1/ana/a.jsonl"


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**62), seal=st.booleans())
def test_piper_agrees_with_the_reference_about_mangled_lines(seed: int, seal: bool) -> None:
    content = b"".join(mangled(seed + number) + b"\n" for number in range(LINES))
    with TemporaryDirectory() as folder, spool_run(Path(folder) / "run") as run:
        run.ingest({FILE: content}, seal=seal)

        check_agreement(run, {FILE: content})


@settings(max_examples=100 * EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**62))
def test_piper_is_as_strict_as_pythons_json_but_where_it_says_so(seed: int) -> None:
    # docs/security.md lists what is different. The reference stands for piper here; the test above ties the two.
    line = mangled(seed)
    verdict = reference.judge(line, NOW)
    reason = verdict.reason if isinstance(verdict, reference.Rejected) else ""

    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        is_taken = False
    else:
        is_taken = _has_only_characters(value) and not _says_nan(line)

    if verdict is not None and "1" * 4301 not in line.decode("utf-8", "replace"):
        assert is_taken == (reason not in {"invalid_json", "invalid_utf8"})


def _has_only_characters(value: object) -> bool:
    """No lone surrogate anywhere."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _says_nan(line: bytes) -> bool:
    found: list[str] = []
    json.loads(line, parse_constant=found.append)
    return bool(found)
