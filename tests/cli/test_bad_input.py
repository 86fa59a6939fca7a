"""No command line ends in a traceback: hundreds of them, drawn for every command from its options and hostile values.

Nothing is started and nothing leaves this process: programs, connections and waiting are replaced by errors.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from crucible.cli.main import build_app
from crucible.errors import CrucibleError
from crucible.store import Store, store_at
from tests.sweeps.carry_out import new_sweep

LINES = 5
"""For each command."""
HOSTILE = [
    *(
        "",
        " ",
        "-",
        "--",
        "=",
        "a=b=c",
        "key=",
        "{",
        "[",
        "[" * 3000,
        "{a: " * 3000,
        "{[}]",
        "!!python/object:os",
        "\t",
        "\n",
    ),
    *(
        "nan",
        "inf",
        "-inf",
        "1e300",
        "1e400",
        "-1",
        "0",
        "-0.0",
        "0.5",
        "9" * 40,
        "0x10",
        "1_000",
        "٣",
        "1,5",
        "lots",
        "none",
    ),
    *(
        "12h",
        "99999999999d",
        "-3d",
        "0d",
        "nand",
        "never",
        "2026-13-45",
        "2026-05-07T18:00",
        "0001-01-01T00:00+14:00",
        "9999-12-31",
    ),
    *(
        "~nouser/x",
        "~",
        "/nope/x",
        "../..",
        "a/b",
        "/dev/null",
        "/proc/self/mem",
        "x" * 300,
        "x" * 5000,
        "ü ö.txt",
        "\udcff",
        "a\0b",
    ),
    *(
        "s3://",
        "s3:///x",
        "s3://a_b/../c",
        "file://",
        "file://host/x",
        "http://127.0.0.1/x",
        "https://",
        "ftp://x/y",
        "gs://b",
        "://",
    ),
    *(
        "L4:99",
        "L4:-1",
        "device=",
        "device=x,y",
        "24g",
        "-1g",
        "24 quadrillion",
        "debug",
        "cpu-small",
        "learning_rate=1e999",
    ),
    *(
        "n_layer=-1",
        "n_layer=nan",
        "seed=" + "9" * 30,
        "dropout=",
        "unknown=1",
        "300M",
        "-1B",
        "1e30T",
        "0.0.0.0/99",
        "*",
        "[a-",
        "%s%n",
        "|",
    ),
]
FILES = {
    "deep.yaml": b"[" * 5_000,
    "deep.json": b'{"a":' * 5_000,
    "aliases.yaml": b"a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "empty.yaml": b"",
    "list.yaml": b"- 1\n- 2\n",
    "binary.yaml": bytes(range(256)),
    "types.yaml": b"n_layer: [1]\nmax_iters: {a: 1}\nlearning_rate: .nan\n",
    "text.csv": b"pool,instance\n\xff\xfe,\n",
    "script.py": b"\xef\xbb\xbfprint(1)\n",
}


class Blocked(Exception):
    """The command would start a program or wait: its input was accepted."""


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command by its words; of whichever click typer brings with it."""
    if hasattr(group, "commands"):
        for name, command in group.commands.items():
            yield from commands(command, (*path, name))
    else:
        yield path, group


