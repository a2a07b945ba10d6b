"""Panels, one function a kind, drawn with Matplotlib much as Grafana draws them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from itertools import pairwise
from typing import Any

import matplotlib.dates as mdates
import matplotlib.ticker as mticker
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from pictures.frames import Field, Frame, Json
from pictures.options import Look, colors_of, look_of
from pictures.units import text_of

_TEXT = TextToPath()
COLUMN_HEAD = "#6e9fff"
CALC_NAMES = {"lastNotNull": "last"}
PAGE, CARD, EDGE, TEXT, DIM, GRID = "#111217", "#181b1f", "#2c2f36", "#d8d9da", "#8e9199", "#2c2f36"
SMALL, NORMAL = 9, 10
DOTS = 100
"""Pixels an inch."""


@cache
def width_of(text: str, size: float = SMALL) -> float:
    """Width of a text in pixels; `size` in points."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a glyph that the font lacks
        width, _, _ = _TEXT.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return float(width) * DOTS / 72


class Card:
    """The place of a panel on the page, in pixels from the top left corner."""

    def __init__(self, figure: Figure, x: float, y: float, width: float, height: float) -> None:
        self._figure, self.x, self.y, self.width, self.height = figure, x, y, width, height
        self._page_width, self._page_height = figure.get_size_inches() * figure.dpi

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes on a part of the card."""
        box = (
            (self.x + left) / self._page_width,
            1 - (self.y + top + height) / self._page_height,
            width / self._page_width,
            height / self._page_height,
        )
        axes = self._figure.add_axes(box)
        axes.set_facecolor("none")
        return axes

    def canvas(self) -> Axes:
        """Axes over the whole card without ticks, whose units are pixels from the card's top left corner."""
        axes = self.axes(0, 0, self.width, self.height)
        axes.set_xlim(0, self.width)
        axes.set_ylim(self.height, 0)
        axes.axis("off")
        return axes


def draw_panel(card: Card, panel: Json, frames: Sequence[Frame]) -> None:
    """Draw the card's frame, its title, and what its kind of panel shows of the frames."""
    frame = card.axes(0, 0, card.width, card.height)
    frame.set_facecolor(CARD)
    frame.set_xticks([])
    frame.set_yticks([])
    for spine in frame.spines.values():
        spine.set_color(EDGE)
    canvas = card.canvas()
    canvas.text(10, 15, panel["title"], color=TEXT, fontsize=NORMAL, fontweight="bold", va="center")
    if not any(field.values for fields in frames for field in fields if field.kind != "time"):
        message = panel["fieldConfig"]["defaults"].get("noValue", "No data")
        canvas.text(card.width / 2, card.height / 2, message, color=DIM, fontsize=NORMAL, ha="center", va="center")
        return
    _KINDS[panel["type"]](card, panel, frames)


# ---- stat ------------------------------------------------------------------------------------------------------------


def _stat(card: Card, panel: Json, frames: Sequence[Frame]) -> None:
    wanted = panel["options"]["reduceOptions"].get("fields", "")
    fields = [field for frame in frames for field in frame]
    shown = [field for field in fields if field.kind == "number" or (wanted and field.kind != "time")]
    shown = shown or [field for field in fields if field.kind == "time"] or fields
    is_named = panel["options"].get("textMode") in ("value_and_name", "name") or (
        len(shown) > 1 and panel["options"].get("textMode") != "value"
    )
    canvas, width = card.canvas(), card.width / len(shown)
    for index, field in enumerate(shown):
        look = look_of(panel, field)
        value = _last(field.values)
        text = look.text(value)
        room = min((card.height - 40) * 0.42, 1.7 * (width - 16) / max(3, len(text)))
        left = index * width
        canvas.text(
            left + width / 2, card.height * (0.52 if is_named else 0.58), text,
            color=look.color(value, index), fontsize=max(9, room * 0.72), ha="center", va="center", fontweight="bold",
        )  # fmt: skip
        if is_named:
            canvas.text(left + width / 2, card.height - 18, look.name, color=DIM, fontsize=SMALL, ha="center")
        if panel["options"].get("graphMode") == "area" and len(field.values) > 2:
            _sparkline(card.axes(left + 4, card.height * 0.72, width - 8, card.height * 0.26), field, look)


