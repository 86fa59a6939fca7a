"""Times, sizes, sums of money and tables, as people read them in the terminal, in logs and on pages."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

UNKNOWN = "–"
"""Stands in a table for what is not known (yet)."""
PIPE_WIDTH = 240
"""Columns of a table that goes to a file or another program, so that each row stays on one line."""
COLUMN_GAP = 2
"""Spaces between the columns of a table in the terminal."""


def without_credentials(text: str) -> str:
    """The text, its URLs without user and password.

    >>> without_credentials("no answer from http://ann:secret@tracker:5000/api, tell ann@example.org")
    'no answer from http://tracker:5000/api, tell ann@example.org'
    """
    return re.sub(r"(?<=://)[^/?#\s]*@", "", text)


def url_label(url: str) -> str:
    """The URL without user, password and query, any of which may be a secret.

    >>> url_label("postgresql://ann:se@cret@host/runs?password=secret")
    'postgresql://host/runs'
    """
    return without_credentials(re.split("[?#]", url)[0])


def duration(seconds: float) -> str:
    """A measured time: two units at most.

    >>> [duration(s) for s in (0.013, 3.21, 59.9, 75, 3600, 100_000)]
    ['13 ms', '3.2 s', '60 s', '1 min 15 s', '1 h', '1 d 4 h']
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if round(seconds) <= 60:
        return f"{seconds:.0f} s"
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        whole = round(seconds / smaller_size) * smaller_size
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{seconds:.0f} s"


def rough_duration(hours: float) -> str:
    """An estimated time, in hours: one unit, and no more digits than an estimate is good for.

    >>> [rough_duration(h) for h in (0.011, 0.2, 3.42, 220)]
    ['40 s', '12 min', '3.4 h', '9.2 days']
    """
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:,.1f} days"


def money(usd: float) -> str:
    """Dollars and cents, with more digits for small sums, which would otherwise all look free.

    >>> [money(a) for a in (0, 0.00000042, 0.00042, 0.123, 1012.5)]
    ['$0.00', '<$0.0001', '$0.0004', '$0.12', '$1,012.50']
    """
    if 0 < usd < 0.0001:
        return "<$0.0001"
    return f"${usd:.4f}" if 0 < usd < 0.1 else f"${usd:,.2f}"


def size(count: float) -> str:
    """Bytes in the unit that suits them.

    >>> [size(n) for n in (1_492_000_000, 81_234, 412)]
    ['1,492.0 MB', '81.2 kB', '412 B']
    """
    if count >= 1e6:
        return f"{count / 1e6:,.1f} MB"
    return f"{count / 1e3:.1f} kB" if count >= 1e3 else f"{count} B"


def counted(count: int, noun: str) -> str:
    """`1 attempt`, `2 attempts`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


_TERMINAL_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))")


def printable(text: str) -> str:
    """The text without what steers a terminal or turns the direction of writing; line breaks and tabs stay.

    >>> printable("\\x1b[31mCUDA out of memory\\x1b[0m")
    'CUDA out of memory'
    """
    plain = _TERMINAL_SEQUENCE.sub("", text)
    return "".join(c for c in plain if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A markdown table whose columns in `numbers` are right-aligned; no cell can break out of its column.

    >>> print(markdown_table(["file", "bytes"], [["a|b.txt", "12"]], numbers=[1]))
    | file | bytes |
    | --- | ---: |
    | a\\|b.txt | 12 |
    """
    rule = ["---:" if i in numbers else "---" for i in range(len(headings))]
    lines = [[_cell(text) for text in headings], rule, *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_prose(text: str) -> str:
    """A message as markdown that shows it as it is: `__init__` is no bold text, `<class 'int'>` no HTML.

    Commands between backticks stay as they are.

    >>> print(as_prose("TypeError: Net.__init__() got <class 'int'>"))
    TypeError: Net.\\_\\_init\\_\\_() got \\<class 'int'>
    """
    return re.sub(r"(`+)[^`]+\1(?!`)|__|<", lambda m: m[0] if m[1] else {"__": r"\_\_", "<": r"\<"}[m[0]], text)


def code_span(text: str) -> str:
    """Markdown for text in the type of code, even if it has backticks of its own.

    >>> code_span("echo `date`")
    '`` echo `date` ``'
    """
    fence = "`"
    while fence in text:
        fence += "`"
    return f"{fence} {text} {fence}" if "`" in text else f"`{text or ' '}`"


def settings_table(settings: Mapping[str, Any]) -> str:
    """Names and values as a markdown table."""
    rows = [[f"`{name}`", UNKNOWN if value is None else code_span(str(value))] for name, value in settings.items()]
    return markdown_table(["setting", "value"], rows)


def fenced(text: str) -> str:
    """A markdown block with the text as it is, even if it has backticks of its own."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = (), title: str | None = None
) -> None:
    """Print a table to the terminal, the columns in `numbers` right-aligned."""
    screen = console()
    screen.print(terminal_table(headings, rows, screen.width, numbers, title))


def terminal_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    numbers: Sequence[int] = (),
    title: str | None = None,
) -> Table:
    """The table for a terminal of that width; names and numbers are broken only where nothing else makes it fit."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False, title=title)
    widths = _column_widths(headings, rows, width)
    for index, heading in enumerate(headings):
        justify: Literal["left", "right"] = "right" if index in numbers else "left"
        table.add_column(heading, justify=justify, overflow="fold", width=widths[index] if widths else None)
    for row in rows:
        table.add_row(*row)
    return table


def fits(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> bool:
    """Whether a `terminal_table` has no broken line at that width."""
    columns = list(zip(headings, *rows, strict=True))
    return sum(max(map(len, column)) for column in columns) + COLUMN_GAP * (len(columns) - 1) <= width


def _column_widths(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """Widths at which the table fits: lines are broken between words, then headings in words; None if neither helps."""
    columns = list(zip(headings, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    words = [[len(word) for text in column[1:] for word in text.split()] for column in columns]
    least = [max(found, default=1) for found in words]
    with_heading = [max(least[i], *map(len, heading.split()), 1) for i, heading in enumerate(headings)]
    room = width - COLUMN_GAP * (len(columns) - 1)
    for floors in (with_heading, least):
        while sum(widths) > room:
            spare = [index for index, floor in enumerate(floors) if widths[index] > floor]
            if not spare:
                break
            widths[max(spare, key=lambda index: widths[index])] -= 1
    return widths if sum(widths) <= room else None


def console() -> Console:
    """A console that takes text literally; a pipe gets whole lines, whatever it thinks its width is."""
    from rich.console import Console

    plain = Console(markup=False, highlight=False, soft_wrap=False)
    if not plain.is_terminal:
        plain.width = PIPE_WIDTH
    return plain


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