APP = build_app()
COMMANDS = dict(commands(typer.main.get_command(APP)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that are not what they seem, and a store with a sweep and two jobs."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    sweep = new_sweep(_store(folder), "rates")
    sweep.record_trial(1, {"learning_rate": 2e-3})
    sweep.record_trial(2, {"learning_rate": 3e-3})
    return folder


@pytest.fixture(autouse=True)
def nothing_is_started(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def block(*arguments: Any, **named: Any) -> Any:
        raise Blocked

    def refuse(*arguments: Any, **named: Any) -> Any:
        raise ConnectionRefusedError("no connections in this test")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(subprocess.Popen, "__init__", block)
    monkeypatch.setattr(time, "sleep", block)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "bind", block)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def _store(folder: Path) -> Store:
    return store_at((folder / "store").as_uri())


def text(alphabet: st.SearchStrategy[str], most: int) -> st.SearchStrategy[str]:
    return st.text(alphabet, max_size=most)


NUMBERS = st.integers().map(str) | st.floats().map(repr) | st.decimals(allow_nan=True).map(str)
NAMES = text(st.characters(), 80) | text(st.sampled_from("aZ0-_./~ ü=,:[]{}%*"), 80)
PATHS = st.lists(NAMES | st.sampled_from(["..", "~", "", "x" * 300]), max_size=6).map("/".join)
VALUES = st.sampled_from(HOSTILE) | NUMBERS | NAMES | PATHS


@st.composite
def command_lines(draw: st.DrawFn, command: Any, folder: Path) -> list[str]:
    """Arguments of the command, hostile ones among them."""
    known = st.sampled_from(["rates", "rates-0001", "rates-0002", *sorted(map(str, folder.iterdir()))])
    parameters = [parameter for parameter in command.params if parameter.name != "help"]
    hostile = draw(st.lists(st.sampled_from(parameters), max_size=2)) if parameters else []
    line: list[str] = []
    for parameter in parameters:
        is_hostile = any(parameter is one for one in hostile)
        if not is_hostile and not parameter.required and parameter.name != "store":
            continue
        value = draw(VALUES | known if is_hostile else known)
        if parameter.name == "store" and not is_hostile:
            value = (folder / "store").as_uri()
        if parameter.param_type_name == "option":
            line += [parameter.opts[0]] if parameter.is_flag else [f"{parameter.opts[0]}={value}"]
        else:
            line.append(value)
    return line


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_no_command_line_ends_in_a_traceback(path: tuple[str, ...], folder: Path) -> None:
    @settings(
        max_examples=LINES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],  # a failing line says enough as it is
        suppress_health_check=list(HealthCheck),
    )
    @given(command_lines(COMMANDS[path], folder))
    def no_traceback(arguments: list[str]) -> None:
        result = CliRunner().invoke(APP, [*path, *arguments])
        expected = CrucibleError | SystemExit | Blocked
        assert result.exception is None or isinstance(result.exception, expected), f"{arguments}: {result.exception!r}"

    no_traceback()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["data", "prepare", "--source", "s3://"], "names no bucket"),
        (["data", "prepare", "--source", "~nouser/x"], "source: '~nouser/x' names the home"),
        (["data", "prepare", "--source", "x" * 300], "source: 'xxx"),
        (["data", "prepare", "--source", "script.py", "--tokenizer-file", "~nouser/x"], "tokenizer_file: '~nouser/x'"),
        (["data", "prepare", "--source", "script.py", "--tokenizer-file", "deep.json"], "deep.json is not JSON"),
        (["estimate", "--config", "deep.yaml"], "deep.yaml is not valid YAML or JSON"),
        (["simulate", "--traces", "."], "is not a spot trace"),
        (["jobs", "ls", "--store", "~nouser/x"], "store: '~nouser/x'"),
        (["jobs", "continue", "rates-0001", "--finish-by", "never"], "which is no time"),
        (["jobs", "limits", "rates-0001", "--max-hours", "1e300"], "max_hours"),
        (["sweeps", "limits", "rates", "--max-cost-usd", "inf"], "max_cost_usd"),
        (["sweeps", "limits", "rates", "--finish-by", "0001-01-01T00:00+14:00"], "which is no time"),
        (["up", "--project", "loop"], "cannot be read: Too many levels of symbolic links"),
        (["quickstart", "--preset", "/"], "preset = '/' does not exist"),
        (["docker", "pool", "--memory", "lots"], "memory = 'lots'"),
        (["docker", "pool", "--gpus", "device="], "gpus = 'device='"),
        (["modal", "pool", "--name", "a/b"], "name = 'a/b'"),
        (["modal", "pool", "--gpu", "L4:99"], "gpu = 'L4:99'"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_once_was_accepted_or_a_traceback_says_what_is_wrong(line: list[str], said: str, folder: Path) -> None:
    if line[0] in ("jobs", "sweeps") and "--store" not in line:
        line = [*line, "--store", _store(folder).uri]
    result = CliRunner().invoke(APP, line)
    assert isinstance(result.exception, CrucibleError), result.output
    assert said in str(result.exception)


@pytest.mark.parametrize("value", ["nan", "inf", "1e300"])
def test_numbers_that_are_none_are_refused_before_the_command_runs(value: str) -> None:
    result = CliRunner().invoke(APP, ["rehearse", "aws", "--boot-seconds", value])
    assert result.exit_code == 2
    assert "boot-seconds" in result.output
