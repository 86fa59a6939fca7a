"""What people read: the docstrings' examples, and cells that try to break out of a table."""

from __future__ import annotations

import doctest

import pytest
from rich.console import Console

from crucible import formatting


def test_the_examples_in_the_docstrings_hold() -> None:
    found = doctest.testmod(formatting)
    assert found.attempted
    assert not found.failed


def test_every_markdown_row_has_as_many_cells_as_the_head() -> None:
    table = formatting.markdown_table(["a|b", "c"], [["x|y\nz", "1"], ["", "|"]])
    assert [line.replace("\\|", "").count("|") for line in table.splitlines()] == [3, 3, 3, 3]


def test_a_terminal_table_prints_markup_literally(capsys: pytest.CaptureFixture[str]) -> None:
    formatting.print_table(["source"], [["Poe [1845].txt [red]"]])
    assert "Poe [1845].txt [red]" in capsys.readouterr().out


def test_a_narrow_terminal_breaks_lines_between_words_and_no_name_or_number(capsys: pytest.CaptureFixture[str]) -> None:
    headings = ["job", "learning_rate", "val loss", "created", "end"]
    rows = [["proj-20261129-112513", "0.0003711", "4.2691", "2026-11-29 11:25", "the workload was killed by SIGKILL"]]
    narrow = Console(width=72, markup=False)
    with narrow.capture() as captured:
        narrow.print(formatting.terminal_table(headings, rows, 72, numbers=(1, 2)))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 72
    for whole in ("proj-20261129-112513", "0.0003711", "4.2691", "2026-11-29", "SIGKILL"):
        assert any(whole in line for line in lines), whole


def test_a_table_that_cannot_fit_is_still_printed_whole() -> None:
    narrow = Console(width=20)
    with narrow.capture() as captured:
        narrow.print(formatting.terminal_table(["name"], [["a" * 50]], 20))
    assert "".join(captured.get().split()) == "name" + "a" * 50
