"""A home of its own for every test, and a folder to preprocess."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.datasets.texts import make_text


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("CRUCIBLE_HOME", str(home))
    return home


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder of ten documents in two levels, one of them empty, plus a hidden file of bytes that are no text."""
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    for number in range(9):
        name = f"{'deep/' if number % 2 else ''}doc{number}.txt"
        (folder / name).write_text(make_text(3000, number).replace("\r", ""), encoding="utf-8", newline="")
    (folder / "empty.txt").touch()
    (folder / ".hidden").write_bytes(b"\xff\xfe")
    return folder
