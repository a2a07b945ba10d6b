"""Values as Grafana writes them, for the units that our dashboards use."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

_DURATIONS = (
    (86_400 * 365, "years"),
    (86_400 * 7, "weeks"),
    (86_400, "days"),
    (3_600, "hours"),
    (60, "mins"),
    (1, "s"),
)
_SI = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
_BINARY = ((2**50, "PiB"), (2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_DECIMAL = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_TO_SECONDS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "dtdurations": 1.0}


def text_of(value: Any, unit: str, decimals: int | None = None) -> str:
    """A value with its unit; times are naive UTC."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return ago(value) if unit == "dateTimeFromNow" else _moment(value, unit)
    if not isinstance(value, (int, float)):
        return str(value)
    if unit.startswith("dateTime"):
        return text_of(datetime.fromtimestamp(value / 1000, UTC).replace(tzinfo=None), unit)
    return _number(float(value), unit, decimals)


def _moment(value: datetime, unit: str) -> str:
    is_today = value.date() == datetime.now(UTC).date()
    return f"{value:%H:%M:%S}" if unit.endswith("NoDateIfToday") and is_today else f"{value:%Y-%m-%d %H:%M:%S}"


def ago(moment: datetime) -> str:
    """`3 mins ago`."""
    seconds = (datetime.now(UTC).replace(tzinfo=None) - moment).total_seconds()
    return f"{_duration(max(0.0, seconds), 0)} ago"


def _number(value: float, unit: str, decimals: int | None) -> str:
    if unit in ("percent", "percentunit"):
        return f"{_plain(value * (100 if unit == 'percentunit' else 1), decimals, 1)}%"
    if unit.startswith("suffix:"):
        return f"{value:+.{1 if decimals is None else decimals}f}{_spaced(unit.removeprefix('suffix:'))}"
    if unit in _TO_SECONDS:
        return _duration(value * _TO_SECONDS[unit], decimals)
    if unit == "decgbytes":
        return _scaled(value * 1e9, _DECIMAL, " B", decimals, " ")
    if unit in ("bytes", "decbytes", "binBps", "Bps"):
        steps = _BINARY if unit in ("bytes", "binBps") else _DECIMAL
        return _scaled(value, steps, " B", decimals, " ") + ("/s" if unit.endswith("Bps") else "")
    if unit in ("short", "ops", "reqps", "eps", "cps", "wps", "rps"):
        return _scaled(value, _SI, "", decimals, " ") + ("" if unit == "short" else " /s")
    if unit == "locale":
        return f"{value:,.{decimals or 0}f}" if value == int(value) or decimals is not None else f"{value:,.2f}"
    text = _plain(value, decimals, 2)
    return text if unit in ("none", "string", "") else f"{text} {unit}"


def _spaced(suffix: str) -> str:
    return suffix if suffix.startswith(" ") else f" {suffix}"


def _plain(value: float, decimals: int | None, most: int) -> str:
    if decimals is not None:
        return f"{value:.{decimals}f}"
    text = f"{value:.{most}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _scaled(value: float, steps: tuple[tuple[float, str], ...], base: str, decimals: int | None, gap: str) -> str:
    for size, name in steps:
        if abs(value) >= size:
            return _plain(value / size, decimals, 2) + gap + name
    return _plain(value, decimals, 2) + base


def _duration(seconds: float, decimals: int | None) -> str:
    size = abs(seconds)
    if size < 1e-3:
        return f"{_plain(seconds * 1e6, decimals, 1)} µs" if size else "0 s"
    if size < 1:
        return f"{_plain(seconds * 1e3, decimals, 1)} ms"
    for length, name in _DURATIONS:
        if size >= length:
            return f"{_plain(seconds / length, decimals, 1)} {name}"
    return f"{seconds} s"
