"""Whatever happened to a spool, a backfill makes silver what a fresh ingest of the present files gives for its days.

By event_id: of several lines the first counts, by file name and offset. Events whose line is gone stay, and so does
everything of other days. A line is never in both silver and quarantine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from tests.support import parse_reference as reference
from tests.support.odd_lines import ONE_OF_EACH, dump, full_event
from tests.support.spool_run import NOW, START, SpoolRun, comparable, expected, spool_run
from tests.support.warehouse import raw_of

from piper.backfill.run import Backfill
from piper.backfill.scope import Scope
from piper.silver.datasets import DATASETS
from piper.silver.rewrite import Rewrite, partitions
from piper.upkeep import Hands

Row = dict[str, Any]
DAYS = [NOW.date() - timedelta(days=days) for days in range(4)]
FILES = ("hosta/amara/b.jsonl", "hosta/björn/a.jsonl", "hostb/chen/c.jsonl")
SCOPES = (Scope(), Scope(DAYS[1], DAYS[1]), Scope(DAYS[2], DAYS[0]), Scope(DAYS[3], DAYS[2]))
SHORT_LINE_BYTES = 3000
SOURCE = ("source_file", "source_offset", "source_line", "ingested_at_utc")


@dataclass
class Spool:
    """The lines of each file as they are now; `change` does something to them."""

    random: Random
    lines: dict[str, list[bytes]] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)

    def content(self) -> dict[str, bytes]:
        """By path, in the order in which a backfill reads."""
        ordered = sorted(self.lines, key=lambda path: (path.rpartition("/")[2], path))
        return {path: b"".join(self.lines[path]) for path in ordered}

    def change(self) -> None:
        random = self.random
        action = random.choice(["append", "append", "edit", "break", "correct", "repeat", "delete", "shift"])
        path = random.choice(FILES)
        lines = self.lines.setdefault(path, [])
        if action == "append" or not lines:
            lines += [self._new_line() for _ in range(random.randint(1, 6))]
        elif action == "delete":
            if random.random() < 0.3:
                del self.lines[path]
        elif action == "shift":
            lines.insert(0, self._new_line())
        elif action == "repeat":  # the same event in another file, told the same way or otherwise
            lines.append(self._event(random.choice(self.ids or [self._new_id()])))
        else:
            at = random.randrange(len(lines))
            lines[at] = self._altered(lines[at], action)

    def _altered(self, line: bytes, action: str) -> bytes:
        event_id = _id_in(line)
        if event_id is None:
            return self._event(self._new_id()) if action == "correct" else line
        if action == "break":
            return json.dumps({"event_id": event_id, "event_type": "file.open"}).encode() + b"\n"
        return self._event(event_id)

    def _new_id(self) -> str:
        self.ids.append(f"e{len(self.ids):05d}")
        return self.ids[-1]

    def _new_line(self) -> bytes:
        kind = self.random.random()
        if kind < 0.12:
            return self.random.choice([b"no json\n", b"\n", b"\xff\xfe\n", b'{"event_id": "half\n'])
        if kind < 0.2:
            return self._event(self._new_id(), hours_ahead=self.random.choice([2, 20]))
        if kind < 0.28:
            return self._event(self._new_id(), filler="x" * SHORT_LINE_BYTES)
        return self._event(self._new_id())

    def _event(self, event_id: str, *, hours_ahead: int = 0, filler: str = "") -> bytes:
        random = self.random
        event = full_event(random.choice(ONE_OF_EACH), random.choice(["nested", "flat"]), event_id)
        at = NOW - timedelta(days=random.randrange(4), minutes=random.randrange(600))
        if hours_ahead:
            at = NOW + timedelta(hours=hours_ahead)
        event["occurred_at" if "occurred_at" in event else "occurred_at_utc"] = at.isoformat() + "Z"
        event["payload"] = {**event["payload"], "note": random.randrange(5), "filler": filler}
        return dump(event).encode() + b"\n"


def _id_in(line: bytes) -> str | None:
    try:
        return str(json.loads(line)["event_id"])
    except (ValueError, KeyError, TypeError):
        return None


def put(run: SpoolRun, files: dict[str, bytes]) -> None:
    """Make the spool hold these files and no others."""
    root = run.root / "spool"
    for path in FILES:
        file = root / path
        if path in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(files[path])
            os.utime(file, (START, START))
        else:
            file.unlink(missing_ok=True)


def spoil(run: SpoolRun, random: Random) -> None:
    """Some rows as an earlier piper would have stored them: another error code."""
    writer = run.writer
    writer.seal()
    con = writer.store.con
    rewrite = Rewrite.begin(writer.store, con)
    for partition in partitions(con):
        if random.random() < 0.5:
            rewrite.replace(con, partition, select=lambda rows: f"SELECT * REPLACE ('old' AS error_code) FROM ({rows})")
    rewrite.commit(now=writer.clock.now())


def do_backfill(run: SpoolRun, scope: Scope, *, is_dry: bool = False) -> Row:
    with closing(Hands(run.writer)) as hands:
        backfill = Backfill(is_live=False, is_dry=is_dry)
        backfill.begin(hands, scope)
        while backfill.step(hands) is not None:
            pass
        state = backfill.state(hands)
        assert state is not None
        run.writer.export_quarantine()
        return backfill.summary(state)


def stored(run: SpoolRun) -> dict[str, dict[str, Row]]:
    """Rows of every dataset by event_id, each there once, without what says when and from where they came."""
    found: dict[str, dict[str, Row]] = {}
    for dataset in DATASETS:
        rows = [comparable(dataset, row) for row in run.rows(dataset)]
        found[dataset] = {row["event_id"]: _content(row) for row in rows}
        assert len(found[dataset]) == len(rows), f"{dataset} has an event twice"
    return found


def _content(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in SOURCE}


def wanted(
    before: dict[str, dict[str, Row]], files: dict[str, bytes], scope: Scope, withdrawn: Iterable[str]
) -> dict[str, dict[str, Row]]:
    rows, _ = expected(files)
    fresh = {name: {row["event_id"]: _content(row) for row in found} for name, found in rows.items()}

    def is_meant(event_id: str) -> bool:
        dates: list[date] = [
            side["events"][event_id]["event_date"] for side in (before, fresh) if event_id in side["events"]
        ]
        return any(scope.first <= day <= scope.last for day in dates)

    taken = {event_id for event_id in fresh["events"] if is_meant(event_id)}
    gone = {event_id for event_id in withdrawn if is_meant(event_id)}
    return {
        name: {k: row for k, row in before[name].items() if k not in taken | gone}
        | {k: row for k, row in fresh[name].items() if k in taken}
        for name in DATASETS
    }


def withdrawn_ids(run: SpoolRun, files: dict[str, bytes]) -> set[str]:
    """Events whose line, by id and offset, is there and broken, and that no other line gives."""
    rows, rejected = expected(files)
    fresh = {row["event_id"] for row in rows["events"]}
    broken = {
        (_id_in(files[r["source_file"]][r["source_offset"] :].split(b"\n")[0]), r["source_offset"]) for r in rejected
    }
    return {
        row["event_id"]
        for row in run.rows("events")
        if (row["event_id"], row["source_offset"]) in broken and row["event_id"] not in fresh
    }


def check_quarantine(run: SpoolRun, files: dict[str, bytes], scope: Scope) -> None:
    """A line that passes has left, one that does not is in quarantine once unless silver has its event."""
    _, rejected = expected(files)
    records = run.quarantined()
    places = [(r["source_file"], r["source_offset"], r["raw_md5"]) for r in records]
    assert len(set(places)) == len(places), "a line is in quarantine twice"
    silver = {row["event_id"] for row in run.rows("events")}
    passing = {
        (path, offset, line[: 64 * 1024])
        for path, content in files.items()
        for offset, _, line in reference.split_lines(content)
        if isinstance(found := reference.judge(line, NOW), reference.Accepted)
        and scope.first <= found.event["event_date"] <= scope.last
    }
    kept = {(r["source_file"], r["source_offset"], raw_of(r)[: 64 * 1024]) for r in records}
    assert not passing & kept, "a line that passes is still in quarantine"
    for row in rejected:
        line = files[row["source_file"]][row["source_offset"] :].split(b"\n")[0]
        is_kept = (row["source_file"], row["source_offset"], line[: 64 * 1024]) in kept
        assert is_kept or _id_in(line) in silver, f"nowhere: {row} {line[:80]!r}"


@pytest.mark.parametrize("seed", range(8))
def test_silver_becomes_what_a_fresh_ingest_gives_and_what_is_gone_stays(seed: int) -> None:
    random = Random(seed)
    spool = Spool(random)
    with TemporaryDirectory() as folder:
        with spool_run(Path(folder), INGEST__LINE_BYTES_MAX=str(SHORT_LINE_BYTES)) as run:
            run.seconds = -24 * 3600.0 if random.random() < 0.3 else 0.0
            for _ in range(random.randint(1, 3)):
                for _ in range(random.randint(2, 5)):
                    spool.change()
                put(run, spool.content())
                run.look()
            run.writer.export_quarantine()
            if random.random() < 0.5:
                spoil(run, random)
        with spool_run(Path(folder)) as run:
            for _ in range(random.randint(0, 5)):
                spool.change()
            files = spool.content()
            put(run, files)
            if random.random() < 0.5:
                run.look()
            scope = random.choice(SCOPES)
            want = wanted(stored(run), files, scope, withdrawn_ids(run, files))
            promised = do_backfill(run, scope, is_dry=True)
            done = do_backfill(run, scope)
            now = stored(run)
            for dataset in DATASETS:
                assert now[dataset].keys() == want[dataset].keys(), dataset
                assert now[dataset] == want[dataset], dataset
            for kind in ("added", "replaced", "rejected", "released", "unchanged", "dates"):
                assert promised[kind] == done[kind], "the dry run promised something else"
            again = do_backfill(run, scope)
            assert again["dates"] == {}, "what is done is not done again"
            for _ in range(4):  # the tailer brings the lines that the backfill has left to it, once it doubts no file
                run.seconds += 40.0
                run.look()
            run.writer.export_quarantine()
            assert stored(run)["events"].keys() >= now["events"].keys(), "what comes later takes nothing away"
            check_quarantine(run, files, scope)
