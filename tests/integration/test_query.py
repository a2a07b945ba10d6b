"""`piper query` and `piper sql`: what they answer, how they write it, and what they refuse to touch."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from tests.support.commands import SECONDS, Place, running
from tests.support.polling import wait_until

from piper.cli import app
from piper.exits import run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("query"))
    place.simulate(300, malformed_ratio=0.0)
    place.json("ingest")
    return place


def below(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


# ---- answers ---------------------------------------------------------------------------------------------------------

VALUES = """SELECT 1::BIGINT AS n, 12345678901234567890::HUGEINT AS big, 1.50::DECIMAL(4,2) AS price,
    'nan'::DOUBLE AS odd, TIMESTAMP '2026-01-02 03:04:05' AS at, DATE '2026-01-02' AS day, [1, 2] AS list,
    {'a': 'b'} AS pair, NULL AS nothing,
    now() - now() IS NOT NULL AS yes, now() > TIMESTAMPTZ '2000-01-01 00:00:00+00' AS zoned, 2 AS n"""


def test_json_is_one_object_with_columns_and_rows_that_any_reader_takes(place: Place) -> None:
    answer = place.json("query", VALUES)
    assert [column["name"] for column in answer["columns"]][-1] == "n_2"
    assert {column["name"]: column["type"] for column in answer["columns"]}["at"] == "TIMESTAMP"
    assert answer["rows"] == [
        {
            "n": 1, "big": "12345678901234567890", "price": 1.5, "odd": None, "at": "2026-01-02T03:04:05Z",
            "day": "2026-01-02", "list": [1, 2], "pair": {"a": "b"}, "nothing": None, "yes": True, "zoned": True,
            "n_2": 2,
        }
    ]  # fmt: skip
    assert place.json("query", "SELECT 1 WHERE false")["rows"] == []


def test_an_error_after_many_rows_leaves_nothing_but_the_error_on_stdout(place: Place) -> None:
    failing = "SELECT CASE WHEN i = 99999 THEN error('late') ELSE i END FROM range(100000) t(i)"
    done = place.piper("query", failing, "--json")
    assert done.returncode == 1
    assert "late" in json.loads(done.stdout)["error"]["message"]


def test_csv_and_parquet_hold_what_the_views_hold(place: Place) -> None:
    question = "SELECT event_id, status, payload, occurred_at_utc FROM silver_events ORDER BY event_id"
    rows = list(csv.DictReader(io.StringIO(place.piper("query", question, "--format", "csv").stdout)))
    done = subprocess.run(
        place.command("query", question, "--format", "parquet"), env=place.env, capture_output=True, check=True
    )
    table = parquet.read_table(pa.BufferReader(done.stdout))
    assert len(rows) == table.num_rows == 300
    assert [row["payload"] for row in rows] == table["payload"].to_pylist()
    assert rows[0]["occurred_at_utc"] == f"{table['occurred_at_utc'][0].as_py().isoformat()}Z"


def test_a_table_says_when_it_is_not_all_and_keeps_control_characters_out_of_the_terminal(place: Place) -> None:
    shown = place.piper("query", "FROM silver_events SELECT event_id, chr(27) || '[2J' AS evil, NULL AS none").stdout
    assert "more rows" in shown
    assert "\x1b" not in shown
    assert "·[2J" in shown
    assert "NULL" in shown
    assert len(shown.splitlines()) == 202
    assert place.piper("query", "-").returncode == 2


# ---- the lock-down ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "code", "word"),
    [
        ("FROM read_text('/etc/passwd')", 1, "Permission Error"),
        ("FROM glob('/etc/*')", 1, "Permission Error"),
        ("FROM read_text('{data}/state/writer.json')", 1, "Permission Error"),
        ("SET memory_limit = '9GB'", 1, "locked"),
        ("SELECT getenv('HOME')", 1, "getenv"),
        ("INSERT INTO silver_events SELECT * FROM silver_events", 1, "silver_events"),
        ("CREATE TABLE mine AS SELECT 1", 1, "read-only"),
        ("COPY (SELECT 1) TO '{data}/warehouse/x.csv'", 2, "COPY is not for readers"),
        ("EXPLAIN ANALYZE COPY (SELECT 1) TO '{data}/warehouse/x.csv'", 2, "COPY is not for readers"),
        ("EXPLAIN /* - */ ANALYZE COPY (SELECT 1) TO '{data}/warehouse/x.csv'", 1, "syntax error"),
        ("ATTACH '{data}/warehouse/tail.duckdb' AS t", 2, "ATTACH is not for readers"),
        ("PREPARE p AS SELECT 1", 2, "PREPARE is not for readers"),
        ("INSTALL httpfs", 2, "LOAD is not for readers"),
        ("SELECT 1; ATTACH '{data}/warehouse/tail.duckdb' AS t", 2, "ATTACH is not for readers"),
        ("SELECT 1; SELECT 2", 2, "2 statements"),
        ("", 2, "nothing"),
        ("SELECT nosuch\n  FROM silver_events", 1, "nosuch"),
        ("SELEC 1", 1, "syntax error"),
    ],
)
def test_what_is_not_reading_the_warehouse_is_refused_in_one_line(
    place: Place, capsys: pytest.CaptureFixture[str], statement: str, code: int, word: str
) -> None:
    before = below(place.data)
    roots = ["--data-root", str(place.data), "--raw-root", str(place.raw)]
    assert run(app, "piper", [*roots, "query", statement.format(data=place.data)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    message = err.splitlines()[0]
    assert message.startswith("piper: ")
    assert word in message
    assert "LINE 1" not in err
    assert below(place.data) == before


def test_temporary_tables_and_pivots_are_reading(place: Place) -> None:
    script = """CREATE TEMP TABLE mine AS SELECT status FROM silver_events;
    .format json
    SELECT count(*) AS n FROM mine;
    .format csv
    PIVOT (SELECT event_type, status FROM silver_events) ON status USING count(*);
    """
    done = subprocess.run(
        place.command("sql"), env=place.env, input=script, capture_output=True, text=True, timeout=SECONDS, check=True
    )
    assert '{"n": 300}' in done.stdout
    assert "event_type,error" in done.stdout


def test_a_script_ends_at_its_first_error(place: Place) -> None:
    done = subprocess.run(
        place.command("sql"), env=place.env, input="SELECT 1;\nSELECT nosuch;\nSELECT 'never';\n",
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "nosuch" in done.stderr
    assert "never" not in done.stdout


def test_without_a_warehouse_every_reader_is_told_how_to_make_one(tmp_path: Path) -> None:
    empty = Place(tmp_path)
    for arguments in (["query", "SELECT 1"], ["sql"]):
        done = empty.piper(*arguments)
        assert done.returncode == 1
        assert "piper init" in done.stderr


def test_ctrl_c_ends_a_query_at_once(place: Place) -> None:
    question = "SELECT count(*) FROM range(100000000000) t(i) WHERE hash(i) % 7 = 1"
    with running(place.command("query", question), place.env) as process:
        wait_until(lambda: cpu_ticks(process.pid) > 150, what="the query to be at work")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out, err) == (130, "", "")


# ---- the shell on a terminal -----------------------------------------------------------------------------------------


class Terminal:
    """A `piper sql` on a terminal of its own."""

    def __init__(self, place: Place, history: Path) -> None:
        self._end, theirs = pty.openpty()
        env = {**place.env, "TERM": "xterm", "XDG_STATE_HOME": str(history)}
        self.process = subprocess.Popen(
            place.command("sql"), env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            preexec_fn=lambda: _take_terminal(theirs),
        )  # fmt: skip
        os.close(theirs)
        os.set_blocking(self._end, False)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def see(self, text: str) -> str:
        """Wait until `text` has been shown; returns what was shown up to its end, and forgets it."""
        wait_until(lambda: text in self._read(), what=lambda: f"{text!r} is not in {self.shown!r}")
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def _read(self) -> str:
        try:
            self.shown += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", os.read(self._end, 1 << 16).decode())
        except (BlockingIOError, OSError):
            return self.shown
        return self.shown

    def close(self) -> None:
        self.process.kill()
        self.process.wait(SECONDS)
        os.close(self._end)


def _take_terminal(fd: int) -> None:
    """Make it the controlling terminal, so that Ctrl-C is a signal."""
    import fcntl
    import termios

    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(place: Place, tmp_path: Path) -> Iterator[Terminal]:
    found = Terminal(place, tmp_path)
    try:
        yield found
    finally:
        found.close()


def test_a_session_goes_on_after_errors_and_remembers_its_lines(
    place: Place, terminal: Terminal, tmp_path: Path
) -> None:
    def asked(text: str, answer: str) -> str:
        terminal.type(text)
        return terminal.see(answer)

    terminal.see("piper> ")
    asked("SELECT count(*) AS n\nFROM silver_ev\t;\n", "300\r\n")
    terminal.see("piper> ")
    asked("SELECT nosuch;\n", "error: Binder Error")
    terminal.see("piper> ")
    asked("SELECT 'a;\n", "  ...> ")
    asked("b' || 'c' AS x;\n", "bc")
    terminal.see("piper> ")
    asked("SELECT count(*) FROM range(100000000000) t(i) WHERE hash(i) % 7 = 1;\n", "1;\r\n")
    at_rest = cpu_ticks(terminal.process.pid)
    wait_until(lambda: cpu_ticks(terminal.process.pid) > at_rest + 20, what="the query to be at work")
    asked("\x03", "interrupted")
    terminal.see("piper> ")
    asked("SELECT half", "half")
    asked("\x03", "\r\npiper> ")
    asked(".schema silver_tool_events\n", "output_size_bytes  bigint")
    terminal.see("piper> ")
    asked("\\dt\n", "silver_tractor_job_spool")
    terminal.see("piper> ")
    terminal.type("\x04")
    assert terminal.process.wait(SECONDS) == 0
    remembered = (tmp_path / "piper" / "sql_history").read_text("utf-8")
    assert "FROM silver_events ;" in remembered or "FROM silver_events;" in remembered
    assert (tmp_path / "piper" / "sql_history").stat().st_mode & 0o077 == 0


def cpu_ticks(pid: int) -> int:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
