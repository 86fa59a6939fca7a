"""Every command in the documentation, and every one that a message prints, is one that exists, with these options.

They are parsed by the real parsers and not run, apart from a few that need nothing and take a second.
"""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from pydantic import BaseModel
from typer.exceptions import TyperException
from typer.testing import CliRunner

from crucible.cli.main import build_app
from crucible.local.state import PROJECT
from crucible.pools.aws.pools import OFFERED as ON_ECS
from crucible.pools.docker.pool import OFFERED as ON_DOCKER
from crucible.pools.modal.pool import OFFERED as ON_MODAL
from crucible.run_config import RunConfig
from flows.parameters import TrainRequest, TrainScriptRequest, TuneRequest, TuneScriptRequest

PROGRAMS = ("crucible", "prefect", "python", "make", "pip")
REQUESTS: dict[str, type[BaseModel]] = {
    "train-nanogpt": TrainRequest,
    "train-script": TrainScriptRequest,
    "tune-nanogpt": TuneRequest,
    "tune-script": TuneScriptRequest,
}
PREFECT = {
    ("deployment", "run"),
    ("deployment", "schedule"),
    ("worker", "start"),
    ("work-pool", "create"),
    ("work-pool", "resume"),
    ("work-pool", "set-concurrency-limit"),
    ("work-queue", "set-concurrency-limit"),
    ("work-pool", "get-default-base-job-template"),
    ("block", "register"),
    ("profile", "use"),
    ("profile", "ls"),
    ("plugins", "diagnose"),
    ("deploy",),
    ("config", "set"),
    ("server", "start"),
    ("server", "services", "start"),
    ("server", "database", "upgrade"),
    ("flow-run", "execute"),
    ("flow-run", "cancel"),
    ("flow-run", "ls"),
    ("flow-run", "logs"),
}
"""What Prefect 3.8 has of it; its own parser takes longer to load than all tests here."""
APP = build_app()
ROOT = typer.main.get_command(APP)
INSERTED = "1"
"""In place of what a message inserts: a number and a name."""


def documented() -> Iterator[tuple[str, str, bool]]:
    """Where, the line, and whether it is from a block of commands: a sentence may name a command only."""
    for path in [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]:
        kind, wanted = None, ""
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            where = f"{path.relative_to(PROJECT)}:{number}"
            if line.startswith("```"):
                kind, wanted = (line[3:].strip() or "text") if kind is None else None, ""
            elif kind is None:
                for inline in re.findall(r"`([^`]+)`", line):
                    if inline.startswith(PROGRAMS) and " " in inline:
                        yield where, inline, False
            elif kind in ("console", "bash", "sh", "text"):
                text = wanted + line.removeprefix("$ ").strip()
                wanted = text.removesuffix("\\").rstrip() + " " if text.endswith("\\") or _open_quote(text) else ""
                if not wanted and text.split(" ")[0] in PROGRAMS and (kind != "console" or line.startswith(("$", " "))):
                    yield where, text, True


def _open_quote(text: str) -> bool:
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return text.split(" ")[0] in PROGRAMS
    return False


IN_BACKQUOTES = re.compile(r"`((?:crucible|prefect) [^`]+)`")
AFTER_COLON = re.compile(r"(?:^(?:  )?|: )((?:crucible|prefect) [a-z](?:(?!\. )[^;,)`\n])*)")
"""At the beginning of a line, or after a colon, as in "start it with: crucible up"."""


