"""The command line in real processes: what it does, says and returns, and how it ends when something is wrong."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import pytest
import typer
from tests.support.commands import SECONDS, Place, listening, running, until

from piper.cli import app, daemon_app
from piper.ops.metric_list import GOLD_MODELS
from piper.ops.status import collect_status
from piper.settings import SETTING_KEYS
from piper.silver.datasets import DATASETS

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def count(place: Place, view: str) -> int:
    with duckdb.connect(str(place.layout.catalog), read_only=True) as con:
        row = con.execute(f"SELECT count(*) FROM {view}").fetchone()
    assert row is not None
    return int(row[0])


def everything_below(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}


def is_message(done: subprocess.CompletedProcess[str], code: int, *words: str) -> bool:
    """Whether a command ended with a message for people that holds `words`."""
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("piper: "), done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    return True


# ---- init, ingest, materialize ---------------------------------------------------------------------------------------


def test_init_makes_a_warehouse_whose_views_all_answer_and_repeating_it_changes_nothing(place: Place) -> None:
    first = place.json("init")
    assert str(place.layout.manifest) in first["created"]
    assert first["catalog"] == str(place.layout.catalog)
    assert {count(place, view) for view in (*(d.view for d in DATASETS.values()), *GOLD_MODELS)} == {0}
    catalog = place.layout.catalog.stat()
    assert place.json("init")["created"] == []
    assert place.layout.catalog.stat().st_ino == catalog.st_ino
    with place.writer("piperd"):
        assert place.json("init")["created"] == []


def test_ingest_accounts_for_every_line_and_reads_nothing_twice(place: Place) -> None:
    written = place.simulate(3000, days=2)
    summary = place.json("ingest")
    assert summary["running"] is False
    assert summary["files"] == sum(path.stat().st_size > 0 for path in place.raw.rglob("*.jsonl"))
    assert summary["bytes"] == written.bytes
    assert summary["accepted"] == written.valid == count(place, "silver_events")
    assert summary["duplicates"] == written.duplicates
    assert summary["quarantined"] == written.malformed == sum(summary["quarantined_by_reason"].values())
    kept = sorted((place.data / "quarantine" / "invalid_jsonl").glob("*/*.jsonl"))
    assert sum(path.read_bytes().count(b"\n") for path in kept) == written.malformed
    assert count(place, "gold_data_quality_daily") >= 2
    again = place.json("ingest")
    assert [again[key] for key in ("files", "bytes", "accepted", "duplicates", "quarantined")] == [0] * 5
    assert list((place.data / "run_logs").glob("*/ingest-*.jsonl"))


def test_a_cut_last_line_is_deferred_and_read_when_its_rest_comes(place: Place) -> None:
    place.simulate(200, malformed_ratio=0.0, duplicate_ratio=0.0)
    cut = max(place.raw.rglob("*.jsonl"), key=lambda path: path.stat().st_size)
    whole = cut.read_bytes()
    cut.write_bytes(whole[:-40])
    first = place.json("ingest")
    assert (first["accepted"], first["deferred_files"]) == (199, 1)
    assert "unread       nothing" in place.piper("status").stdout
    with cut.open("ab") as stream:
        stream.write(whole[-40:])
    assert place.json("status")["spool"]["unread_files"] == 1
    second = place.json("ingest")
    assert (second["files"], second["accepted"], second["deferred_files"]) == (1, 1, 0)


def test_the_first_run_over_many_weeks_takes_no_more_memory_than_it_is_given(place: Place) -> None:
    """Of six weeks, every day and type is a partition that wants buffers while it is written."""
    written = place.simulate(6_000, days=42)
    done = place.piper("ingest", "--json", env={"PIPER_DUCKDB__MEMORY_LIMIT": "256MB"})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accepted"] == written.valid


@pytest.mark.parametrize("holder", ["piperd", "piper ingest", "piper materialize"])
def test_an_ingest_steps_aside_for_whoever_reads_the_spool_already(place: Place, holder: str) -> None:
    with place.writer(holder):
        answer = place.json("ingest")
        said = place.piper("ingest")
    assert answer["running"] is True
    assert f"`{holder}` (PID {os.getpid()}" in answer["holder"]
    assert said.returncode == 0
    assert f"`{holder}` (PID {os.getpid()}" in said.stdout


def test_an_ingest_fails_when_the_holder_reads_no_spool(place: Place) -> None:
    place.simulate(10)
    with place.writer("piper rebuild"):
        assert is_message(place.piper("ingest"), 1, "held by `piper rebuild`")


def test_without_a_spool_an_ingest_fails_before_it_makes_anything(place: Place) -> None:
    assert is_message(place.piper("ingest"), 1, str(place.raw), "No such file or directory", "mount")
    assert not place.data.exists()


def test_an_empty_spool_where_files_were_known_is_an_unmounted_one(place: Place) -> None:
    place.simulate(50)
    place.json("ingest")
    place.raw.rename(place.root / "elsewhere")
    place.raw.mkdir()
    assert is_message(place.piper("ingest"), 1, "not mounted?")


def test_materialize_makes_gold_and_the_catalog_anew(place: Place) -> None:
    place.simulate(500)
    place.json("ingest")
    rows = count(place, "gold_tool_reliability_daily")
    with duckdb.connect(str(place.layout.gold_state)) as con:
        con.execute("DELETE FROM gold_tool_reliability_daily")
    place.layout.catalog.unlink()
    done = place.json("materialize", "--model", "gold_tool_reliability_daily")
    assert (done["by"], done["models"], done["failed"]) == ("piper", ["gold_tool_reliability_daily"], [])
    assert count(place, "gold_tool_reliability_daily") == rows > 0
    assert place.json("materialize")["models"] == list(GOLD_MODELS)


def test_materialize_asks_the_daemon_that_runs(place: Place) -> None:
    asked: list[dict[str, Any]] = []

    async def handler(args: dict[str, Any], progress: object) -> dict[str, Any]:
        asked.append(args)
        return {"models": [args["model"] or "all"]}

    with place.writer() as writer, listening(writer.store.layout.control_socket, {"materialize": handler}):
        done = place.json("materialize", "--model", "gold_render_health_daily")
        place.json("materialize")
    assert done == {"by": "piperd", "models": ["gold_render_health_daily"]}
    assert asked == [{"model": "gold_render_health_daily"}, {"model": None}]


@pytest.mark.parametrize("holder", ["piper ingest", "piper materialize"])
def test_a_materialize_steps_aside_for_whoever_brings_gold_up_to_date(place: Place, holder: str) -> None:
    with place.writer(holder):
        answer = place.json("materialize")
        said = place.piper("materialize")
    assert answer["running"] is True
    assert said.returncode == 0
    assert f"`{holder}` (PID {os.getpid()}" in said.stdout
    assert "nothing was rebuilt" in said.stdout


def test_a_materialize_fails_when_the_holder_leaves_gold_as_it_is(place: Place) -> None:
    with place.writer("piper prune"):
        assert is_message(place.piper("materialize"), 1, "held by `piper prune`")


def test_an_unknown_model_is_a_usage_error_that_lists_the_models(place: Place) -> None:
    assert is_message(place.piper("materialize", "--model", "gold_x"), 2, "gold_x", *GOLD_MODELS)


# ---- status ----------------------------------------------------------------------------------------------------------


def test_status_of_a_warehouse_at_rest_changes_nothing_in_it(place: Place) -> None:
    written = place.simulate(300)
    place.json("ingest")
    (place.raw / "ws99" / "new").mkdir(parents=True)
    (place.raw / "ws99" / "new" / "a.jsonl").write_bytes(b"{}\n")
    before = everything_below(place.data)
    status = place.json("status")
    assert everything_below(place.data) == before
    assert status["state"] == "stopped"
    assert status["events"]["accepted"] == written.valid
    assert status["events"]["quarantined"] == written.malformed == sum(status["quarantined_by_reason"].values())
    assert (status["spool"]["unread_files"], status["spool"]["unread_bytes"]) == (1, 3)
    assert sorted(status["gold"]) == sorted(GOLD_MODELS)
    screen = place.piper("status").stdout
    assert f"{written.valid:,} events" in screen
    assert len(screen.splitlines()) < 24


def test_status_without_a_warehouse_says_how_to_make_one(place: Place) -> None:
    assert is_message(place.piper("status"), 1, str(place.data), "piper init")
    assert not place.data.exists()


def test_status_says_who_holds_the_warehouse_when_nobody_answers(place: Place) -> None:
    with place.writer("piper ingest"):
        status = place.json("status")
    assert status["state"] == "busy"
    assert "`piper ingest`" in status["holder"]


def test_status_is_the_daemons_own_word_while_it_runs(place: Place) -> None:
    place.simulate(100, malformed_ratio=0.0)
    with place.writer() as writer:
        writer.scan()
        unread = writer.tailer.backlog()[0]

        async def handler(args: dict[str, Any], progress: object) -> dict[str, Any]:
            problems = [{"condition": "publish", "reason": "no space", "since_utc": "2026-01-01T00:00:00Z"}]
            return {
                "state": "degraded",
                "pid": 4711,
                "uptime_seconds": 7.0,
                "problems": problems,
                **collect_status(writer),
            }

        with listening(writer.store.layout.control_socket, {"status": handler}):
            before = place.json("status")
            while writer.ingest() is not None:
                pass
            after = place.json("status")
            screen = place.piper("status").stdout
    assert before["spool"]["unread_bytes"] == unread > 0
    assert after["spool"]["unread_bytes"] == 0
    assert after["events"]["accepted"] == after["tail_rows"] == 100
    assert "piperd is degraded, PID 4711, up 7.0 s" in screen
    assert "no space" in screen


def test_status_and_ingest_name_the_way_out_of_a_damaged_manifest(place: Place) -> None:
    place.json("init")
    place.layout.manifest.write_bytes(b"no database" * 2000)
    assert is_message(place.piper("status"), 1, "damaged", "piper rebuild")
    place.raw.mkdir()
    assert is_message(place.piper("ingest"), 1, "damaged", "piper rebuild")


def test_rebuild_makes_a_damaged_warehouse_whole_again(place: Place) -> None:
    written = place.simulate(400)
    place.json("ingest")
    with place.layout.manifest.open("r+b") as stream:
        stream.write(os.urandom(16_384))
    assert is_message(place.piper("rebuild"), 2, "--yes")
    done = place.json("rebuild", "--yes")
    assert done["found"]["chunk_events"] == written.valid
    assert (done["read"]["accepted"], done["read"]["quarantined"]) == (0, 0)
    assert count(place, "silver_events") == written.valid
    status = place.json("status")
    assert status["events"] == {"accepted": written.valid, "duplicates": 0, "quarantined": written.malformed}
    assert place.json("ingest")["bytes"] == 0


def test_rebuild_without_a_spool_touches_nothing(place: Place) -> None:
    place.simulate(20)
    place.json("ingest")
    place.raw.rename(place.root / "elsewhere")
    before = everything_below(place.data)
    assert is_message(place.piper("rebuild", "--yes"), 1, "spool cannot be read")
    assert everything_below(place.data) == before


# ---- beside a real daemon --------------------------------------------------------------------------------------------


def test_commands_go_to_the_daemon_that_runs_and_a_second_one_is_refused(place: Place) -> None:
    written = place.simulate(300)
    with place.piperd() as daemon:
        until(lambda: place.json("status")["events"]["accepted"] == written.valid)
        assert place.json("status")["pid"] == daemon.pid
        assert place.json("ingest")["running"] is True
        assert place.json("init")["created"] == []
        done = place.json("materialize", "--model", "gold_farm_pressure_daily")
        assert (done["by"], done["models"]) == ("piperd", ["gold_farm_pressure_daily"])
        assert is_message(place.piper("rebuild", "--yes"), 1, "`piperd`", str(daemon.pid))
        second = [sys.executable, "-c", "from piper.cli import main_daemon; main_daemon()"]
        env = {**place.env, "PIPER_METRICS__PORT": "0", "PIPER_LOGGING__LEVEL": "error"}
        refused = subprocess.run(second, env=env, cwd=place.root, capture_output=True, text=True, check=False)
        assert is_message(refused, 1, "`piperd`", str(daemon.pid), "piper status")
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(SECONDS) == 0
    assert place.json("status")["state"] == "stopped"
    assert count(place, "silver_events") == written.valid


# ---- settings, errors, the terminal ----------------------------------------------------------------------------------


def test_config_show_says_where_each_value_came_from(place: Place) -> None:
    file = place.root / "mine.toml"
    file.write_text('[watch]\nmode = "poll"\n', "utf-8")
    rows = place.json("--config", str(file), "--data-root", str(place.root / "other"), "config", "show")["settings"]
    assert [row["key"] for row in rows] == list(SETTING_KEYS)
    found = {row["key"]: (row["value"], row["source"]) for row in rows}
    assert found["watch.mode"] == ("poll", f"file {file}")
    assert found["paths.data_root"] == (str(place.root / "other"), "command line")
    assert found["paths.raw_root"] == (str(place.raw), "environment PIPER_PATHS__RAW_ROOT")
    assert found["metrics.port"][1] == "default"
    shown = place.piper("config", "show").stdout
    assert all(key in shown for key in SETTING_KEYS)


def test_a_wrong_setting_ends_every_command_with_78_and_says_which(place: Place) -> None:
    done = place.piper("status", env={"PIPER_WATCH__MODE": "never"})
    assert is_message(done, 78, "watch.mode", "never", "environment PIPER_WATCH__MODE")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["status"], 1),
        (["materialize", "--model", "x"], 2),
        (["ingest", "--bogus"], 2),
        (["simulate"], 2),
        (["simulate", "--root", "x", "--dialect", "dutch"], 2),
        (["simulate", "--root", "x", "--hosts", "0"], 2),
        (["rebuild"], 2),
        (["--config", "/nonexistent/x.toml", "ingest"], 78),
    ],
)
def test_under_json_an_error_is_the_only_thing_on_stdout(place: Place, arguments: list[str], code: int) -> None:
    done = place.piper(*arguments, "--json")
    error = json.loads(done.stdout)["error"]
    assert error["message"]
    assert error["hint"]
    assert is_message(done, code, error["message"])


def test_a_data_root_that_is_a_file_is_a_message(place: Place) -> None:
    place.raw.mkdir()
    place.data.write_text("mine", "utf-8")
    for command in ("init", "ingest"):
        assert is_message(place.piper(command), 1, str(place.data), "cannot be written")
    assert place.data.read_text("utf-8") == "mine"


def test_an_interrupted_query_ends_quietly_with_130(place: Place) -> None:
    """DuckDB makes an error of its own of Ctrl-C. A real one is pressed in test_query.py."""
    program = """
