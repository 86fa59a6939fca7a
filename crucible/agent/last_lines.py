"""The last lines that a workload printed: what of them says why it failed, and what a person has to see."""

from __future__ import annotations

import re
from collections import deque

from crucible.errors import ObjectMissing
from crucible.jobs.job import Attempt

TAIL_LINES = 20
KEPT_LINES = 200
LONGEST = 2000
"""Characters of a line that are kept."""
PARTS = 2
"""Objects of an attempt's output that are read for its last lines: the newest one may have begun just now."""
_PREFIX = r"(?:\[\w*rank\d+\]:\s?)?"
"""torchrun's, before each line of a rank."""
_TRACEBACK = re.compile(rf"^{_PREFIX}Traceback \(most recent call last\):")
_RAISED = re.compile(rf"^{_PREFIX}([A-Za-z_][\w.]*(?::.*)?)$")
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")


class LastLines:
    """Remembers them; one thread adds, another one asks once it is done."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)

    def add(self, line: str) -> None:
        self._lines.append(line[:LONGEST])

    def cause(self) -> str:
        """The exception of the traceback that ended it, else the last line that is not empty."""
        lines = list(self._lines)
        for start in reversed(self._tracebacks(lines)):
            for number in range(start + 1, len(lines)):
                if match := _RAISED.match(lines[number]):
                    if len(lines) - number <= TAIL_LINES:  # else it went on after that
                        return match[1]
                    break
            break
        return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")

    def tail(self) -> list[str]:
        """The last twenty, or more where a traceback began before them."""
        lines = list(self._lines)
        begin = max(0, len(lines) - TAIL_LINES)
        starts = self._tracebacks(lines)
        while starts and (start := starts.pop()):
            chained = any(line.startswith(_CHAINED) for line in lines[start:begin])
            if start < begin and (chained or not any(_RAISED.match(line) for line in lines[start + 1 : begin])):
                begin = start
            elif start < begin:
                break
        return lines[begin:]

    @staticmethod
    def _tracebacks(lines: list[str]) -> list[int]:
        return [number for number, line in enumerate(lines) if _TRACEBACK.match(line)]


def read_last_lines(attempt: Attempt) -> list[str]:
    """The last lines that an attempt printed, a traceback whole, from the store."""
    lines = LastLines()
    for part in attempt.output.list_parts()[-PARTS:]:
        try:
            text = attempt.output.read_part(part.number).decode(errors="replace")
        except ObjectMissing:  # cleaned up meanwhile
            continue
        for line in text.splitlines():
            lines.add(line)
    return lines.tail()
