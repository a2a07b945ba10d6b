"""Outlet: when piperd brings what is committed before its readers, and keeps in order what they open.

A full or lost warehouse disk does not stop ingest: publishing says that it failed, and is tried again.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable

import duckdb
import structlog

from piper.layout import Layout
from piper.ops.health import Health
from piper.ops.metrics import Metrics
from piper.ops.storage import hidden_chunks, storage_bytes
from piper.silver.diagnosis import explain
from piper.writer import Writer

PUBLISH_SHARE = 0.25
"""Of the writer's time: where publishing takes long (a slow disk), it is done less often than publish.seconds asks."""
PUBLISH_RETRY_SECONDS = 2.0
GATHER_SECONDS_MAX = 1.0
"""Lines wait for the next publish to be due before they are committed, as no reader sees them earlier; no longer."""
MENDING_SECONDS = 3.0
"""How often it looks whether readers still have their files."""
HOUSEKEEPING_SECONDS = 15.0

_log = structlog.get_logger(component="daemon")


class Outlet:
    """Publishes, mends and tidies when each is due. In the writer's thread; `on_gold_lost` is called there."""

    def __init__(self, layout: Layout, metrics: Metrics, health: Health, on_gold_lost: Callable[[], None]) -> None:
        self._layout, self._metrics, self._health = layout, metrics, health
        self._on_gold_lost = on_gold_lost
        self._next_publish = self._next_mending = self._next_housekeeping = 0.0
        self._owes = True
        """Whether something may be left to do although nothing was committed since: a failure, a killed process."""

    def publish_soon(self) -> None:
        """The next publish is due at once."""
        self._next_publish, self._owes = 0.0, True

    def pause(self) -> float:
        """For how long it is of no use to anybody to commit, in seconds: one batch a publish is the cheapest."""
        return min(GATHER_SECONDS_MAX, self._next_publish - time.monotonic())

    def keep(self, writer: Writer) -> float:
        """Do what is due; returns when the next thing is, on the monotonic clock.

        Raises duckdb.Error where the manifest itself fails.
        """
        has_news = self._owes or writer.has_news
        if has_news and time.monotonic() >= self._next_publish:
            self._publish(writer)
            has_news = self._owes or writer.has_news
        if time.monotonic() >= self._next_mending:
            self._next_mending = time.monotonic() + MENDING_SECONDS
            self._mend(writer)
        if time.monotonic() >= self._next_housekeeping:
            self._next_housekeeping = time.monotonic() + HOUSEKEEPING_SECONDS
            self._keep_house(writer)
        return min(self._next_mending, self._next_publish if has_news else math.inf)

    def _publish(self, writer: Writer) -> None:
        """Export quarantine and publish the tail."""
        started = time.monotonic()
        try:
            writer.export_quarantine()
            if writer.publish():
                seconds = time.monotonic() - started
                self._next_publish = started + max(writer.settings.publish.seconds, seconds / PUBLISH_SHARE)
            self._health.set_ready("publish")
            self._owes = False
        except (OSError, duckdb.Error) as error:
            self._publish_failed(writer, error)

    def _publish_failed(self, writer: Writer, error: OSError | duckdb.Error) -> None:
        """Go on without, and try again; an error of the manifest itself is raised."""
        self._owes = True
        if isinstance(error, duckdb.Error) and str(self._layout.warehouse) not in str(error):
            raise error
        self._next_publish = time.monotonic() + max(PUBLISH_RETRY_SECONDS, writer.settings.publish.seconds)
        self._health.set_not_ready("publish", in_words(error, self._layout))
        _log.error("publish_failed", error=str(error))

    def _mend(self, writer: Writer) -> None:
        """Readers need files that nobody but piper should touch, and somebody has. Ingest goes on in any case."""
        try:
            lost = writer.warehouse.mend()
        except (OSError, duckdb.Error) as error:
            self._publish_failed(writer, error)
            return
        if lost:
            _log.warning("warehouse_mended", files=lost)
        if "gold" in lost:
            self._on_gold_lost()

    def _keep_house(self, writer: Writer) -> None:
        self._metrics.storage(storage_bytes(writer.store))
        self._metrics.hidden_chunks(hidden_chunks(writer.store.con))
        writer.warehouse.tidy()  # also when nothing new is published: they may show what was masked since
        usage = shutil.disk_usage(self._layout.data_root)
        self._metrics.disk(usage.free, usage.total)
        if self._layout.state.stat().st_dev != self._layout.data_root.stat().st_dev:
            usage = shutil.disk_usage(self._layout.state)
            self._metrics.state_disk(usage.free, usage.total)


def in_words(error: BaseException, layout: Layout) -> str:
    """What is wrong, for whoever asks /readyz."""
    known = explain(error, layout) if isinstance(error, duckdb.Error | OSError) else None
    return known.message if known is not None else f"{type(error).__name__}: {error}"
