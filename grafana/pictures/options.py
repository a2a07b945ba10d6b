"""What a panel's field configuration says about one field: defaults, then the overrides that match its name."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pictures.frames import Field
from pictures.units import text_of

Json = dict[str, Any]

COLORS = {
    "green": "#73bf69", "red": "#f2495c", "yellow": "#fade2a", "orange": "#ff9830", "blue": "#5794f2",
    "purple": "#b877d9", "text": "#d8d9da", "transparent": "#181b1f", "gray": "#8e8e8e",
    "dark-green": "#37872d", "dark-red": "#c4162a", "dark-yellow": "#e0b400", "dark-orange": "#fa6400",
    "dark-blue": "#1f60c4", "dark-purple": "#8f3bb8",
    "semi-dark-green": "#56a64b", "semi-dark-red": "#e02f44", "semi-dark-yellow": "#f2cc0c",
    "semi-dark-orange": "#ff780a", "semi-dark-blue": "#3274d9", "semi-dark-purple": "#a352cc",
    "light-green": "#96d98d", "light-red": "#ff7383", "light-yellow": "#ffee52", "light-orange": "#ffb357",
    "light-blue": "#8ab8ff", "light-purple": "#ca95e5", "super-light-blue": "#c0d8ff",
}  # fmt: skip
PALETTE = (
    "#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#b877d9", "#5794f2", "#f2495c", "#37872d", "#c15c17", "#705da0",
)  # fmt: skip


def color_of(name: str) -> str:
    """A Grafana colour as hex."""
    return COLORS.get(name, name if name.startswith("#") else COLORS["text"])


@dataclass(slots=True)
class Look:
    """The options of one field, and what follows from them."""

    field: Field
    options: Json
    custom: Json
    name: str

    def text(self, value: Any) -> str:
        """The value as the panel shows it: mapped, or with its unit; `noValue` for nothing."""
        if value is None:
            return str(self.options.get("noValue", ""))
        mapped = self._mapped(value)
        if mapped and mapped.get("text"):
            return str(mapped["text"])
        return text_of(value, self.options.get("unit", "none"), self.options.get("decimals"))

    def color(self, value: Any, index: int = 0) -> str:
        """By mapping, fixed colour, thresholds or palette."""
        mapped = self._mapped(value)
        if mapped and mapped.get("color"):
            return color_of(mapped["color"])
        chosen = self.options.get("color", {})
        if chosen.get("mode") == "fixed":
            return color_of(chosen["fixedColor"])
        if chosen.get("mode") == "thresholds":
            return self.threshold_color(value)
        if chosen.get("mode") == "palette-classic-by-name":
            return PALETTE[zlib.crc32(self.name.encode()) % len(PALETTE)]
        return PALETTE[index % len(PALETTE)]

    def threshold_color(self, value: Any) -> str:
        """The colour of the highest step at or below the value."""
        found = COLORS["text"]
        for step in self.options.get("thresholds", {}).get("steps", []):
            is_base = step.get("value") is None
            if is_base or (isinstance(value, (int, float)) and value >= step["value"]):
                found = color_of(step["color"])
        return found

    def _mapped(self, value: Any) -> Json | None:
        for mapping in self.options.get("mappings", []):
            options = mapping["options"]
            if mapping["type"] == "value":
                key = f"{value:g}" if isinstance(value, float) else str(value)
                if key in options:
                    return dict(options[key])
            elif mapping["type"] == "range" and isinstance(value, (int, float)):
                low, high = options.get("from"), options.get("to")
                if (low is None or value >= low) and (high is None or value <= high):
                    return dict(options["result"])
            elif mapping["type"] == "special" and options["match"] in ("null", "null+nan") and value is None:
                return dict(options["result"])
        return None


def colors_of(looks: Sequence[Look]) -> list[str]:
    """A colour for each series of a panel, no palette colour twice while there are others."""
    taken: list[str] = []
    for index, look in enumerate(looks):
        wanted = look.color(None, index)
        if wanted in taken and wanted in PALETTE:
            start = PALETTE.index(wanted)
            free = [color for color in PALETTE[start:] + PALETTE[:start] if color not in taken]
            wanted = free[0] if free else wanted
        taken.append(wanted)
    return taken


def look_of(panel: Json, field: Field) -> Look:
    """The options that hold for a field of a panel."""
    config = panel["fieldConfig"]
    options: Json = dict(config["defaults"])
    custom: Json = dict(options.pop("custom", {}))
    name = _name(options.get("displayName"), field)
    for override in config.get("overrides", []):
        if not _matches(override["matcher"], field, name):
            continue
        for prop in override["properties"]:
            if prop["id"].startswith("custom."):
                custom[prop["id"].removeprefix("custom.")] = prop["value"]
            else:
                options[prop["id"]] = prop["value"]
    return Look(field, options, custom, _name(options.get("displayName"), field))


def _matches(matcher: Json, field: Field, name: str) -> bool:
    if matcher["id"] == "byName":
        return matcher["options"] in (field.name, name)
    if matcher["id"] == "byRegexp":
        return re.search(matcher["options"].strip("/"), name) is not None
    return bool(matcher["id"] == "byType" and matcher["options"] == field.kind)


def _name(template: str | None, field: Field) -> str:
    if template:
        return re.sub(r"\$\{__field\.labels\.(\w+)\}", lambda found: field.labels.get(found[1], ""), template) \
            .replace("${__field.name}", field.name)  # fmt: skip
    if field.legend:
        return field.legend
    return " ".join([field.name, *field.labels.values()]) if field.labels else field.name