import sys, threading, typer
from piper.exits import run
app = typer.Typer()
@app.command()
def work() -> None:
    import duckdb
    con, stop = duckdb.connect(), threading.Event()
    def interrupt() -> None:
        while not stop.wait(0.01):
            con.interrupt()
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        con.execute("SELECT count(*) FROM range(1000000000000) t(i) WHERE hash(i) % 7 = 1").fetchall()
    finally:
        stop.set()
sys.exit(run(app, "piper", []))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], env=place.env, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


@pytest.mark.parametrize(("limit", "code"), [([], 0), (["--events", "1000000"], 130)])
def test_ctrl_c_ends_a_simulation_with_whole_lines(place: Place, limit: list[str], code: int) -> None:
    command = place.command("simulate", "--root", str(place.raw), "--rate", "200", "--json", *limit)
    with running(command, place.env) as process:
        until(lambda: any(path.stat().st_size for path in place.raw.rglob("*.jsonl")))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (code, "")
    lines = b"".join(path.read_bytes() for path in place.raw.rglob("*.jsonl"))
    assert lines.endswith(b"\n")
    assert lines.count(b"\n") == json.loads(out)["lines"] > 0


def test_nobody_who_reads_is_no_reason_to_complain(place: Place) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            place.command("config", "show", "--json"),
            env=place.env,
            stdout=write_end,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (1, b"")


