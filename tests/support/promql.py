"""Which metrics a PromQL expression names."""

from __future__ import annotations

import re

TEXTS = re.compile(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'""")
NO_METRICS = re.compile(
    r"""
    \#[^\n]*                                                                # comments
    | \{[^}]*\} | \[[^\]]*\]                                                # matchers and windows
    | \b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)       # lists of labels
    | \boffset\s+-?\w+                                                      # how far back
    """,
    re.VERBOSE,
)
NAME = re.compile(r"(?<![\w:.])[a-zA-Z_:][\w:]*(?![\w:])(?!\s*\()")
"""A word that no bracket follows: no function and no aggregation."""
KEYWORDS = {"and", "or", "unless", "bool", "atan2", "inf", "nan", "group_left", "group_right"}


def metric_names(expr: str) -> set[str]:
    """The names of the series that `expr` selects; those of functions, labels and matchers are not among them."""
    bare = NO_METRICS.sub(" ", TEXTS.sub("", expr))
    return {name for name in NAME.findall(bare) if name.lower() not in KEYWORDS}