def _sparkline(axes: Axes, field: Field, look: Look) -> None:
    points = [(index, value) for index, value in enumerate(field.values) if value is not None]
    color = look.color(_last(field.values))
    axes.axis("off")
    if points:
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, color=color, linewidth=1)
        axes.fill_between(xs, ys, min(ys), color=color, alpha=0.15)


def _last(values: Sequence[Any]) -> Any:
    return next((value for value in reversed(values) if value is not None), None)


# ---- over time -------------------------------------------------------------------------------------------------------


def _timeseries(card: Card, panel: Json, frames: Sequence[Frame]) -> None:
    series = [
        (frame[0].values, look_of(panel, field))
        for frame in frames for field in frame if field.kind == "number" and frame[0].kind == "time"
    ]  # fmt: skip
    colors = colors_of([look for _, look in series])
    legend_height = _legend(card, [look for _, look in series], colors, panel)
    has_right = any(look.custom.get("axisPlacement") == "right" for _, look in series)
    axes = card.axes(62, 34, card.width - (124 if has_right else 76), card.height - 34 - 26 - legend_height)
    right = axes.twinx() if has_right else None
    below: dict[Axes, dict[float, float]] = {}
    for (times, look), color in zip(series, colors, strict=True):
        on = right if right is not None and look.custom.get("axisPlacement") == "right" else axes
        _draw_series(on, times, look, color, below.setdefault(on, {}))
    for on in [axes, right] if right is not None else [axes]:
        first = next(
            look for _, look in series if (look.custom.get("axisPlacement") == "right") == (on is right)
        )  # fmt: skip
        _style(on, first)
    if right is not None:
        right.grid(visible=False)
    _limits(axes, panel)
    _time_axis(axes)


def _draw_series(axes: Axes, times: list[datetime], look: Look, color: str, below: dict[float, float]) -> None:
    style, is_stacked = look.custom.get("drawStyle", "line"), look.custom.get("stacking", {}).get("mode") == "normal"
    days = [float(mdates.date2num(time)) for time in times]
    points = [(time, value) for time, value in zip(days, look.field.values, strict=True) if value is not None]
    if not points:
        return
    xs, ys = [time for time, _ in points], [value for _, value in points]
    floor = [below.get(time, 0.0) if is_stacked else 0.0 for time in xs]
    tops = [low + value for low, value in zip(floor, ys, strict=True)]
    if is_stacked:
        below.update(zip(xs, tops, strict=True))
    alpha = look.custom.get("fillOpacity", 0) / 100
    if style == "bars":
        gap = min((b - a for a, b in pairwise(xs)), default=None)
        axes.bar(xs, ys, bottom=floor, width=gap * 0.8 if gap else 0.02, color=color, alpha=max(alpha, 0.5))
    elif style == "points" or len(xs) == 1:
        axes.plot(xs, tops, "o", color=color, markersize=4)
    else:
        axes.plot(xs, tops, color=color, linewidth=look.custom.get("lineWidth", 1) * 0.8)
        if alpha:
            axes.fill_between(xs, floor, tops, color=color, alpha=alpha, linewidth=0)


def _style(axes: Axes, look: Look) -> None:
    unit, decimals = look.options.get("unit", "none"), look.options.get("decimals")
    axes.yaxis.set_major_formatter(mticker.FuncFormatter(lambda value, _: _tick(value, unit, decimals)))
    axes.yaxis.set_major_locator(mticker.MaxNLocator(5))
    axes.set_ylim(look.options.get("min"), look.options.get("max"))
    low, high = axes.get_ylim()
    if low > 0 and low < high * 0.5 and look.options.get("min") is None:
        axes.set_ylim(0, high)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=DIM, labelsize=8, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _time_axis(axes: Axes) -> None:
    axes.xaxis_date()
    locator = mdates.AutoDateLocator(maxticks=8)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator, show_offset=False))


