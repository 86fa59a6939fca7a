"""Dependencies are installed once for each content, by the real uv, from wheels that the test makes."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from crucible.code.environments import Dependencies, ensure_environment, find_dependencies, variables
from crucible.errors import ConfigError
from tests.agent.runner import alive
from tests.waiting import until


def make_wheel(folder: Path, word: str) -> str:
    """A package `greeting` whose `word` is this; returns the file's name."""
    name = "greeting-1.0-py3-none-any.whl"
    info = "greeting-1.0.dist-info"
    with zipfile.ZipFile(folder / name, "w") as wheel:
        wheel.writestr("greeting.py", f"word = {word!r}\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"greeting.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return name


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def found_in(folder: Path, wanted: str = "") -> Dependencies:
    return find_dependencies(folder, [path.name for path in folder.iterdir()], wanted)


def says(environment: Path | None, cache: Path, code: str) -> str:
    """What `python -c` prints with the variables that a script gets."""
    env = {"PATH": os.environ["PATH"], **variables(environment, cache, dict(os.environ))}
    return subprocess.run(
        ["python", "-c", code], env=env, check=True, capture_output=True, text=True, cwd=cache
    ).stdout.strip()


def test_an_installer_goes_with_the_attempt_that_started_it(tmp_path: Path) -> None:
    """Otherwise it would write on beside the one of the next attempt."""
    program = (
        "from pathlib import Path; from crucible.code.environments import _run; "
        "_run(['sh', '-c', 'echo $$ > pid; exec sleep 600'], Path(), Path('target'), 'requirements.txt', print)"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path) as attempt:
        until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        attempt.kill()
    until(lambda: not alive(int((tmp_path / "pid").read_text())))


def test_requirements_are_installed_once_for_each_content(folder: Path, tmp_path: Path) -> None:
    (folder / "requirements.txt").write_text(f"./{make_wheel(folder, 'hello')}\n")
    cache, lines = tmp_path / "cache", list[str]()
    found = found_in(folder)
    first = ensure_environment(found, folder, cache, lines.append)
    assert says(first, cache, "import greeting; print(greeting.word)") == "hello"
    assert says(first, cache, "import crucible.contract as c; print(c.EXIT_SAVED)") == "75", "scripts may use Crucible"
    assert (
        says(first, cache, "import importlib.util as u; print(u.find_spec('tasks'), u.find_spec('torch'))")
        == "None None"
    )
    assert lines

    lines.clear()
    assert ensure_environment(found_in(folder), folder, cache, lines.append) == first
    assert lines == [], "the second attempt installs nothing"

    make_wheel(folder, "good evening")  # the requirements file is the same, what it names is not
    second = ensure_environment(found_in(folder), folder, cache)
    assert second != first
    assert says(second, cache, "import greeting; print(greeting.word)") == "good evening"


def test_an_interrupted_installation_is_made_anew(folder: Path, tmp_path: Path) -> None:
    (folder / "requirements.txt").write_text(f"./{make_wheel(folder, 'hello')}\n")
    found, cache = found_in(folder), tmp_path / "cache"
    (cache / found.digest).mkdir(parents=True)
    (cache / found.digest / "half").touch()
    environment = ensure_environment(found, folder, cache)
    assert environment is not None
    assert not (environment / "half").exists()
    assert says(environment, cache, "import greeting; print(greeting.word)") == "hello"


def test_a_failed_installation_says_what_the_installer_said(folder: Path, tmp_path: Path) -> None:
    (folder / "requirements.txt").write_text("no-such-package-anywhere==1.0\n")
    found = found_in(folder)
    with pytest.raises(ConfigError, match=r"(?s)requirements.txt could not be installed:.*no-such-package-anywhere"):
        ensure_environment(found, folder, tmp_path / "cache")
    assert not (tmp_path / "cache" / found.digest).exists()


def test_only_what_travels_decides_the_environment(folder: Path) -> None:
    """Data beside the code may be large, and what a stage before has left differs each time."""
    (folder / "requirements.txt").write_text("--extra-index-url https://example.com/simple\nx\n")
    before = found_in(folder)
    (folder / "data").mkdir()
    (folder / "data" / "train.bin").write_bytes(b"large")
    assert find_dependencies(folder, ["requirements.txt"]) == before


def test_a_lock_file_comes_before_the_others(folder: Path, tmp_path: Path) -> None:
    wheel = make_wheel(folder, "locked")
    (folder / "requirements.txt").write_text("no-such-package-anywhere\n")
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "mine"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = ["greeting"]\n'
        f'[tool.uv.sources]\ngreeting = {{ path = "{wheel}" }}\n'
    )
    from uv import find_uv_bin

    subprocess.run([find_uv_bin(), "lock", "--quiet"], cwd=folder, check=True)
    found = found_in(folder)
    assert found.file == "uv.lock"
    cache = tmp_path / "cache"
    environment = ensure_environment(found, folder, cache)
    assert says(environment, cache, "import greeting; print(greeting.word)") == "locked"


def test_without_dependencies_it_is_crucibles_own_environment(folder: Path, tmp_path: Path) -> None:
    (folder / "pyproject.toml").write_text("[tool.ruff]\nline-length = 100\n")  # configures tools, installs nothing
    assert str(found_in(folder)) == "Crucible's own environment"
    assert ensure_environment(found_in(folder), folder, tmp_path) is None
    (folder / "requirements.txt").write_text("x\n")
    assert found_in(folder, "none").file == ""
    with pytest.raises(ConfigError, match=r"no file gpu\.txt"):
        found_in(folder, "gpu.txt")
    assert says(None, tmp_path, "import importlib.util as u; print(u.find_spec('torch').name)") == "torch"
