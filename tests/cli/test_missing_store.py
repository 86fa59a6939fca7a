"""A store that is not there is not an empty one: every command that only reads says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from crucible.cli.main import build_app
from crucible.errors import ConfigError

APP = build_app()
READING = [
    "jobs ls",
    "jobs show a",
    "jobs metrics a",
    "jobs report a",
    "jobs stop a",
    "jobs limits a",
    "jobs continue a",
    "sweeps ls",
    "sweeps show a",
    "sweeps stop a",
    "sweeps limits a",
    "sweeps continue a",
    "checkpoints ls a",
    "checkpoints verify a",
    "checkpoints get a there",
    "data ls",
    "data show a",
    "data export-nanogpt a there",
    "cost",
    "estimate",
    "estimate --accuracy",
]


@pytest.mark.parametrize("words", READING)
def test_a_store_that_is_not_there_is_named(words: str, tmp_path: Path) -> None:
    missing = tmp_path / "nope" / "x"
    result = CliRunner().invoke(APP, [*words.split(), "--store", str(missing)])
    assert isinstance(result.exception, ConfigError), result.output
    assert f"there is no store at {missing.as_uri()}: the folder does not exist" in str(result.exception)
    assert not missing.parent.exists()


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(APP, ["jobs", "ls", "--store", (tmp_path / "file").as_uri()])
    assert isinstance(result.exception, ConfigError)
    assert "is a file" in str(result.exception)


def test_the_local_store_may_be_empty_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRUCIBLE_HOME", str(tmp_path))
    assert CliRunner().invoke(APP, ["jobs", "ls"]).output.startswith("no jobs in file://")
