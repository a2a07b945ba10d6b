"""A whole dashboard as one picture: title, variables, link bar, and every panel at its place in the grid."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from datetime import datetime
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from boards.macros import TimeRange
from pictures.draw import DIM, DOTS, PAGE, TEXT, Card, draw_panel
from pictures.frames import Json, Source

WIDTH, UNIT, GAP, HEAD = 1680, 34, 8, 70
"""Pixels: the page, a grid unit of height, between panels, above them."""
POINTS = 300
"""Of a series that asks for no number itself."""


def draw_page(board: Json, sources: Mapping[str, Source], now: datetime, path: Path) -> None:
    """Draw a dashboard to `path`; `sources` by datasource type. A query that fails raises: a picture hides nothing."""
    height = HEAD + UNIT * max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"]) + GAP
    figure = Figure(figsize=(WIDTH / DOTS, height / DOTS), dpi=DOTS, facecolor=PAGE)
    _head(figure, board, TimeRange.of(board, now))
    column = (WIDTH - GAP) / 24
    for panel in board["panels"]:
        place = panel["gridPos"]
        card = Card(
            figure,
            GAP + place["x"] * column, HEAD + place["y"] * UNIT,
            place["w"] * column - GAP, place["h"] * UNIT - GAP,
        )  # fmt: skip
        span, points = TimeRange.of_panel(board, panel, now), panel.get("maxDataPoints", POINTS)
        frames = [
            sources[target.get("datasource", panel["datasource"])["type"]].frame(target, span, points)
            for target in panel["targets"]
        ]
        draw_panel(card, panel, frames)
    drawn = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a message in a script that the font lacks
        figure.savefig(drawn, facecolor=PAGE)
    Image.open(drawn).convert("RGB").quantize(128).save(path, optimize=True)  # they lie in the repository


def _head(figure: Figure, board: Json, time_range: TimeRange) -> None:
    canvas = Card(figure, 0, 0, WIDTH, HEAD).canvas()
    canvas.text(14, 22, board["title"], color=TEXT, fontsize=15, fontweight="bold", va="center")
    span = f"{time_range.start:%Y-%m-%d %H:%M} to {time_range.end:%Y-%m-%d %H:%M} UTC, every {board['refresh']}"
    canvas.text(WIDTH - 14, 22, span, color=DIM, fontsize=10, ha="right", va="center")
    shown = [each["label"] for each in board["templating"]["list"] if not each.get("hide")]
    variables = "    ".join(f"{label}: All" for label in shown)
    canvas.text(14, 50, variables or board["description"][:200], color=DIM, fontsize=10, va="center")
