"""What people read: the docstrings' examples, and cells that try to break out of a table."""

from __future__ import annotations

import doctest

import pytest

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
