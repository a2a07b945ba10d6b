"""An hour in the life of piperd with everything that can go wrong, and an exact account of every line at its end.

    python bench/soak.py --minutes 60 --rate 500
    python bench/soak.py --lines 1000000 --kills 200 --rate 1250 --faults rotate,rename,next_file,touch,cut

Writers, in processes, write numbered lines and rotate, rename, truncate, delete, cut lines and lie (soak_writers.py).
Readers on DuckDB 1.5.4 stay connected and look for anything double, lost or failed (soak_reader.py). piperd is killed
by SIGKILL again and again, at random moments and at random failpoints, while commands compact, backfill, replay, reload
and materialize. Then comes a calm time without kills (its share: `--calm`), in which memory, descriptors and CPU of the
one piperd are watched: faults and commands go on. At the end every number is looked up (soak_account.py).

With `--lines` and `--kills`, so many lines arrive, and piperd is killed so often meanwhile and no otherwise.
Exits 1 when any line is not where it must be, a reader saw anything wrong, gold is not what a rebuild gives, or piperd
ended by itself. Memory and time are reported and not judged: the machine may have other work.
"""

from __future__ import annotations

import argparse
import ast
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import duckdb  # noqa: E402
from bench.soak_account import (  # noqa: E402
    Quarantine,
    Verdict,
    gold_tables,
    judge_datasets,
    judge_gold,
    judge_writer,
    silver_counts,
)
from bench.soak_writers import EVENT, FAULTS, Account, WriterOptions, run_writer  # noqa: E402
from tests.support.failpoints import failpoints_in_source  # noqa: E402
from tests.support.reader_engine import reader_environment, reader_site  # noqa: E402

from piper.demo.process import CODE, DaemonProcess  # noqa: E402
from piper.layout import Layout  # noqa: E402
from piper.publish.catalog import silver_view_sql  # noqa: E402
from piper.settings_sources import load_settings  # noqa: E402
from piper.silver.datasets import DATASETS  # noqa: E402

START_SECONDS = 180.0
SETTLE_SECONDS = 420.0
"""How long the last lines may take: a truncated file is believed after 90 s (spool/track.py), on a machine at rest."""
COMMAND_SECONDS = 300.0
SAMPLE_SECONDS = 2.0
LEAD_SHARE = 0.1
"""Of the calm life, the beginning that is no part of the quarters: caches fill."""
FAILPOINT_SHARE = 0.35
"""Of the lives, those that end at a failpoint if they reach it."""
COMMANDS = (
    ("compact",), ("backfill", "--all"), ("quarantine", "replay"), ("reload",), ("materialize",), ("status",),
    ("doctor",),
)  # fmt: skip


@dataclass
class Sample:
    """What piperd took at one moment."""

    at: float
    pid: int
    rss_bytes: int
    descriptors: int
    cpu_seconds: float