def test_the_progress_bar_is_for_terminals_only(place: Place) -> None:
    place.simulate(200)
    plain = place.piper("ingest")
    assert "━" not in plain.stdout + plain.stderr
    place.simulate(200, seed=2)
    terminal, end = pty.openpty()
    with ThreadPoolExecutor(1) as reader:  # beside it: a terminal that nobody reads takes a few frames and then blocks
        shown = reader.submit(lambda: b"".join(iter(lambda: read_terminal(terminal), b"")))
        try:
            done = subprocess.run(
                place.command("ingest"),
                env={**place.env, "TERM": "xterm"},
                stdout=subprocess.PIPE,
                stderr=end,
                check=True,
            )
        finally:
            os.close(end)
    os.close(terminal)
    assert "━".encode() in shown.result()
    assert b"accepted" in done.stdout


def read_terminal(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # EIO: nobody holds the other end any more
        return b""


def test_help_and_version_need_neither_duckdb_nor_pyarrow(place: Place) -> None:
    for name, arguments in (("main", ["--help"]), ("main", ["ingest", "--help"]), ("main_daemon", ["--version"])):
        program = f"""
import sys
from piper.cli import {name}
sys.argv[1:] = {arguments!r}
try:
    {name}()
finally:
    heavy = {{"duckdb", "pyarrow", "numpy"}} & set(sys.modules)
    assert not heavy, heavy
"""
        done = subprocess.run(
            [sys.executable, "-c", program], env=place.env, capture_output=True, text=True, check=False, timeout=SECONDS
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout


# ---- the documentation -----------------------------------------------------------------------------------------------


def commands_of(command: Any, name: str) -> Iterator[tuple[str, set[str]]]:
    """Every command below a Typer application, by its full name, with its options."""
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    options.discard("--help")
    for child in getattr(command, "commands", {}).values():
        yield from commands_of(child, f"{name} {child.name}")
    if not getattr(command, "commands", {}):
        yield name, options


def documented() -> dict[str, set[str]]:
    """The sections of docs/cli.md that are commands, with the options of their tables."""
    found: dict[str, set[str]] = {}
    for section in DOCS.read_text("utf-8").split("\n## ")[1:]:
        heading = re.match(r"`([a-z -]+)`\n", section)
        if heading:
            found[heading[1]] = set(re.findall(r"^\| `(--[a-z-]+)[` ]", section, re.MULTILINE))
    return found


def test_every_command_and_option_is_documented_and_nothing_else_is() -> None:
    top = typer.main.get_command(app)
    shared = {option for parameter in top.params for option in parameter.opts} - {"--help"}
    preamble = set(re.findall(r"^\| `(--[a-z-]+)[` ]", DOCS.read_text("utf-8").split("\n## ")[0], re.MULTILINE))
    assert preamble == shared | {"--help"}
    daemon = dict(commands_of(typer.main.get_command(daemon_app), "piperd"))
    commands = dict(commands_of(top, "piper"))
    of_backfill = commands["piper backfill"] | {"--backfill"}
    assert daemon == {"piperd": shared | of_backfill}
    assert documented() == {**commands, "piperd": of_backfill}