def printed() -> Iterator[tuple[str, str, bool]]:
    """Where, and the command: of every text in the code that has one."""
    for folder in ("crucible", "flows", "tasks", "blocks", "deployments"):
        for path in sorted((PROJECT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if not re.search(r"[`\" ](crucible|prefect) [a-z]", text):  # a syntax tree of every file takes seconds
                continue
            for node in ast.walk(ast.parse(text)):
                found = _text(node)
                for command in [*IN_BACKQUOTES.findall(found), *AFTER_COLON.findall(found)]:
                    yield f"{path.relative_to(PROJECT)}:{getattr(node, 'lineno', 0)}", command.rstrip('"'), False


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else _inserted(part) for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _inserted(part: ast.expr) -> str:
    """A name or number; nothing for the option that names another store than the default one."""
    return "" if "store_option" in ast.unparse(part) else INSERTED


def words_of(line: str) -> list[str]:
    """The command's words, without comments and without the brackets around what may be left out."""
    line = re.sub(r"\s+\|.*$|\s+&$|\s+#.*$|\s{3,}.*$|\s+>.*$", "", line)
    line = re.sub(r"\[(-[^\]]*)\]", r"\1", line) if "extras" not in line else line
    words = shlex.split(line)
    return words[: words.index("…")] if "…" in words else words


def problem_with(line: str, whole: bool = True) -> str | None:
    """Why a command would be refused; None if it would be taken. `whole`: nothing is left out of it."""
    if "&&" in line:
        return next(filter(None, (problem_with(part.strip(), whole) for part in line.split("&&"))), None)
    words = words_of(line)
    program, arguments = words[0], words[1:]
    partial = "…" in line or not whole
    if program == "crucible":
        return _crucible(arguments, partial)
    if program == "prefect":
        return _prefect(arguments, partial)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.M)
        return None if {a for a in arguments if "=" not in a} <= set(targets) else f"no such target: {arguments}"
    if program == "pip":
        extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        wanted = set(re.findall(r"\w+", "".join(re.findall(r"\.\[(.*?)\]", line))))
        return None if wanted <= extras.keys() else f"no such extra: {wanted - extras.keys()}"
    if arguments[:1] == ["-m"]:
        return None if importlib.util.find_spec(arguments[1]) else f"no module {arguments[1]}"
    return None


def _crucible(arguments: list[str], partial: bool) -> str | None:
    command: Any = ROOT
    context = command.make_context("crucible", ["--"], resilient_parsing=True)
    while hasattr(command, "commands"):
        if not arguments or arguments[0].startswith("-"):
            return None if not arguments or arguments[0] in ("--help", "-h", "--version") else f"no option {arguments}"
        name, *arguments = arguments
        if name not in command.commands:
            return f"no command {name}; there are {', '.join(command.commands)}"
        command = command.commands[name]
    try:
        command.make_context(command.name, list(arguments), parent=context)
    except typer.Exit:
        return None  # --help
    except TyperException as error:
        said = str(getattr(error, "message", "") or error) or type(error).__name__
        left_out = "Missing parameter" in str(error) or "requires an argument" in said
        return None if "does not exist" in said or (partial and left_out) else said
    return None


def _prefect(arguments: list[str], partial: bool) -> str | None:
    arguments = [a for a in arguments if a != "--no-prompt"]
    if not any(all(a == b for a, b in zip(arguments, known, strict=False)) for known in PREFECT):
        return f"not a known command of Prefect's: {arguments[:2]}"
    if partial and len(arguments) < 3:
        return None
    if arguments[:2] != ["deployment", "run"]:
        return None
    name, given, variables = arguments[2], {}, set()
    for option, value in itertools.pairwise(arguments[3:]):
        if option in ("-p", "--param"):
            key, _, text = value.partition("=")
            try:
                given[key] = json.loads(text)
            except ValueError:
                given[key] = text
        if option == "--params":
            given |= json.loads(value)
        if option in ("-jv", "--job-variable"):
            variables.add(value.partition("=")[0])
    if unknown := variables - {*ON_ECS, *ON_DOCKER, *ON_MODAL, "NAME"}:
        return f"no pool offers {unknown}"
    request = REQUESTS.get(name.rpartition("/")[2])
    if request is not None and given:
        try:
            request.model_validate(given)
        except ValueError as error:
            return str(error)
    return None


DOCUMENTED = list(dict.fromkeys(documented()))
PRINTED = list(dict.fromkeys(printed()))


EXECUTED_IN = ("tests", "crucible/rehearsal")
"""Where commands are really executed: by tests, and by the drills and rehearsals that tests start."""
IN_OTHER_WORDS = {
    "crucible data": 'run("{}"',  # tests/datasets/test_cli.py: `run` there adds what comes before
    "crucible drill": "Drill(",
}
"""How tests start these commands, where they do not write them out."""
NOT_EXECUTED = {
    "crucible aws plan": "needs an AWS account, or `crucible rehearse aws`",
    "crucible aws stop-all": "needs an AWS account; it stops whatever runs there",
    "crucible kubernetes pool": "needs a cluster",
    "crucible prices import": "needs SkyPilot's tables of prices",
    "crucible sky pool": "needs SkyPilot in an environment of its own",
    "crucible sky setup": "downloads SkyPilot",
    "crucible serve": "needs a trained model and stays; tests/serving serve one",
    "crucible tensorboard": "opens a server that stays, of a package of the extra `tensorboard`",
    "crucible ui": "opens a browser",
    "crucible images ls": "needs a Docker engine with images",
    "crucible images push": "needs an account at a registry",
    "crucible modal cost": "needs a Modal account",
}
OTHER_PROGRAMS = {
    "docs/docker.md": ("sudo", "cat", "docker", "chmod", "END", "CRUCIBLE_", "DOCKER_GID"),  # a machine for a team
    "docs/modal.md": ("modal token",),  # needs an account
    "docs/skypilot.md": ("~/.crucible/skypilot/bin/sky",),  # needs an account
    "docs/slurm.md": ("git clone",),  # needs an account on a cluster
    "docs/team.md": ("export",),
    "docs/from-colab.md": ("jupyter",),
    "docs/from-shell-script.md": ("#!/bin/sh", "export", "while", "echo", "done", "cp"),  # what people have already
}
"""Lines in blocks of commands that are no commands of this project, by page."""


def test_there_are_commands_to_look_at() -> None:
    assert len(DOCUMENTED) > 80
    assert len(PRINTED) > 120


@pytest.mark.parametrize("commands", [DOCUMENTED, PRINTED], ids=["documented", "printed"])
def test_every_command_exists_with_these_options(commands: list[tuple[str, str, bool]]) -> None:
    wrong = [f"{where}: {line}: {why}" for where, line, whole in commands if (why := problem_with(line, whole))]
    assert wrong == []


def _name(line: str) -> str:
    """The command of a line: `crucible jobs ls` of `crucible jobs ls --json`."""
    names, command = ["crucible"], ROOT
    for word in words_of(line)[1:]:
        if word not in getattr(command, "commands", {}):
            break
        command = command.commands[word]  # type: ignore[attr-defined]
        names.append(word)
    return " ".join(names)


def test_every_command_is_executed_somewhere_or_marked() -> None:
    parts = [part for _, line, whole in DOCUMENTED if whole for part in line.split(" && ")]
    named = {_name(part) for part in parts if part.startswith("crucible ")} - {"crucible"}
    files = [path for folder in EXECUTED_IN for path in (PROJECT / folder).rglob("*.py") if path != Path(__file__)]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    unknown = {name for name in named - NOT_EXECUTED.keys() if not _is_executed(name, text)}
    assert unknown == set(), "let a test run them, or say in NOT_EXECUTED what they need"


def _is_executed(name: str, text: str) -> bool:
    """Whether a test has the command's words as arguments or as a line that is typed."""
    words = name.split()[1:]
    arguments = r'[\[(, ]"' + r'",\s*"'.join(map(re.escape, words)) + r'"[,\])]'
    typed = r"""["'`]crucible """ + " ".join(words) + r"\b"
    other = IN_OTHER_WORDS.get(f"crucible {words[0]}")
    quoted = '"' + " ".join(words) + ('[ "]' if len(words) > 1 else " ")
    found = re.search(arguments, text) or re.search(typed, text) or re.search(quoted, text)
    return bool(found) or (other is not None and other.format(words[-1]) in text)


def test_every_line_in_a_block_of_commands_is_one_that_is_checked() -> None:
    unknown = []
    for path in [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]:
        page, kind, goes_on = str(path.relative_to(PROJECT)), None, False
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.startswith("```"):
                kind, goes_on = line[3:].strip() if kind is None else None, False
            elif kind in ("bash", "sh") or (kind == "console" and (line.startswith("$ ") or goes_on)):
                text = line.removeprefix("$ ").strip()
                known = (*PROGRAMS, "#", *OTHER_PROGRAMS.get(page, ()))
                if text and not goes_on and not text.startswith(known):
                    unknown.append(f"{page}:{number}: {line}")
                goes_on = text.endswith("\\") or (goes_on and kind != "console")
    assert unknown == []


def test_every_settings_file_in_the_documentation_is_valid() -> None:
    found = 0
    for path in sorted((PROJECT / "docs").rglob("*.md")):
        for block in re.findall(r"^```yaml\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S):
            if block.startswith("command:"):
                RunConfig.parse(yaml.safe_load(block), str(path))
                found += 1
    assert found > 3


def test_the_workflow_has_the_commands_of_its_page() -> None:
    workflow = yaml.safe_load((PROJECT / "examples/github_actions/train.yml").read_text())
    steps = [step["run"].partition(" |")[0] for step in workflow["jobs"]["train"]["steps"] if "run" in step]
    ours = [step for step in steps if step.startswith("crucible ")]
    page = [line for where, line, whole in DOCUMENTED if whole and where.startswith("docs/ci.md")]
    assert ours == page[: len(ours)]
    assert [problem for step in ours if (problem := problem_with(step))] == []


QUICK = (
    "crucible estimate --preset",
    "crucible prices ls",
    "crucible jobs ls",
    "crucible data ls",
    "crucible cost --by",
)


def test_what_needs_nothing_and_takes_a_second_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRUCIBLE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    lines = {tuple(words_of(line)[1:]) for _, line, whole in DOCUMENTED if whole and line.startswith(QUICK)}
    assert lines
    for line in sorted(line for line in lines if "--probe" not in line):
        result = CliRunner().invoke(APP, list(line))
        assert result.exit_code == 0, f"{line}: {result.output} {result.exception!r}"
