"""Why it is done this way: ratios between what piper does and the obvious alternative, measured in one run.

    python bench/choices.py [--json]

casts       text of 100,000 integers to BIGINT: `to_bigint` against a cast by way of DECIMAL(38, 10)
laxity      finding lines where DuckDB's JSON reader may be laxer than RFC 8259, in 32 MiB of simulated lines: byte
            classes against one regular expression a line
utf8        CPU of making sure that 8 MiB of simulated lines are UTF-8, one letter in a thousand not ASCII: block by
            block, against decoding them in one piece
one_core    CPU of writing 100,000 simulated events into their partitions as Parquet: one DuckDB thread against two
snapshot    CPU of writing 20,000 such rows as a DuckDB file: the encodings that piper leaves on, against all of them
checkpoint  CPU of parsing 100,000 simulated lines in slices, as piper's Parser does: no checkpoint of the database in
            memory that holds them, against one whenever a commit has brought its log to DuckDB's 16 MB
flush       what the same partitioned COPY adds to a process's peak memory: handing over rows every 20,480, as piper has
            it, against every 524,288, DuckDB's default
blocks      what `piper ingest` of 120,000 simulated events adds to it: large blocks returned when they are freed,
            against glibc's default
rmdir       removing a tree of 160 directories that were fsynced, against one directory
rest        CPU of a scan of 20,000 files that were silent for two days: one `stat` in five, against one a file

Each number is the median of five; a ratio below 1 is what piper's way costs of the other one.
"""

from __future__ import annotations

import argparse
import codecs
import json
import math
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, redirect_stdout
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import duckdb
import pyarrow as pa

from piper import cli, intake
from piper.demo.simulate import SimulateOptions, simulate
from piper.events.parse import Parser, is_utf8, split, suspicious_lines
from piper.files import fsync_path
from piper.silver.datasets import MACROS
from piper.silver.store import ROWS_OF_PARTITIONS
from piper.spool.identity import Source
from piper.spool.rest import REST_SCANS, REST_SECONDS
from piper.spool.tail import Tailer
from piper.spool.turn import Limits, Span

REGEX = r"[:,\[ \t\r-](?:[nN][aA]|[iI][nN][fF])|,[ \t\r\n]*[}\]]"
LEFT_OUT = "fsst,zstd,dict_fsst,alp,alprd,chimp,patas,roaring"


def cost(action: Callable[[], object], clock: Callable[[], float]) -> float:
    """Median of five runs, in seconds of `clock`."""
    taken = []
    for _ in range(5):
        started = clock()
        action()
        taken.append(clock() - started)
    return statistics.median(taken)


def casts() -> float:
    con = duckdb.connect()
    con.execute("ATTACH ':memory:' AS work")
    for macro in MACROS:
        con.execute(macro)
    con.execute(
        "CREATE TABLE numbers AS SELECT CAST(1000 + i * 7919 % 1000000 AS VARCHAR) AS x FROM range(100000) r (i)"
    )
    ours = cost(lambda: con.execute("SELECT count(work.to_bigint(x)) FROM numbers").fetchall(), time.process_time)
    other = cost(
        lambda: con.execute("SELECT count(TRY_CAST(TRY_CAST(x AS DECIMAL(38, 10)) AS BIGINT)) FROM numbers").fetchall(),
        time.process_time,
    )
    return ours / other


def laxity(spool: Path) -> float:
    data = b"".join(file.read_bytes() for file in sorted(spool.glob("*/*/*.jsonl")))[: 32 << 20]
    data = data[: data.rfind(b"\n") + 1]
    lines = split([Span.of(Source(b"h/u/x.jsonl", 0, 0), 0, 1, data)])
    con = duckdb.connect(config={"threads": 1})
    con.execute("CREATE TABLE lines (line VARCHAR)")
    table = pa.table({"line": data.decode().splitlines()})
    con.register("source", table)
    con.execute("INSERT INTO lines SELECT line FROM source")
    ours = cost(lambda: suspicious_lines(lines), time.process_time)
    other = cost(
        lambda: con.execute("SELECT count(*) FROM lines WHERE regexp_matches(line, ?)", [REGEX]).fetchall(),
        time.process_time,
    )
    return ours / other


def utf8(spool: Path) -> float:
    data = b"".join(file.read_bytes() for file in sorted(spool.glob("*/*/*.jsonl")))[: 8 << 20]
    text = data.decode(errors="ignore")
    data = "é".join(text[at : at + 1000] for at in range(0, len(text), 1000)).encode()
    ours = cost(lambda: is_utf8(data), time.process_time)
    return ours / cost(lambda: codecs.utf_8_decode(data, "strict", True), time.process_time)


def events_table(con: duckdb.DuckDBPyConnection, spool: Path) -> None:
    con.execute(
        f"""CREATE TABLE events AS SELECT
            event_id, event_type, CAST(occurred_at_utc AS DATE) AS event_date, status, payload, metrics, host, scope
        FROM read_json('{spool}/*/*/*.jsonl', format = 'newline_delimited', columns = {{
            event_id: 'VARCHAR', event_type: 'VARCHAR', occurred_at_utc: 'TIMESTAMP', status: 'VARCHAR',
            payload: 'VARCHAR', metrics: 'VARCHAR', host: 'VARCHAR', scope: 'VARCHAR'}}) LIMIT 100000"""
    )


def one_core(spool: Path, work: Path) -> float:
    con = duckdb.connect(config={"preserve_insertion_order": False})
    events_table(con, spool)

    def copy(threads: int) -> float:
        con.execute(f"SET threads = {threads}")

        def write() -> None:
            con.execute(
                f"""COPY events TO '{work}/copy' (
                    FORMAT parquet, PARTITION_BY (event_date, event_type), COMPRESSION zstd)"""
            )
            shutil.rmtree(work / "copy")

        return cost(write, time.process_time)

    return copy(1) / copy(2)


