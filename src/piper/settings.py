"""Settings: what may be set, and within which limits. The models hold no defaults: those are in `conf/settings.toml`.

Where each value comes from is in `settings_sources.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from piper.hours import Hours

_OUTPUT_FOLDERS = ("silver", "warehouse", "quarantine", "run_logs")
_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?) ?(?P<unit>[KMGT]i?B)", re.IGNORECASE)
_MEMORY_BYTES_MIN = 64_000_000
SILVER_DAYS_MIN = 14
"""Gold compares this week with the one before, so both must be in silver."""


def _absolute_path(value: object, info: ValidationInfo) -> Path:
    """Expand `~`, and resolve what is relative against the loader's `cwd`; symbolic links stay as named.

    Readers mount the data root at the path that people know, not at where a link leads, so links are followed
    only where `..` makes that necessary.
    """
    if not isinstance(value, str | Path):
        raise ValueError("must be a path")
    text = str(value)
    if not text.strip() or "\0" in text:
        raise ValueError("must be a path, not empty and without NUL")
    try:
        text.encode()
        base: Path = info.context["cwd"] if info.context else Path.cwd()
        path = base / Path(text).expanduser()
        return path.resolve() if ".." in path.parts else path
    except UnicodeEncodeError as error:
        raise ValueError("must be UTF-8, DuckDB opens no other path") from error
    except (OSError, RuntimeError) as error:
        raise ValueError(f"cannot be resolved: {error}") from error


def _duckdb_size(value: str) -> str:
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ValueError("must be a size that DuckDB reads, such as 512MB or 1.5GiB")
    unit = match["unit"].upper()
    size = float(match["number"]) * (1024 if "I" in unit else 1000) ** (" KMGT".index(unit[0]))
    if size < _MEMORY_BYTES_MIN:
        raise ValueError("must be at least 64MB, DuckDB cannot hold a batch in less")
    return value


def _hours(value: str) -> str:
    Hours.parse(value)
    return value


def _days_of_silver(value: int) -> int:
    if 0 < value < SILVER_DAYS_MIN:
        raise ValueError(f"must be 0 (for ever) or at least {SILVER_DAYS_MIN}: gold compares weeks")
    return value


AbsolutePath = Annotated[Path, BeforeValidator(_absolute_path)]


class _Section(BaseModel):
    """Strict: 1 is no boolean and true no port. Text of variables is converted before it gets here."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Paths(_Section):
    """Where piper reads and writes; all absolute. An empty `state_root` becomes `<data_root>/state`."""

    raw_root: AbsolutePath
    data_root: AbsolutePath
    state_root: AbsolutePath

    @field_validator("data_root")
    @classmethod
    def _no_glob(cls, value: Path) -> Path:
        if any(character in str(value) for character in "*?["):
            raise ValueError("must not hold *, ? or [: the views find chunks by glob under it")
        return value

    @field_validator("state_root", mode="before")
    @classmethod
    def _derived(cls, value: object, info: ValidationInfo) -> object:
        # A data_root that was refused is missing here; it has been reported, any path does.
        return info.data.get("data_root", Path("/")) / "state" if value == "" else value

    @model_validator(mode="after")
    def _piper_never_reads_its_own_output(self) -> Self:
        raw_root = Path(os.path.realpath(self.raw_root))
        for key, root in (("data_root", self.data_root), ("state_root", self.state_root)):
            if Path(os.path.realpath(root)).is_relative_to(raw_root):
                raise _own_output(key, f"is inside paths.raw_root ({self.raw_root})")
        for written in (*(self.data_root / name for name in _OUTPUT_FOLDERS), self.state_root):
            if raw_root.is_relative_to(os.path.realpath(written)):
                raise _own_output("raw_root", f"is inside {written}, which piper writes")
        return self


def _own_output(key: str, what: str) -> PydanticCustomError:
    text = "{what}: piper would tail its own output"
    return PydanticCustomError("own_output", text, {"key": key, "what": what})


class Watch(_Section):
    """How growth of the spool is noticed."""

    mode: Literal["auto", "events", "poll"]
    poll_seconds: float = Field(gt=0, le=3600)


class Ingest(_Section):
    """Limits of a micro-batch, and when the tail is sealed into Parquet."""

    batch_events_max: int = Field(ge=1, le=1_000_000)
    batch_bytes_max: int = Field(ge=1024, le=1 << 30)
    line_bytes_max: int = Field(ge=1024, le=1 << 26)
    flush_seconds: float = Field(ge=0, le=60)
    seal_events_max: int = Field(ge=1, le=10_000_000)
    seal_seconds: float = Field(gt=0, le=86_400)


class Publish(_Section):
    """How often readers get a new tail."""

    seconds: float = Field(gt=0, le=3600)


class Gold(_Section):
    """How often gold is refreshed."""

    refresh_seconds: float = Field(gt=0, le=86_400)


class Compaction(_Section):
    """When chunks of closed days are merged in the background, and how long `piper ingest` may spend on it."""

    hours: str
    ingest_seconds: float = Field(ge=0, le=3600)

    _parsed = field_validator("hours")(_hours)


class Retention(_Section):
    """After how many days what is deleted. 0: never."""

    silver_days: int = Field(ge=0, le=36_500)
    quarantine_days: int = Field(ge=0, le=36_500)
    run_log_days: int = Field(ge=0, le=36_500)
    source_days: int = Field(ge=8, le=36_500)

    _whole_weeks = field_validator("silver_days")(_days_of_silver)


class Metrics(_Section):
    """Where the metrics and health endpoints listen. Port 0 means any free one."""

    host: Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\s/]+$")]
    port: int = Field(ge=0, le=65_535)


class Logging(_Section):
    """Level of all log lines, and the form of those on stderr."""

    level: Literal["debug", "info", "warning", "error"]
    format: Literal["json", "text"]


class Privacy(_Section):
    """What of people's names is written."""

    mask_users: bool


class DuckDB(_Section):
    """Limits of the daemon's own DuckDB. `threads` 0 means all cores."""

    threads: int = Field(ge=0, le=1024)
    memory_limit: Annotated[str, StringConstraints(min_length=1)]

    _size = field_validator("memory_limit")(_duckdb_size)


class Settings(_Section):
    """All settings, frozen. Get one from `load_settings`."""

    paths: Paths
    watch: Watch
    ingest: Ingest
    publish: Publish
    gold: Gold
    compaction: Compaction
    retention: Retention
    metrics: Metrics
    logging: Logging
    privacy: Privacy
    duckdb: DuckDB


def _fields() -> Iterator[tuple[str, type]]:
    for section, field in Settings.model_fields.items():
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, _Section)
        for name, info in field.annotation.model_fields.items():
            yield f"{section}.{name}", info.annotation if isinstance(info.annotation, type) else str


SETTING_TYPES: Mapping[str, type] = MappingProxyType(dict(_fields()))
SETTING_KEYS: tuple[str, ...] = tuple(SETTING_TYPES)
"""Every key as `section.key`, in the order of the shipped file."""
