"""hadolint's rules that apply to our Dockerfiles, by their numbers, for machines without hadolint."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

SHELL_FORM_FORBIDDEN = ("CMD", "ENTRYPOINT")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name in capitals, and all that follows, joined to one line."""

    name: str
    value: str


def instructions(text: str) -> list[Instruction]:
    """What a Dockerfile says, in order, without comments."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = [line.strip() for line in lines.replace("\\\n", " ").splitlines() if line.strip()]
    return [Instruction(name.upper(), value.strip()) for name, _, value in (line.partition(" ") for line in joined)]


def lint(text: str) -> set[str]:
    """The numbers of the rules that it breaks."""
    found = instructions(text)
    return _images(found) | _programs(found) | _commands(found)


def _images(found: list[Instruction]) -> set[str]:
    problems = set()
    arguments = dict(each.value.partition("=")[::2] for each in found if each.name == "ARG")
    stages: set[str] = set()
    for each in found:
        if each.name != "FROM":
            continue
        image, _, stage = (part.strip() for part in re.sub(r"(?i)\s+as\s+", " as ", each.value).partition(" as "))
        image = re.sub(r"\$\{(\w+)\}", lambda name: arguments.get(name[1], ""), image)
        if image not in stages:
            problems |= {"DL3006"} if ":" not in image else set()  # no tag
            problems |= {"DL3007"} if image.endswith(":latest") else set()
        stages.add(stage)
    if found[0].name not in ("FROM", "ARG"):
        problems.add("DL3061")
    return problems


def _programs(found: list[Instruction]) -> set[str]:
    """What runs in the finished image: the instructions of the last stage."""
    problems = set()
    last = max(number for number, each in enumerate(found) if each.name == "FROM")
    stage = found[last:]
    users = [each.value for each in stage if each.name == "USER"]
    if users and re.match(r"(root|0)\b", users[-1]):
        problems.add("DL3002")
    for name, rule in (("HEALTHCHECK", "DL3012"), ("CMD", "DL4003"), ("ENTRYPOINT", "DL4004")):
        problems |= {rule} if sum(each.name == name for each in stage) > 1 else set()
    for each in found:
        program = each.value.partition("CMD ")[2] if each.name == "HEALTHCHECK" else each.value
        if each.name in (*SHELL_FORM_FORBIDDEN, "HEALTHCHECK") and not _is_exec_form(program):
            problems.add("DL3025")
        if each.name == "WORKDIR" and not each.value.startswith(("/", "$")):
            problems.add("DL3000")
        if each.name == "MAINTAINER":
            problems.add("DL4000")
    return problems


def _commands(found: list[Instruction]) -> set[str]:
    problems = set()
    before = ""
    for each in found:
        if each.name == "ADD":
            problems.add("DL3020")  # COPY says what it does
        if each.name == "RUN":
            run = each.value
            problems |= {"DL3059"} if before == "RUN" else set()
            problems |= {"DL3004"} if re.search(r"\bsudo\b", run) else set()
            problems |= {"DL3042"} if re.search(r"\bpip\d? install\b(?!.*--no-cache-dir)", run) else set()
            problems |= {"DL3009"} if "apt-get install" in run and "/var/lib/apt/lists" not in run else set()
            problems |= {"DL3015"} if re.search(r"apt-get install(?!.*--no-install-recommends)", run) else set()
            problems |= {"DL3046"} if re.search(r"useradd(?!.*(--no-log-init|-l\b)).*--uid \d{6,}", run) else set()
            problems |= {"DL4006"} if re.search(r"[^|]\|[^|]", run) else set()  # a pipe hides its first part's failure
        before = each.name
    return problems


def _is_exec_form(value: str) -> bool:
    try:
        return isinstance(json.loads(value), list)
    except ValueError:
        return False