def snapshot(spool: Path, work: Path) -> float:
    con = duckdb.connect(config={"threads": 1})
    events_table(con, spool)

    def write() -> None:
        con.execute(f"ATTACH '{work}/snapshot.duckdb' AS snapshot")
        con.execute("CREATE TABLE snapshot.tail AS FROM events LIMIT 20000")
        con.execute("DETACH snapshot")
        (work / "snapshot.duckdb").unlink()

    everything = cost(write, time.process_time)
    con.execute(f"SET disabled_compression_methods = '{LEFT_OUT}'")
    return cost(write, time.process_time) / everything


def checkpoint(spool: Path) -> float:
    slices = []
    for file in sorted(spool.glob("*/*/*.jsonl")):
        data = file.read_bytes()
        slices.append(split([Span.of(Source(b"h/u/x.jsonl", 0, 0), 0, 1, data)]))
    now = datetime.now(UTC).replace(tzinfo=None)

    def parse(threshold: str) -> float:
        con = duckdb.connect(config={"threads": 1, "checkpoint_threshold": threshold})
        con.execute("ATTACH ':memory:' AS work")
        for macro in MACROS:
            con.execute(macro)
        cursor = con.cursor()
        for one in (con, cursor):
            one.execute("SET search_path = 'work'")
        with closing(Parser(con, [cursor], line_bytes_max=1 << 20, sample_bytes=1024)) as parser:

            def batch() -> None:
                parser.begin()
                for lines in slices:
                    parser.add(lines, now).result()

            return cost(batch, time.process_time)

    return parse("1GB") / parse("16MB")


def grown_mib(task: Callable[..., object], *arguments: object) -> float:
    """By how much a task raises the peak memory of a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        before = process.submit(_peak_mib).result()
        process.submit(task, *arguments).result()
        return process.submit(_peak_mib).result() - before


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text("ascii")  # getrusage tells that of the parent, if it was more
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def copy_in_steps(database: Path, into: Path, rows: int) -> None:
    con = duckdb.connect(str(database), config={"threads": 1, "preserve_insertion_order": False})
    con.execute("SET enable_progress_bar = false")
    con.execute(f"SET partitioned_write_flush_threshold = {rows}")
    con.execute(f"COPY events TO '{into}' (FORMAT parquet, PARTITION_BY (event_date, event_type), COMPRESSION zstd)")
    con.close()
    shutil.rmtree(into)


def flush(spool: Path, work: Path) -> float:
    with closing(duckdb.connect(str(work / "events.duckdb"))) as con:
        events_table(con, spool)
    piper, default = (
        statistics.median(grown_mib(copy_in_steps, work / "events.duckdb", work / "copy", rows) for _ in range(3))
        for rows in (ROWS_OF_PARTITIONS, 524_288)
    )
    return piper / default


def ingest(spool: Path, data: Path, returned: bool) -> None:
    if not returned:
        intake.return_large_blocks = lambda: False
    roots = {"PIPER_PATHS__RAW_ROOT": str(spool), "PIPER_PATHS__DATA_ROOT": str(data)}
    os.environ |= roots | {"PIPER_LOGGING__LEVEL": "error"}
    with redirect_stdout(StringIO()):
        cli.run(cli.app, "piper", ["ingest", "--json"])
    shutil.rmtree(data)


def blocks(spool: Path, work: Path) -> float:
    piper, default = (
        statistics.median(grown_mib(ingest, spool, work / "data", returned) for _ in range(3))
        for returned in (True, False)
    )
    return piper / default


def rmdir(work: Path) -> float:
    def remove(count: int) -> float:
        def made() -> Path:
            root = work / "tree"
            for n in range(count):
                (root / f"d{n}").mkdir(parents=True)
                fsync_path(root / f"d{n}")
            return root

        taken = []
        for _ in range(5):
            root = made()
            started = time.perf_counter()
            shutil.rmtree(root)
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)

    return remove(1) / remove(160)


def rest(work: Path) -> float:
    raw, two_days_ago = work / "resting", time.time() - 2 * 86_400
    for n in range(20_000):
        path = raw / f"host{n // 500}" / "user" / f"{n}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}\n")
        os.utime(path, (two_days_ago, two_days_ago))
    for directory in raw.glob("*/*"):
        os.utime(directory, (two_days_ago, two_days_ago))

    def scans(rest_seconds: float) -> float:
        limits = Limits(1 << 20, 1 << 16)
        tailer = Tailer(raw, limits, monotonic=time.monotonic, utc=time.time, rest_seconds=rest_seconds)
        tailer.scan()

        def whole_round() -> None:
            for _ in range(REST_SCANS):
                tailer.scan()

        return cost(whole_round, time.process_time)

    return scans(REST_SECONDS) / scans(math.inf)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        work = Path(name)
        spool = work / "spool"
        simulate(SimulateOptions(spool, hosts=10, users=2, rate=0, events=120_000, days=5, dialect="nested",
                                 malformed_ratio=0))  # fmt: skip
        ratios = {
            "casts": casts(),
            "laxity": laxity(spool),
            "utf8": utf8(spool),
            "one_core": one_core(spool, work),
            "snapshot": snapshot(spool, work),
            "checkpoint": checkpoint(spool),
            "flush": flush(spool, work),
            "blocks": blocks(spool, work),
            "rmdir": rmdir(work),
            "rest": rest(work),
        }
    if arguments.json:
        print(json.dumps(ratios))
        return
    for choice, ratio in ratios.items():
        print(f"{choice:11} {ratio:6.3f}")


if __name__ == "__main__":
    main()