def _tick(value: float, unit: str, decimals: int | None) -> str:
    return text_of(value, unit, None if decimals == 0 and value != int(value) else decimals)


def _limits(axes: Axes, panel: Json) -> None:
    """Dashed lines at the thresholds, where the panel says so and they are in sight."""
    defaults = panel["fieldConfig"]["defaults"]
    if defaults.get("custom", {}).get("thresholdsStyle", {}).get("mode", "off") == "off":
        return
    low, high = axes.get_ylim()
    for step in defaults["thresholds"]["steps"]:
        if step.get("value") is not None and low <= step["value"] <= high * 1.2 + 1e-9:
            color = look_of(panel, Field("", "number", [])).threshold_color(step["value"])
            axes.axhline(step["value"], color=color, linestyle="--", linewidth=1, alpha=0.8)


def _legend(card: Card, looks: Sequence[Look], colors: Sequence[str], panel: Json) -> float:
    """Draw the names at the bottom; returns the height that they take."""
    options = panel["options"].get("legend", {})
    if not options.get("showLegend", True) or not looks:
        return 0.0
    texts = []
    for look, color in zip(looks, colors, strict=True):
        values = [value for value in look.field.values if value is not None]
        sums = [
            f"{CALC_NAMES.get(calc, calc)} {look.text(_calc(calc, values))}"
            for calc in options.get("calcs", [])
            if values
        ]
        texts.append((f"{look.name}  {'  '.join(sums)}".strip(), color))
    lines: list[list[tuple[str, str, float]]] = [[]]
    left = 12.0
    for text, color in texts:
        width = 34 + width_of(text, SMALL - 1)
        if left + width > card.width - 10 and lines[-1]:
            lines.append([])
            left = 12.0
        lines[-1].append((text, color, left))
        left += width
    lines = lines[: max(1, int(card.height * 0.3 / 18))]
    canvas = card.canvas()
    for number, line in enumerate(lines):
        y = card.height - 10 - 18 * (len(lines) - 1 - number)
        for text, color, x in line:
            canvas.plot([x, x + 12], [y, y], color=color, linewidth=3)
            canvas.text(x + 17, y, text, color=TEXT, fontsize=SMALL - 1, va="center")
    return 18.0 * len(lines) + 4


def _calc(name: str, values: Sequence[float]) -> float:
    found: dict[str, Callable[[], float]] = {
        "mean": lambda: sum(values) / len(values), "max": lambda: max(values), "min": lambda: min(values),
        "sum": lambda: sum(values), "lastNotNull": lambda: values[-1], "last": lambda: values[-1],
    }  # fmt: skip
    return found[name]()


# ---- bars ------------------------------------------------------------------------------------------------------------


def _bargauge(card: Card, panel: Json, frames: Sequence[Frame]) -> None:
    rows = _rows_of_gauge(panel, frames)
    highest = max((value for _, value, look in rows if value is not None), default=1.0) or 1.0
    label_width = min(card.width * 0.45, 20 + max(width_of(name) for name, _, _ in rows))
    canvas, step = card.canvas(), min(34.0, (card.height - 42) / len(rows))
    room = card.width - label_width - 110
    for index, (name, value, look) in enumerate(rows):
        y = 36 + step * (index + 0.5)
        top = look.options.get("max") or highest
        share = min(1.0, max(0.0, (value or 0.0) / top))
        canvas.barh(y, room, left=label_width, height=step * 0.7, color=EDGE)
        canvas.barh(y, room * share, left=label_width, height=step * 0.7, color=look.color(value, index))
        canvas.text(label_width - 8, y, _cut(name, label_width), color=TEXT, fontsize=SMALL, ha="right", va="center")
        canvas.text(label_width + room + 8, y, look.text(value), color=look.color(value, index), fontsize=SMALL,
                    va="center", fontweight="bold")  # fmt: skip


