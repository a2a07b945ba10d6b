"""Where things lie under a data root. Nothing else in piper spells these names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from piper.settings import Settings


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths below one data root; `state` may lie elsewhere (a local disk)."""

    data_root: Path
    state: Path

    @classmethod
    def of(cls, settings: Settings) -> Layout:
        """The layout that the settings name."""
        return cls(settings.paths.data_root, settings.paths.state_root)

    @property
    def owner_file(self) -> Path:
        """Which manifest the data root belongs to (silver/owner.py)."""
        return self.data_root / "owner.json"

    @property
    def silver(self) -> Path:
        """Sealed chunks: <dataset>/event_date=…/[event_type=…/]<commit_seq>-<n>.parquet, immutable; those of a rewrite
        are called r<number>-<n>.parquet.
        """
        return self.data_root / "silver"

    @property
    def staging(self) -> Path:
        """Chunks that are being written; on the file system of silver, below no glob of a view."""
        return self.silver / ".staging"

    @property
    def parked(self) -> Path:
        """Chunks that no query counts or lists any more, for those that have listed them (silver/hidden.py)."""
        return self.silver / ".parked"

    @property
    def warehouse(self) -> Path:
        """What readers open."""
        return self.data_root / "warehouse"

    @property
    def catalog(self) -> Path:
        """The database of views that everyone opens, read-only."""
        return self.warehouse / "telemetry.duckdb"

    @property
    def tail(self) -> Path:
        """The rows not sealed yet, as readers see them: <number>.parquet (silver/segments.py)."""
        return self.warehouse / "tail"

    @property
    def gold(self) -> Path:
        """Snapshot of the gold tables."""
        return self.warehouse / "gold.duckdb"

    @property
    def generations(self) -> Path:
        """Earlier snapshots and segments, kept for the queries that have them open or listed."""
        return self.warehouse / ".generations"

    @property
    def quarantine(self) -> Path:
        """Rejected lines: YYYY-MM-DD/*.jsonl."""
        return self.data_root / "quarantine" / "invalid_jsonl"

    @property
    def run_logs(self) -> Path:
        """One log file a run: YYYY-MM-DD/*.jsonl."""
        return self.data_root / "run_logs"

    @property
    def manifest(self) -> Path:
        """The writer's own database."""
        return self.state / "ingest_manifest.duckdb"

    @property
    def keys(self) -> Path:
        """Key runs, to which the manifest's older keys have moved: immutable, named by the manifest."""
        return self.state / "keys"

    @property
    def gold_state(self) -> Path:
        """The gold tables with their watermarks."""
        return self.state / "gold.duckdb"

    @property
    def control_socket(self) -> Path:
        """Where a running piperd listens."""
        return self.state / "control.sock"

    @property
    def writer_file(self) -> Path:
        """Who holds the manifest, for the message to whoever comes second."""
        return self.state / "writer.json"
