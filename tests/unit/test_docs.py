"""What the documents name exists: links and anchors, commands and options, settings, metrics, log lines, files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from piper.cli import app, daemon_app
from piper.ops.metric_list import METRICS
from piper.ops.textfile import write_textfile
from piper.settings import SETTING_KEYS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "bench" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
OTHER_VARIABLES = {"PIPER_CONFIG_FILE"}
NO_SETTINGS = {"metrics.size_bytes", "gold.duckdb"}
SUFFIXES = {".py", ".md", ".sql", ".toml", ".duckdb", ".jsonl", ".parquet", ".key", ".names", ".yml"}
SERIES = ("_bucket", "_sum", "_count")


class Code(NamedTuple):
    """Text in a fence (its language may be empty) or between backticks (language None)."""

    text: str
    language: str | None


def code_of(text: str) -> Iterator[Code]:
    fence = re.compile(r"^[ ]*```(\w*)\n(.*?)^[ ]*```$", re.MULTILINE | re.DOTALL)
    for language, body in fence.findall(text):
        yield Code(body, language)
    prose = fence.sub("", text)
    for line in re.findall(r"^    (\S.*)$", prose, re.MULTILINE):
        yield Code(line, "sh")
    for span in re.findall(r"`([^`\n]+)`", prose):
        yield Code(span, None)


def prose_of(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^[ ]*```.*?^[ ]*```$", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors_of(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(params=DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def document(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_every_link_and_anchor_leads_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", prose_of(document.read_text("utf-8")))
    dead = []
    for target in targets:
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        found = (document.parent / path).resolve() if path else document
        if not found.exists() or (anchor and anchor not in anchors_of(found)):
            dead.append(target)
    assert dead == []


# ---- commands --------------------------------------------------------------------------------------------------------

PREFIX = re.compile(
    r"""^\s*(?:
        [A-Z_]+=\S*                                    # a variable
        | (?:[\d*/,-]+\s+){4}[\d*/,-]+(?:\s+piper(?=\s+/))? # the five fields of cron, and a user
        | (?:sudo|exec|time|timeout)(?:\s+-\w+\s+\w+|\s+\d+)*
        | docker\ compose\b.*?\ exec\ piperd
    )\s+""",
    re.VERBOSE,
)


def command_lines(code: Code) -> Iterator[list[str]]:
    """The words of every command line of piper in a piece of code, from `piper` on."""
    if code.language not in {None, "", "sh"}:
        return
    for line in code.text.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|\||;|(?<=\s)\|(?=\s)", re.sub(r"(^|\s)#.*", "", line)):
            command, before = part.strip(), None
            while before != command:
                before, command = command, PREFIX.sub("", command)
            try:
                words = shlex.split(command)
            except ValueError:
                words = command.split()
            if words and re.fullmatch(r"(\S*/)?piperd?", words[0]):
                yield [words[0].rpartition("/")[2], *words[1:]]


def wrong_in(words: list[str]) -> str | None:
    """What of a command line does not exist."""
    command: Any = typer.main.get_command(app if words[0] == "piper" else daemon_app)
    waits_for_value = False
    for word in words[1:]:
        if waits_for_value or word in {"…", "...", "NAME", "COMMAND"}:
            waits_for_value = False
        elif word.startswith("--"):
            name, _, value = word.partition("=")
            option = next((found for found in command.params if name in found.opts), None)
            if option is None and name != "--help":
                return f"{command.name or words[0]} has no {name}"
            waits_for_value = option is not None and not option.is_flag and not value
        elif getattr(command, "commands", None) and re.fullmatch(r"[a-z|-]+", word):
            *others, name = word.split("|")
            missing = {one for one in [*others, name] if one not in command.commands}
            if missing:
                return f"{command.name or words[0]} has no command {', '.join(sorted(missing))}"
            command = command.commands[name]
    return None


def test_every_command_line_of_piper_exists_with_its_options(document: Path) -> None:
    lines = [words for code in code_of(document.read_text("utf-8")) for words in command_lines(code)]
    wrong = {" ".join(words): found for words in lines if (found := wrong_in(words))}
    assert wrong == {}


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("piper ingest --json", None),
        ("piper --data-root /x status --watch 5", None),
        ("sudo -u piper /opt/piper/bin/piper --config /x quarantine list|show", None),
        ("* * * * * piper /opt/piper/bin/piper ingest >/dev/null", None),
        ("A=1 piper digest && ls", "piper has no command digest"),
        ("cd x && piper ingest --jason", "ingest has no --jason"),
        ("piper quarantine list|burn", "quarantine has no command burn"),
        ("piperd --days 3", "piperd has no --days"),
    ],
)
def test_a_command_line_that_does_not_exist_is_found(line: str, wrong: str | None) -> None:
    [words] = command_lines(Code(line, "sh"))
    assert wrong_in(words) == wrong


# ---- names -----------------------------------------------------------------------------------------------------------


def test_every_setting_that_is_named_exists(document: Path) -> None:
    text = document.read_text("utf-8")
    variables = {"PIPER_" + key.replace(".", "__").upper() for key in SETTING_KEYS} | OTHER_VARIABLES
    named = set(re.findall(r"\bPIPER_[A-Z_]*[A-Z]\b(?![<*])", text)) - {"PIPER_FAILPOINT", "PIPER_READER_SITE"}
    assert named - variables - {"PIPER_TEST"} == set()

    sections = "|".join(sorted({key.partition(".")[0] for key in SETTING_KEYS}))
    spans = [code.text for code in code_of(text) if code.language is None]
    keys = {found[0] for span in spans if (found := re.match(rf"(?:{sections})\.[a-z_]+(?= = |=|$)", span))}
    assert {key for key in keys if Path(key).suffix not in SUFFIXES} - set(SETTING_KEYS) - NO_SETTINGS == set()


def test_every_metric_that_is_named_exists(document: Path, tmp_path: Path) -> None:
    write_textfile(tmp_path / "doctor.prom", [])
    doctors = re.findall(r"^# TYPE (\w+)", (tmp_path / "doctor.prom").read_text("utf-8"), re.MULTILINE)
    known = {metric.name for metric in METRICS} | set(doctors)
    known |= {metric.name + suffix for metric in METRICS if metric.kind == "histogram" for suffix in SERIES}
    named = set(re.findall(r"\bpiper_[a-z_]*[a-z]\b", document.read_text("utf-8")))
    assert named - known == set()


def test_every_log_line_that_is_searched_for_is_written_somewhere(document: Path) -> None:
    source = "\n".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))
    patterns = re.findall(r"--grep '?([\w|\\ ]+)'?", document.read_text("utf-8"))
    words = {
        word for pattern in patterns for word in re.split(r"\\?\|", pattern) if re.fullmatch(r"[a-z]+_[a-z_]+", word)
    }
    assert {word for word in words if f'"{word}"' not in source} == set()


def test_every_file_of_the_repository_that_is_named_exists(document: Path) -> None:
    spans = {code.text for code in code_of(document.read_text("utf-8")) if code.language is None}
    paths = {span for span in spans if re.fullmatch(r"(src|tests|docs|conf|bench|systemd|grafana)/[\w./-]+", span)}
    assert {path for path in paths if not (ROOT / path).exists() and not (ROOT / "docs" / path).exists()} == set()


def test_the_runbook_leads_to_every_alert_once() -> None:
    alerts = re.findall(r"^### (Piper\w+)$", (ROOT / "docs" / "alerts.md").read_text("utf-8"), re.MULTILINE)
    linked = re.findall(r"\[(Piper\w+)\]\(alerts\.md#", (ROOT / "docs" / "operations.md").read_text("utf-8"))
    assert sorted(linked) == sorted(alerts)


def test_what_sizing_counts_on_was_measured() -> None:
    benchmarks = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    sizing = (ROOT / "docs" / "scaling.md").read_text("utf-8").split("## Sizing")[1].split("| setting |")[0]
    figures = set(re.findall(r"\d[\d,]*\.\d+|\d{1,3}(?:,\d{3})+|\b\d{3}\b", sizing))
    assert figures
    assert {figure for figure in figures if figure not in benchmarks} == set()