@dataclass
class Run:
    """One soak: its processes, and what happened."""

    options: argparse.Namespace
    root: Path
    rng: Random
    daemon: DaemonProcess | None = None
    lives: int = 0
    kills: int = 0
    failpoint_deaths: Counter[str] = field(default_factory=Counter)
    commands: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    calm_pid: int = 0
    silver_at: dict[int, int] = field(default_factory=dict)

    @property
    def raw(self) -> Path:
        return self.root / "raw"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def catalog(self) -> Path:
        return self.data / "warehouse" / "telemetry.duckdb"

    @property
    def settings(self) -> dict[str, str]:
        return {
            "PIPER_INGEST__SEAL_EVENTS_MAX": str(self.options.seal_events),
            "PIPER_COMPACTION__HOURS": "always",
            "PIPER_GOLD__REFRESH_SECONDS": "5",
        }

    # ---- piperd ----------------------------------------------------------------------------------------------------

    def start(self, failpoint: str = "") -> DaemonProcess:
        """A new life; again where a command still holds the data root."""
        extra = {"PIPER_FAILPOINT": failpoint} if failpoint else {}
        self.lives += 1
        code = f"import piper.silver.keys; piper.silver.keys.SPILL_KEYS = {self.options.spill_keys}; {CODE}"
        self.daemon = DaemonProcess.start(self.raw, self.data, self.root / "piperd.log", self.settings | extra, code)
        return self.daemon

    def wait_ready(self) -> None:
        assert self.daemon is not None
        deadline = time.monotonic() + START_SECONDS
        while not self.daemon.ready:
            if self.daemon.exit_code is not None or time.monotonic() > deadline:
                raise SystemExit(f"piperd is not ready:\n{self.daemon.log_tail()}")
            time.sleep(0.2)

    def one_life(self, until: float) -> None:
        """Start it, perhaps to die at a failpoint or with a command under way, and kill it."""
        rng, left = self.rng, until - time.monotonic()
        mean = left / (self.options.kills - self.kills) if self.options.kills else self.options.kill_every
        seconds = min(rng.uniform(0.1, 2 * max(mean, 0.1)), 0.95 * left)
        name = rng.choice(FAILPOINTS) if rng.random() < FAILPOINT_SHARE and not self.options.kills else ""
        daemon = self.start(f"{name}:{rng.choice([1, 1, 2, 3, 10])}" if name else "")
        end = time.monotonic() + max(0.1, seconds)
        asked = time.monotonic() + rng.uniform(0.5, 3.0) if rng.random() < self.options.command_share else float("inf")
        command: subprocess.Popen[bytes] | None = None
        while time.monotonic() < end and daemon.exit_code is None:
            if command is None and time.monotonic() >= asked:
                command = self.command(rng.choice(COMMANDS))
            time.sleep(0.05)
        self.end_life(daemon, name)
        if command is not None:
            self.finish(command)

    def end_life(self, daemon: DaemonProcess, failpoint: str) -> None:
        code = daemon.exit_code
        if code is None:
            os.kill(daemon.pid, 9)
            daemon._process.wait()
            self.kills += 1
        elif code == -9 and failpoint:
            self.failpoint_deaths[failpoint] += 1
        elif "in use" not in daemon.log_tail():
            self.problems.append(f"piperd ended with {code}: {daemon.log_tail()[-1500:]}")

    def command(self, arguments: tuple[str, ...]) -> subprocess.Popen[bytes]:
        self.commands[" ".join(arguments)] += 1
        env = {name: value for name, value in os.environ.items() if not name.startswith("PIPER_")}
        env |= {"PYTHONPATH": os.pathsep.join([str(REPOSITORY / "src"), env.get("PYTHONPATH", "")])}
        env |= {"PIPER_PATHS__RAW_ROOT": str(self.raw), "PIPER_PATHS__DATA_ROOT": str(self.data), **self.settings}
        with (self.root / "commands.log").open("ab") as log:
            log.write(f"$ piper {' '.join(arguments)}\n".encode())
            log.flush()
            return subprocess.Popen([sys.executable, "-m", "piper", *arguments], env=env, cwd=self.root,
                                    stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # fmt: skip

    def finish(self, command: subprocess.Popen[bytes], seconds: float = 20.0) -> int | None:
        """Wait for a command, whose piperd may be gone; one that goes on for long is killed as well."""
        try:
            return command.wait(seconds)
        except subprocess.TimeoutExpired:
            command.kill()
            command.wait()
            return None

    # ---- what is watched ---------------------------------------------------------------------------------------

    def sample(self) -> None:
        daemon = self.daemon
        if daemon is None or daemon.exit_code is not None:
            return
        process = Path("/proc") / str(daemon.pid)
        try:
            fields = (process / "stat").read_text("ascii").rpartition(")")[2].split()
            rss = int((process / "statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
            count = len(list((process / "fd").iterdir()))
        except (OSError, IndexError):
            return
        cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        self.samples.append(Sample(time.monotonic(), daemon.pid, rss, count, cpu))

    def flatness(self) -> dict[str, dict[str, float]]:
        """Of the calm life: the mean of each quarter, and the last one in parts of the first."""
        mine = [sample for sample in self.samples if sample.pid == self.calm_pid]
        mine = mine[int(len(mine) * LEAD_SHARE) :]
        if len(mine) < 8:
            return {}
        size = len(mine) // 4
        quarters = [mine[at * size : (at + 1) * size] for at in range(4)]
        found = {
            "resident memory, MB": [sum(s.rss_bytes for s in q) / len(q) / 1e6 for q in quarters],
            "descriptors": [sum(s.descriptors for s in q) / len(q) for q in quarters],
            "CPU, % of a core": [100 * (q[-1].cpu_seconds - q[0].cpu_seconds) / (q[-1].at - q[0].at) for q in quarters],
        }
        return {
            name: {f"quarter {n}": round(value, 1) for n, value in enumerate(values, 1)}
            | {"last / first": round(values[-1] / values[0], 3) if values[0] else 0.0}
            for name, values in found.items()
        }


class SeenThread(threading.Thread):
    """Notes what silver shows of what the tailer has read: rows of a rewrite, as of a backfill, say nothing of that."""

    def __init__(self, run: Run, accounts: list[Account]) -> None:
        super().__init__(daemon=True)
        self._catalog, self._accounts = run.catalog, accounts
        paths = {"PIPER_PATHS__RAW_ROOT": str(run.raw), "PIPER_PATHS__DATA_ROOT": str(run.data)}
        layout = Layout.of(load_settings(env=paths).settings)
        self._rows = silver_view_sql(DATASETS["events"], layout, with_internal=True)
        self.ending = threading.Event()
        self.failed: list[str] = []

    def run(self) -> None:
        through = 0
        with duckdb.connect(str(self._catalog), read_only=True) as con:
            con.execute("SET threads = 1")
            pause = 1.0
            while not self.ending.wait(pause):
                started = time.monotonic()
                try:
                    rows = con.execute(
                        f"SELECT event_id, commit_seq FROM ({self._rows}) WHERE commit_seq > ?", [through]
                    ).fetchall()
                except duckdb.Error as error:
                    self.failed.append(str(error)[:500])
                    continue
                for event_id, commit_seq in rows:
                    writer, _, number = event_id[1:].partition("-")
                    self._accounts[int(writer)].seen[int(number)] = 1
                    through = max(through, commit_seq)
                pause = max(1.0, 10 * (time.monotonic() - started))


class Sampler(threading.Thread):
    def __init__(self, run: Run) -> None:
        super().__init__(daemon=True)
        self._run = run
        self.ending = threading.Event()

    def run(self) -> None:
        while not self.ending.wait(SAMPLE_SECONDS):
            self._run.sample()


UNREACHED = ("daemon.", "catalog.", "masking.", "prune.", "rebuild.", "repair.")
"""Beginnings of failpoints that nothing here reaches."""
FAILPOINTS = [name for name in failpoints_in_source() if not name.startswith(UNREACHED)]


def main() -> None:
    options = parse_options()
    temporary = options.root is None
    root = Path(tempfile.mkdtemp(prefix="piper-soak-")) if temporary else options.root
    root.mkdir(parents=True, exist_ok=True)
    seed = options.seed or Random().randrange(1_000_000)
    run = Run(options, root, Random(seed))
    say(f"soak in {root}, seed {seed}")
    try:
        result, verdict = soak(run, seed)
    finally:
        if run.daemon is not None and run.daemon.exit_code is None:
            os.kill(run.daemon.pid, 9)
    print(json.dumps(result) if options.json else "\n".join(table(result)), flush=True)
    bad = [*verdict.deviations, *run.problems]
    if temporary and not bad:
        shutil.rmtree(root)
    raise SystemExit(1 if bad else 0)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--lines", type=int, default=0, help="write so many lines in all, however long it takes")
    parser.add_argument("--rate", type=float, default=500.0, help="lines a second over all writers")
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--reader-pause", type=float, default=0.5, help="seconds between two questions of a reader")
    parser.add_argument("--kills", type=int, default=0, help="with --lines: kill so often while they arrive")
    parser.add_argument("--kill-every", type=float, default=10.0, help="mean seconds between two SIGKILLs")
    parser.add_argument("--calm", type=float, default=0.5, help="share of the time, at its end, without kills")
    parser.add_argument("--fault-every", type=float, default=2.0, help="mean seconds between two faults of a writer")
    parser.add_argument("--faults", default=",".join(FAULTS), help="which faults; default: all of them")
    parser.add_argument("--command-share", type=float, default=0.4, help="share of the lives in which a command is run")
    parser.add_argument("--command-every", type=float, default=60.0, help="seconds between commands in the calm time")
    parser.add_argument("--seal-events", type=int, default=10_000)
    parser.add_argument("--spill-keys", type=int, default=5000, help="keys in the manifest's table; piper's: 250,000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, help="where to work, and leave everything; default: a temporary folder")
    parser.add_argument("--reader-site", type=Path, help="where to keep DuckDB 1.5.4; default .cache/duckdb-1.5.4")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.kills and not options.lines:
        parser.error("--kills goes with --lines")
    if options.kills:
        options.command_share = 0.0
    return options


def soak(run: Run, seed: int) -> tuple[dict[str, Any], Verdict]:
    options, root = run.options, run.root
    site = reader_site(options.reader_site)
    run.raw.mkdir()
    run.start()
    run.wait_ready()
    readers = [start_reader(run, site) for _ in range(options.readers)]
    writers = start_writers(run, seed)
    accounts = [Account(root / "account", number) for number in range(options.writers)]
    seen, sampler = SeenThread(run, accounts), Sampler(run)
    seen.start()
    sampler.start()
    started = time.monotonic()
    kill_phase(run, started, writers)
    calm_phase(run, started, writers)
    (root / "stop").touch()
    for writer in writers:
        writer.join()
        if writer.exitcode:
            run.problems.append(f"a writer ended with {writer.exitcode}")
    written_seconds = time.monotonic() - started
    done = [ast.literal_eval((root / "account" / f"w{n}-done").read_text("ascii")) for n in range(options.writers)]
    used = [one.pop("numbers") for one in done]
    say(f"{sum(used)} numbers are written; waiting for the last ones")
    settle_seconds = settle(run, accounts, used)
    seen.ending.set()
    sampler.ending.set()
    seen.join()
    assert run.daemon is not None
    if (code := run.daemon.stop()) != 0:
        run.problems.append(f"piperd ended with {code} after SIGTERM")
    verdict = judge(run, accounts, used)
    reports = [stop_reader(reader) for reader in readers]
    for report in reports:
        verdict.deviations += [f"a reader: {problem}" for problem in report["problems"]]
    verdict.deviations += [f"a reader of the soak's own: {problem}" for problem in seen.failed]
    faults: Counter[str] = Counter()
    for one in done:
        faults.update(one)
    result = {
        "seconds of writing": round(written_seconds),
        "seconds until the last line was there": round(settle_seconds),
        "lives": run.lives, "SIGKILLs": run.kills, "deaths at failpoints": dict(run.failpoint_deaths.most_common()),
        "commands": dict(run.commands.most_common()), "faults": dict(faults.most_common()),
        "account": verdict.numbers,
        "readers": [{name: value for name, value in report.items() if name != "counts"} for report in reports],
        "calm life": run.flatness(),
        "deviations": verdict.deviations + run.problems,
        "verdict": "exact" if not verdict.deviations + run.problems else "NOT EXACT",
    }  # fmt: skip
    return result, verdict


def start_writers(run: Run, seed: int) -> list[Any]:
    options = run.options
    spawn = multiprocessing.get_context("spawn")
    writers = []
    for number in range(options.writers):
        lines = options.lines // options.writers + (number < options.lines % options.writers)
        faults = [name for name in options.faults.split(",") if name]
        one = WriterOptions(run.raw, run.root / "account", number, seed + number, options.rate / options.writers,
                            options.fault_every, faults, run.root / "stop", lines)  # fmt: skip
        writers.append(spawn.Process(target=run_writer, args=(one,), daemon=True))
        writers[-1].start()
    for number in range(options.writers):
        while not (run.root / "account" / f"w{number}-ready").exists():
            time.sleep(0.05)
    return writers


def start_reader(run: Run, site: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).with_name("soak_reader.py")), str(run.catalog)]
    return subprocess.Popen([*command, str(run.options.reader_pause)], env=reader_environment(site), text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip


def stop_reader(reader: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = reader.communicate(timeout=COMMAND_SECONDS)
    if reader.returncode:
        return {"problems": [f"it ended with {reader.returncode}"], "counts": {}}
    report: dict[str, Any] = json.loads(out)
    return report


def is_writing(writers: list[Any]) -> bool:
    return any(writer.is_alive() for writer in writers)


def kill_phase(run: Run, started: float, writers: list[Any]) -> None:
    options = run.options
    seconds = options.minutes * 60 * (1 - options.calm)
    if options.lines:  # at the rate that is asked for: they can only take longer
        seconds = 0.9 * options.lines / options.rate if options.kills else float("inf")
    until = started + seconds
    if time.monotonic() >= until:
        return
    assert run.daemon is not None
    run.end_life(run.daemon, "")
    said = time.monotonic()
    while is_writing(writers) and (run.kills < options.kills if options.kills else time.monotonic() < until):
        run.one_life(until)
        if time.monotonic() - said > 60:
            said = time.monotonic()
            say(f"{round(said - started)} s: {run.kills} kills, {run.failpoint_deaths.total()} deaths at failpoints")
        if len(run.problems) > 10:
            break
    if run.kills < options.kills:
        run.problems.append(f"only {run.kills} kills while the lines arrived")
    run.start()
    run.wait_ready()


def calm_phase(run: Run, started: float, writers: list[Any]) -> None:
    """One life, with faults and commands, to the end."""
    assert run.daemon is not None
    run.calm_pid = run.daemon.pid
    until = started + run.options.minutes * 60
    if run.options.lines:
        for writer in writers:
            writer.join()
        return
    next_command, turn = time.monotonic() + run.options.command_every / 2, 0
    while time.monotonic() < until and is_writing(writers):
        time.sleep(0.2)
        if run.daemon.exit_code is not None:
            run.problems.append(f"piperd ended with {run.daemon.exit_code}: {run.daemon.log_tail()[-1500:]}")
            run.start()
            run.wait_ready()
        if time.monotonic() >= next_command:
            arguments = COMMANDS[turn % len(COMMANDS)]
            code = run.finish(run.command(arguments), COMMAND_SECONDS)
            if code != 0 and arguments[0] != "doctor":  # its exit code says how things stand
                run.problems.append(f"piper {' '.join(arguments)} ended with {code}")
            say(f"{round(time.monotonic() - started)} s: piper {' '.join(arguments)} → {code}")
            turn += 1
            next_command = time.monotonic() + run.options.command_every


def settle(run: Run, accounts: list[Account], used: list[int]) -> float:
    """Until every event that must be in silver is; returns the seconds that it took."""
    started = time.monotonic()
    while time.monotonic() - started < SETTLE_SECONDS:
        with duckdb.connect(str(run.catalog), read_only=True) as con:
            missing = 0
            for writer, (account, numbers) in enumerate(zip(accounts, used, strict=True)):
                must = (account.kind[:numbers] == EVENT) & (account.standing[:numbers] > 0)
                missing += int((must & (silver_counts(con, writer, numbers)[:numbers] == 0)).sum())
        if not missing:
            return time.monotonic() - started
        time.sleep(3.0)
    run.problems.append(f"{missing} events are still missing {SETTLE_SECONDS:.0f} s after the last line")
    return time.monotonic() - started


def judge(run: Run, accounts: list[Account], used: list[int]) -> Verdict:
    """Compare everything; piperd has ended, and gold is computed anew in between."""
    verdict = Verdict()
    quarantine = Quarantine.read(run.data / "quarantine" / "invalid_jsonl", len(accounts))
    verdict.deviations += [f"quarantine holds {record}" for record in quarantine.strange[:5]]
    verdict.numbers["rows of silver_events"] = 0
    with duckdb.connect(str(run.catalog), read_only=True) as con:
        for writer, (account, numbers) in enumerate(zip(accounts, used, strict=True)):
            silver = silver_counts(con, writer, numbers)
            verdict.numbers["rows of silver_events"] += int(silver.sum())
            judge_writer(verdict, writer, account, silver[:numbers], quarantine)
            if len(silver) > numbers:
                verdict.deviations.append(f"silver has numbers of writer {writer} that it never used")
        row = con.execute("SELECT count(*) FROM silver_events").fetchone()
        if row is None or row[0] != verdict.numbers["rows of silver_events"]:
            verdict.deviations.append(f"silver_events has {row and row[0]} rows, not only those of the writers")
        judge_datasets(verdict, con)
        before = gold_tables(con)
    if run.finish(run.command(("materialize",)), COMMAND_SECONDS) != 0:
        verdict.deviations.append("piper materialize failed")
    with duckdb.connect(str(run.catalog), read_only=True) as con:
        judge_gold(verdict, before, gold_tables(con), con, quarantine.records)
    return verdict


def table(result: dict[str, Any]) -> list[str]:
    """The result for people."""
    lines = []
    for name, value in result.items():
        if isinstance(value, dict):
            lines.append(f"{name}")
            for key, inner in value.items():
                shown = ", ".join(f"{k} {v}" for k, v in inner.items()) if isinstance(inner, dict) else inner
                lines.append(f"    {key:42} {shown}")
        elif isinstance(value, list):
            lines.append(f"{name}" if value else f"{name:46} none")
            lines += [f"    {one}" for one in value]
        else:
            lines.append(f"{name:46} {value}")
    return lines


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