def _rows_of_gauge(panel: Json, frames: Sequence[Frame]) -> list[tuple[str, float | None, Look]]:
    limit = panel["options"]["reduceOptions"].get("limit", 25)
    rows = []
    for frame in frames:
        texts = [field for field in frame if field.kind == "string"]
        for field in (field for field in frame if field.kind == "number"):
            look = look_of(panel, field)
            if not panel["options"]["reduceOptions"].get("values"):
                rows.append((look.name, _last(field.values), look))
                continue
            for index, value in enumerate(field.values[:limit]):
                rows.append((" ".join(str(text.values[index]) for text in texts) or look.name, value, look))
    return rows


def _barchart(card: Card, panel: Json, frames: Sequence[Frame]) -> None:
    frame = frames[0]
    names = next((field for field in frame if field.name == panel["options"].get("xField")), frame[0])
    looks = [look_of(panel, field) for field in frame if field.kind == "number" and field is not names]
    colors = colors_of(looks)
    legend_height = _legend(card, looks, colors, panel)
    is_flat = panel["options"].get("orientation") == "horizontal"
    left = 30 + max(width_of(str(name)) for name in names.values) if is_flat else 62
    axes = card.axes(left, 38, card.width - left - 16, card.height - 38 - 28 - legend_height)
    is_stacked = panel["options"].get("stacking") == "normal"
    count, places = max(1, len(looks)), range(len(names.values))
    floor = [0.0] * len(names.values)
    for index, look in enumerate(looks):
        values = [value or 0.0 for value in look.field.values]
        thick = 0.8 if is_stacked else 0.8 / count
        at = [place if is_stacked else place + (index - (count - 1) / 2) * thick for place in places]
        draw = axes.barh if is_flat else axes.bar
        given: dict[str, Any] = {"left" if is_flat else "bottom": list(floor)} if is_stacked else {}
        bars = draw(at, values, thick, color=colors[index], alpha=0.85, **given)
        if not is_stacked and len(names.values) * count <= 24:
            axes.bar_label(bars, [look.text(value) if value else "" for value in values], color=TEXT, fontsize=7)
        floor = [low + value for low, value in zip(floor, values, strict=True)]
    _style(axes, looks[0])
    labels = [f"{value:%d %b}" if isinstance(value, datetime) else _cut(str(value), 160) for value in names.values]
    if is_flat:
        axes.set_yticks(list(places), labels)
        axes.invert_yaxis()
        unit = looks[0].options.get("unit", "none")
        axes.xaxis.set_major_formatter(mticker.FuncFormatter(lambda value, _: text_of(value, unit)))
    else:
        every = max(1, len(labels) * 70 // max(1, int(card.width)))
        axes.set_xticks(list(places)[::every], labels[::every])


# ---- tables and heatmaps ---------------------------------------------------------------------------------------------


def _table(card: Card, panel: Json, frames: Sequence[Frame]) -> None:
    looks = [look for field in frames[0] if not (look := look_of(panel, field)).custom.get("hidden")]
    rows = min(len(looks[0].field.values), int((card.height - 62) // 24))
    cells = [[" ".join(look.text(look.field.values[row]).split()) for row in range(rows)] for look in looks]
    wishes = [
        float(
            look.custom.get("width") or 22 + max(1.15 * width_of(look.name), *(min(330.0, width_of(t)) for t in texts))
        )
        for look, texts in zip(looks, cells, strict=True)
    ]
    fixed = sum(wish for look, wish in zip(looks, wishes, strict=True) if look.custom.get("width"))
    scale = (card.width - 20 - fixed) / ((sum(wishes) - fixed) or 1.0)
    canvas, x = card.canvas(), 10.0
    for look, column, wish in zip(looks, cells, wishes, strict=True):
        width = wish if look.custom.get("width") else wish * scale
        is_number = look.field.kind == "number"
        canvas.text(x + width - 8 if is_number else x + 6, 44, look.name, color=COLUMN_HEAD, fontsize=SMALL,
                    va="center", ha="right" if is_number else "left", fontweight="bold")  # fmt: skip
        for row, text in enumerate(column):
            _cell(canvas, look, look.field.values[row], text, x, 68 + 24 * row, width)
        x += width
    left_out = len(looks[0].field.values) - rows
    if left_out > 0:
        canvas.text(
            card.width - 12, 15, f"{left_out} more rows below", color=DIM, fontsize=SMALL, ha="right", va="center"
        )


def _wish(look: Look, texts: Sequence[str]) -> float:
    """The width that a column would like."""
    if look.custom.get("cellOptions", {}).get("type") == "gauge":
        return 150.0
    longest = max(1.15 * width_of(look.name), *(min(330.0, width_of(text)) for text in texts))
    return float(look.custom.get("width") or 22 + longest)


def _cell(canvas: Axes, look: Look, value: Any, text: str, x: float, y: float, width: float) -> None:
    kind = look.custom.get("cellOptions", {}).get("type", "auto")
    color, is_number = TEXT, look.field.kind == "number"
    if kind == "color-background" and value is not None:
        canvas.barh(y, width - 4, left=x + 2, height=20, color=look.color(value), alpha=0.55)
    elif kind == "color-text":
        color = look.color(value)
    elif kind == "gauge" and value is not None:
        low, high = look.options.get("min") or 0.0, look.options.get("max") or 100.0
        room = max(10.0, width - 70)
        canvas.barh(y, room, left=x + 4, height=14, color=EDGE)
        canvas.barh(y, room * min(1.0, max(0.0, (value - low) / ((high - low) or 1))), left=x + 4, height=14,
                    color=look.color(value))  # fmt: skip
    if look.options.get("links"):
        color = COLUMN_HEAD
    place = x + width - 8 if is_number else x + 6
    canvas.text(
        place, y, _cut(text, width), color=color, fontsize=SMALL, va="center", ha="right" if is_number else "left"
    )
    canvas.plot([x, x + width], [y + 12, y + 12], color=GRID, linewidth=0.5)


def _cut(text: str, width: float) -> str:
    flat = " ".join(text.split())
    if width_of(flat) <= width - 10:
        return flat
    while flat and width_of(flat + "…") > width - 10:
        flat = flat[:-1]
    return flat + "…"


def _heatmap(card: Card, panel: Json, frames: Sequence[Frame]) -> None:
    times = [float(mdates.date2num(time)) for time in frames[0][0].values]
    looks = [look_of(panel, field) for field in frames[0] if field.kind == "number"]
    left = 24 + max(width_of(look.name) for look in looks)
    axes = card.axes(left, 38, card.width - left - 16, card.height - 38 - 26)
    values = [[float("nan") if value is None else value for value in look.field.values] for look in looks]
    colors = LinearSegmentedColormap.from_list("heat", [to_rgb(EDGE), to_rgb("#ff9830"), to_rgb("#f2495c")])
    gap = min((b - a for a, b in pairwise(times)), default=None)
    edges = [*times, times[-1] + gap] if gap else [times[0], times[0]]
    mesh = axes.pcolormesh(edges, range(len(looks) + 1), values, cmap=colors, edgecolors=CARD, linewidth=0.5)
    axes.set_yticks([index + 0.5 for index in range(len(looks))], [look.name for look in looks])
    axes.tick_params(colors=DIM, labelsize=8, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _time_axis(axes)
    color = panel["options"].get("color", {})
    mesh.set_clim(color.get("min"), color.get("max"))
    low, high = mesh.get_clim()
    cells = panel["options"].get("cellValues", {})
    unit = cells.get("unit", looks[0].options.get("unit", "none"))
    _note(card, " to ".join(text_of(float(edge), unit, cells.get("decimals")) for edge in (low, high)))


def _note(card: Card, text: str) -> None:
    """In the corner beside the title."""
    card.canvas().text(card.width - 12, 15, text, color=DIM, fontsize=SMALL, ha="right", va="center")


_KINDS: dict[str, Callable[[Card, Json, Sequence[Frame]], None]] = {
    "stat": _stat,
    "timeseries": _timeseries,
    "bargauge": _bargauge,
    "barchart": _barchart,
    "table": _table,
    "heatmap": _heatmap,
}
KINDS = frozenset(_KINDS)
"""Kinds of panel that can be drawn."""
