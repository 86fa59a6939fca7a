"""Where Crucible is put: odd homes, narrow rights, a plain locale, files on another file system, a checkout that is
read only. One process goes through what a first use of the command line does."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from crucible.local.state import PROJECT

SHM = Path("/dev/shm")
FIRST_USE = """
import json, os, sys
os.umask(0o077)
from crucible.cli.main import build_app
from typer.testing import CliRunner
app, runner = build_app(), CliRunner()
said = {}
for line in json.loads(sys.argv[1]):
    result = runner.invoke(app, line)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    said[" ".join(line[:2])] = result.output
print(json.dumps(said))
"""


@pytest.fixture
def other_file_system(tmp_path: Path) -> Iterator[Path]:
    """A folder from which nothing can be renamed to the home."""
    if not SHM.is_dir() or SHM.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("NOT TESTED: /dev/shm is no file system of its own here")
    folder = SHM / f"crucible-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def test_an_odd_home_a_narrow_umask_a_plain_locale_and_another_file_system(
    tmp_path: Path, other_file_system: Path
) -> None:
    home = tmp_path / "Jürgens Läufe & mehr #1"
    texts = home / "bücher"
    texts.mkdir(parents=True)
    (texts / "Über alles.txt").write_text("Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich.\n" * 200, "utf-8")
    lines = [
        ["data", "prepare", "--source", str(texts), "--tokenizer", "char", "--json"],
        ["data", "ls", "--json"],
        ["jobs", "ls"],
        ["prices", "ls", "--json"],
    ]
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("LC_", "CRUCIBLE_", "PYTHON"))},
        "LANG": "C",
        "HOME": str(home),
        "CRUCIBLE_HOME": str(home / ".crucible"),
        "PREFECT_HOME": str(home / ".prefect"),
        "TMPDIR": str(other_file_system),
    }
    done = subprocess.run(
        [sys.executable, "-c", FIRST_USE, json.dumps(lines)],
        env=environment,
        cwd=PROJECT,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    said = json.loads(done.stdout)
    assert said["jobs ls"].startswith("no jobs in file://")
    prepared = json.loads(said["data prepare"])
    assert prepared["vocab_size"] > 20
    assert prepared["digest"] in said["data ls"]
    store = home / ".crucible" / "store"
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in store.rglob("*")} == {0}, "the umask holds"
    assert list(other_file_system.iterdir()) == [], "nothing stays behind"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that others may enter. Not pytest's: whenever another pytest of this user starts, it closes its own."""
    with tempfile.TemporaryDirectory(prefix="crucible-surroundings-") as name:
        folder = Path(name)
        for path in (folder, *folder.parents):
            if path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o055 != 0o055:
                path.chmod(path.stat().st_mode | 0o055)
        yield folder


def test_a_checkout_that_is_read_only(open_folder: Path) -> None:
    """As an installation by an administrator: no command writes beside its code."""
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("NOT TESTED: root may write everywhere, and setpriv is not here to be somebody else")
    checkout = open_folder / "checkout"
    for folder in ("crucible", "flows", "tasks", "blocks"):
        shutil.copytree(PROJECT / folder, checkout / folder, ignore=shutil.ignore_patterns("__pycache__"))
    before = set(checkout.rglob("*"))
    home = open_folder / "home"
    home.mkdir()
    for path in (checkout, *before):
        path.chmod(0o555 if path.is_dir() else 0o444)
    home.chmod(0o777)
    other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.getuid() == 0 else []
    lines = [["jobs", "ls"], ["prices", "ls", "--json"], ["estimate", "--preset", "debug", "--json"]]
    done = subprocess.run(
        [*other, sys.executable, "-c", FIRST_USE, json.dumps(lines)],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(checkout),
            "HOME": str(home),
            "CRUCIBLE_HOME": str(home / ".crucible"),
            "PREFECT_HOME": str(home / ".prefect"),
        },
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    for path in (checkout, *before):  # so that it can be removed
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["jobs ls"].startswith("no jobs in file://")
    assert set(checkout.rglob("*")) == before
