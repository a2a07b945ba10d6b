"""One piperd that reads its spool through the fault layer, for all cases of a module; each case writes as its own user.

Doubts are believed 30 times sooner here than in the field ("a minute" of a case is two seconds) unless a case is
`patient`, and full scans follow each other as closely as polls: their distance saves CPU, and through FUSE each costs a
hundred times as much.
A reader on DuckDB 1.5.4 stays connected from the first case to the last; the module's case 23 asks it what it saw.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.event_lines import HOST, event_line
from tests.support.faultfs import FaultFs, Rule
from tests.support.piperd import Piperd
from tests.support.polling import wait_until
from tests.support.reader_engine import READER_VERSION, ReaderUnavailable, reader_site, require_reader_site
from tests.support.readers import Reader
from tests.support.warehouse import catalog, count_of, quarantine_records

SOONER = 30
PATIENT = "patient"
"""While a file of this name lies in piperd's working directory, doubts are as old as in the field when believed."""
QUICK_DOUBTS = (
    sys.executable,
    "-c",
    f"""
import os, sys
sys.argv = ["piperd"]
from piper.spool import track
class Doubts(dict):
    def __getitem__(self, doubt):
        return super().__getitem__(doubt) / (1 if os.path.exists({PATIENT!r}) else {SOONER})
track.DOUBT_SECONDS = Doubts(track.DOUBT_SECONDS)
import piper.lookout
assert piper.lookout.SCAN_SHARE
piper.lookout.SCAN_SHARE = 1.0
from piper.cli import main_daemon
main_daemon()
""",
)
"""Put before the command of piperd, instead of which it runs."""
SETTINGS: dict[str, object] = {"WATCH__POLL_SECONDS": 0.1, "WATCH__MODE": "poll", "GOLD__REFRESH_SECONDS": 3600}


@dataclass
class House:
    """A spool behind the fault layer, the piperd that reads it, and what readers find."""

    fs: FaultFs
    piperd: Piperd
    patience: Path
    reader: Reader | None = None
    """None where there is no DuckDB 1.5.4, or once it was asked."""

    def folder(self, user: str) -> Path:
        """The user's directory, where writers see it."""
        folder = self.fs.backing / HOST / user
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def lie(self, *rules: Rule) -> None:
        """Have the mount lie like this from now on, and only like this."""
        self.fs.script(*rules)

    @contextmanager
    def patient(self) -> Iterator[None]:
        """What is doubted in here stays doubted, however slow the machine."""
        self.patience.touch()
        try:
            yield
        finally:
            self.patience.unlink()

    def silver(self, user: str) -> Counter[str]:
        """How often readers see each event of the user."""
        with catalog(self.piperd.data_root) as con:
            rows = con.execute("SELECT event_id FROM silver_events WHERE host_user = ?", [user]).fetchall()
        return Counter(row[0] for row in rows)

    def quarantine(self, user: str) -> list[str]:
        """The reasons for which lines from the user's directory are in quarantine."""
        found = quarantine_records(self.piperd.data_root)
        return [record["reason"] for record in found if f"/{user}/" in record["source_file"]]

    def wait_for(self, user: str, expected: Iterable[str]) -> None:
        """Until readers see these events of the user, each once, and no other."""
        wanted = Counter(expected)
        wait_until(lambda: self.silver(user) >= wanted, what=lambda: self._difference(user, wanted))
        assert self.silver(user) == wanted, self._difference(user, wanted)

    def scans(self, number: int = 3) -> None:
        """Until so many more scans of the spool have ended, whatever they found."""
        for _ in range(number):
            before = self.piperd.metric("piper_last_scan_timestamp_seconds")
            wait_until(lambda before=before: self.piperd.metric("piper_last_scan_timestamp_seconds") > before)  # type: ignore[misc]

    def assert_exact(self, user: str, expected: Iterable[str], quarantined: Iterable[str] = ()) -> None:
        """Silver and quarantine hold exactly this of the user, and nothing was read twice by this run of piperd."""
        self.lie()
        self.wait_for(user, expected)
        self.scans()
        self.wait_for(user, expected)
        assert sorted(self.quarantine(user)) == sorted(quarantined)
        assert self.piperd.metric("piper_events_duplicate_total") == 0

    def assert_readers_saw_no_harm(self) -> None:
        """Ends the reader: no query of it failed, counted an event twice, or found fewer rows than the one before."""
        reader, self.reader = self.reader, None
        if reader is None:
            require_reader_site()
        assert reader is not None, "it was asked before"
        reader.wait_round()
        report = reader.stop()
        assert report["problems"] == []
        assert report["version"] == f"v{READER_VERSION}"
        with catalog(self.piperd.data_root) as con:
            assert report["counts"]["silver_events"] == count_of(con, "silver_events") > 0

    def file_events(self, kind: str) -> float:
        """How often this run of piperd saw a thing of this kind happen to a file."""
        return self.piperd.metric("piper_file_events_total", kind=kind)

    def restart(self) -> None:
        """Stop piperd in order and start it again."""
        self.piperd.stop()
        self.piperd.start_ready()

    def _difference(self, user: str, wanted: Counter[str]) -> str:
        found = self.silver(user)
        return f"missing {sorted(wanted - found)[:5]}, surplus {sorted(found - wanted)[:5]}\n{self.piperd.log_text()}"


def lines(user: str, ids: Iterable[str]) -> bytes:
    """Events of the user with these ids, as lines."""
    return b"".join(event_line(event_id, user=user) for event_id in ids)


def append(path: Path, data: bytes) -> None:
    """What a writer does."""
    with path.open("ab") as stream:
        stream.write(data)


def refill(path: Path, data: bytes) -> None:
    """Truncate in place and write other content: the inode stays."""
    with path.open("r+b") as stream:
        stream.truncate(0)
        stream.write(data)


@pytest.fixture(scope="module")
def running_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("torture")
    with FaultFs(folder) as fs:
        # One file that no case touches, so that the spool is never empty by itself.
        anchor = fs.backing / HOST / "anchor" / "a.jsonl"
        anchor.parent.mkdir(parents=True)
        anchor.write_bytes(lines("anchor", ["anchor-1"]))
        with Piperd(fs.root, folder / "data", folder / "logs", SETTINGS, prefix=QUICK_DOUBTS) as piperd:
            piperd.start_ready()
            house = House(fs, piperd, patience=folder / "logs" / PATIENT)
            with ExitStack() as stack:
                with suppress(ReaderUnavailable):
                    database = piperd.data_root / "warehouse" / "telemetry.duckdb"
                    house.reader = stack.enter_context(Reader(reader_site(), database))
                    house.reader.wait_started()
                yield house


@pytest.fixture
def house(running_house: House) -> Iterator[House]:
    """The module's house, telling the truth before and after each case."""
    running_house.lie()
    if not running_house.piperd.is_running:
        running_house.piperd.start()
    running_house.piperd.wait_ready()
    if running_house.piperd.metric("piper_events_duplicate_total"):  # of a case that failed: not the next one's fault
        running_house.restart()
    yield running_house
    running_house.lie()
