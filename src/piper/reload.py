"""Reload: take over changed settings while piperd runs, and say which of them need a restart.

SIGHUP and `piper reload` do the same. All sources of the settings are read again; the environment is that of the start,
so what changes is in files. A settings file that is wrong changes nothing: piperd keeps what it has and says why. What
differs is taken over as a whole or not at all, except for settings that only a start reads: those are named, each
time, for as long as they differ from what is in force.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple, Protocol

import anyio
import anyio.to_thread
import structlog

from piper.errors import PiperError
from piper.ops.systemd import Notifier
from piper.settings import Settings
from piper.settings_sources import LoadedSettings, setting_rows

RELOADABLE: Final = (
    "watch.poll_seconds",
    "ingest.batch_events_max",
    "ingest.batch_bytes_max",
    "ingest.flush_seconds",
    "ingest.seal_events_max",
    "ingest.seal_seconds",
    "publish.seconds",
    "gold.refresh_seconds",
    "compaction.hours",
    "retention.silver_days",
    "retention.quarantine_days",
    "retention.run_log_days",
    "logging.level",
    "duckdb.memory_limit",
)
"""Settings that are read each time they are needed. Every other one is built into something at the start."""

_log = structlog.get_logger(component="reload")


class Change(NamedTuple):
    """A setting that differs from what is in force; values are JSON scalars."""

    key: str
    old: object
    new: object
    source: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reload did: `applied` is in force now, `needs_restart` is not."""

    applied: list[Change] = field(default_factory=list)
    needs_restart: list[Change] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For the control socket and `--json`."""
        return {name: [change._asdict() for change in changes] for name, changes in asdict(self).items()}


class Reloadable(Protocol):
    """What a reload needs of the daemon."""

    settings: Settings

    async def take_over(self, settings: Settings) -> None:
        """Go on with `settings`, which differ in RELOADABLE keys only. Raises PiperError, and keeps the old ones."""


def merge(running: Settings, wanted: LoadedSettings) -> tuple[Settings, Outcome]:
    """The settings that `running` can become without a restart, and all that differs from `wanted`."""
    before = {row.key: row.value for row in setting_rows(LoadedSettings(running, wanted.sources))}
    outcome = Outcome()
    sections: dict[str, dict[str, object]] = {}
    for key, value, source in setting_rows(wanted):
        if value == before[key]:
            continue
        change = Change(key, before[key], value, source)
        if key not in RELOADABLE:
            outcome.needs_restart.append(change)
            continue
        outcome.applied.append(change)
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = getattr(getattr(wanted.settings, section), name)
    changed = {section: getattr(running, section).model_copy(update=values) for section, values in sections.items()}
    return running.model_copy(update=changed), outcome


class Reloader:
    """Does reloads, one at a time. `load` reads all sources of the settings; it raises PiperError."""

    def __init__(self, load: Callable[[], LoadedSettings], daemon: Reloadable, notifier: Notifier) -> None:
        self._load, self._daemon, self._notifier = load, daemon, notifier
        self._lock = anyio.Lock()
        self._asked = anyio.Event()

    def ask(self) -> None:
        """Have `serve` do a reload: from a signal, where nobody waits for the outcome."""
        self._asked.set()

    async def serve(self) -> None:
        """Do what was asked for, until cancelled."""
        while True:
            await self._asked.wait()
            self._asked = anyio.Event()
            with suppress(PiperError):  # logged by reload, and nobody else waits for it
                await self.reload()

    async def reload(self) -> Outcome:
        """Read the settings anew and take over what can be. Raises PiperError: nothing is changed then."""
        async with self._lock:
            self._notifier.reloading()
            try:
                # Abandoned where the settings file hangs in a dead mount: a stop must not wait for that.
                wanted = await anyio.to_thread.run_sync(self._load, abandon_on_cancel=True)
                settings, outcome = merge(self._daemon.settings, wanted)
                if outcome.applied:
                    await self._daemon.take_over(settings)
            except PiperError as error:
                _log.error("reload_refused", error=error.message, hint=error.hint)
                raise
            finally:
                self._notifier.ready()
            _tell(outcome)
            return outcome


def _tell(outcome: Outcome) -> None:
    for change in outcome.applied:
        _log.info("setting_changed", key=change.key, old=change.old, new=change.new, source=change.source)
    for change in outcome.needs_restart:
        hint = "Restart piperd to put it in force."
        _log.warning(
            "setting_needs_restart", key=change.key, old=change.old, new=change.new, source=change.source, hint=hint
        )
    _log.info("reloaded", applied=len(outcome.applied), needs_restart=len(outcome.needs_restart))
