"""Printed bytes to lines, in bounded memory whatever a script prints."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

LONGEST_LINE = 64 * 1024
"""Bytes of a line that are kept; the rest of it is counted."""
PROGRESS_SECONDS = 2.0
"""Between two states of a progress bar that are passed on."""
_UP = b"\x1b[A"
"""A bar below another one begins with a line end, and ends with the cursor moved up again."""
_TRACEBACK = "Traceback (most recent call last):"
"""A bar that an exception has stopped has no line end: the traceback begins right behind it."""
_BAR = re.compile(r"\d+%\|.*\| *\d+/\d+ \[")


@dataclass(frozen=True)
class Line:
    """One line, or one state of a progress bar."""

    text: str
    passed_on: bool = True
    """False for a state of a progress bar that comes too soon after the one before."""


class Lines:
    """Splits what arrives into lines. A `\\r` overwrites the line so far, as a terminal would show it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held = b""
        """The line so far."""
        self._state = b""
        """What the last `\\r` of this line left on show, for a line end that comes right after it."""
        self._dropped = 0
        self._shown_at = -PROGRESS_SECONDS

    def feed(self, data: bytes) -> Iterator[Line]:
        """The lines and states that `data` completes."""
        *whole, rest = data.split(b"\n")
        for piece in whole:
            yield from self._states(piece.rstrip(b"\r"))  # "text\r\n" is one line, not a state and a line
            yield from self._line()
        yield from self._states(rest)

    def end(self) -> Iterator[Line]:
        """What was printed last, without a line end."""
        if self._held:
            yield from self._line()

    def _states(self, piece: bytes) -> Iterator[Line]:
        *states, rest = piece.split(b"\r")
        for state in states:
            self._add(state)
            if self._held.strip():  # otherwise it only clears the line
                self._state = self._held
                yield Line(self._text(), self._due())
            self._held, self._dropped = b"", 0
        self._add(rest)

    def _line(self) -> Iterator[Line]:
        self._held = self._held if self._held.strip() else self._state  # "text\r\n"
        nested, text = _UP in self._held, self._text()
        before = text.removesuffix(_TRACEBACK).rstrip()
        if before != text and before and (self._state or _BAR.search(before)):
            yield Line(before)
            text = _TRACEBACK
        if text or not nested:
            yield Line(text, not (nested and _BAR.search(text)) or self._due())
        self._held, self._state, self._dropped = b"", b"", 0

    def _add(self, more: bytes) -> None:
        room = LONGEST_LINE - len(self._held)
        self._dropped += max(0, len(more) - room)
        self._held += more[:room]

    def _text(self) -> str:
        text = self._held.replace(_UP, b"").decode(errors="replace").rstrip()
        return f"{text} … [{self._dropped:,} more bytes in this line]" if self._dropped else text

    def _due(self) -> bool:
        if self._clock() < self._shown_at + PROGRESS_SECONDS:
            return False
        self._shown_at = self._clock()
        return True
