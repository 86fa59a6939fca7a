from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from crucible.cli import data
from crucible.errors import ConfigError
from tests.datasets.texts import make_text


def run(*arguments: str) -> str:
    app = typer.Typer()
    data.register(app)
    done = CliRunner().invoke(app, ["data", *arguments], catch_exceptions=False, standalone_mode=False)
    return done.stdout


@pytest.fixture
def text_file(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(make_text(5000), encoding="utf-8")
    return str(path)


def test_prepare_list_show_and_export(text_file: str, tmp_path: Path) -> None:
    assert json.loads(run("ls", "--json")) == []
    made = json.loads(run("prepare", "--source", text_file, "--tokenizer", "byte", "--json"))
    assert made["cached"] is False
    assert json.loads(run("prepare", "--source", text_file, "--tokenizer", "byte", "--json"))["cached"] is True
    (listed,) = json.loads(run("ls", "--json"))
    assert listed == {key: value for key, value in made.items() if key != "cached"}
    assert made["digest"][:12] in run("ls")
    shown = json.loads(run("show", made["digest"][:8], "--json"))
    assert shown["splits"]["train"]["tokens"] == made["tokens"]["train"]
    assert f"{made['tokens']['train']:,} tokens" in run("show", made["digest"])
    run("export-nanogpt", made["digest"], str(tmp_path / "out"))
    assert (tmp_path / "out" / "train.bin").stat().st_size == 2 * made["tokens"]["train"]


def test_a_store_of_ones_own(text_file: str, tmp_path: Path) -> None:
    place = (tmp_path / "elsewhere").as_uri()
    made = json.loads(run("prepare", "--source", text_file, "--store", place, "--json"))
    assert made["uri"].startswith(place)
    assert json.loads(run("ls", "--json")) == []
    assert len(json.loads(run("ls", "--store", place, "--json"))) == 1


def test_a_bad_option_is_the_configs_own_message(text_file: str) -> None:
    with pytest.raises(ConfigError, match="vocab_size = 100 is too small for bpe"):
        run("prepare", "--source", text_file, "--tokenizer", "bpe", "--vocab-size", "100")
