"""What the workload of a job printed, while it runs and afterwards: one stream over all attempts, from the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from itertools import repeat

from crucible.errors import ObjectMissing
from crucible.jobs.job import Attempt, Job
from crucible.jobs.output import OutputPart
from crucible.jobs.records import now

LOOK_SECONDS = 1.0
PARALLEL_READS = 8


@dataclass(frozen=True)
class PrintedLine:
    """One line."""

    attempt: int
    at: datetime
    """When the object that has it was written: up to a minute after the line."""
    text: str


@dataclass
class _Place:
    """How far an attempt's output has been read."""

    part: int = 0
    offset: int = 0
    """Bytes of that part: the newest one is written again with more in it."""
    rest: bytes = b""
    """A line whose end has not arrived."""
    at: datetime | None = None


@dataclass
class PrintedLines:
    """Reads what has arrived since the last call, attempt by attempt.

    `attempt`: only this one; `since`: nothing that was written before.
    """

    job: Job
    attempt: int | None = None
    since: datetime | None = None
    _places: dict[int, _Place] = field(default_factory=dict, init=False)
    _over: set[int] = field(default_factory=set, init=False)
    """Attempts that have ended and were read after that: nothing more comes."""

    def read_new(self) -> Iterator[PrintedLine]:
        """Whole lines, oldest first."""
        sources = self.job.attempts() if self.attempt is None else [self.job.attempt(self.attempt)]
        for source in sources:
            if source.number not in self._over:
                over = source.read_outcome() is not None  # asked first: what comes after it is all there is
                yield from self._read(source)
                if over:
                    self._over.add(source.number)
                    yield from self._read_rest(source.number)

    def read_rest(self) -> Iterator[PrintedLine]:
        """Lines without an end, of those who may never write it."""
        for number in list(self._places):
            yield from self._read_rest(number)

    def _read(self, source: Attempt) -> Iterator[PrintedLine]:
        place = self._places.get(source.number)
        if place is None:
            place = self._places[source.number] = _Place(part=-1)
            yield from self._read_all(source, place)
        while True:
            newest = source.output.read_size(place.part + 1) is None  # asked first: any other part grows no more
            size = source.output.read_size(place.part)
            if size is not None and size > place.offset:
                new = source.output.read_part(place.part)[place.offset :]
                place.offset += len(new)
                yield from _lines(source.number, place, new, now())
            if newest:
                return
            place.part, place.offset = place.part + 1, 0

    def _read_all(self, source: Attempt, place: _Place) -> Iterator[PrintedLine]:
        """What is there at the first look, several objects at a time: a training of days has thousands."""
        parts = source.output.list_parts()
        wanted = [part for part in parts if self.since is None or part.at >= self.since]
        with ThreadPoolExecutor(PARALLEL_READS, thread_name_prefix="output") as pool:
            for first in range(0, len(wanted), PARALLEL_READS):
                some = wanted[first : first + PARALLEL_READS]
                for part, text in zip(some, pool.map(_read_part, repeat(source), some), strict=True):
                    place.part, place.offset = part.number, len(text)
                    yield from _lines(source.number, place, text, part.at)
        if parts and not wanted:
            place.part, place.offset = parts[-1].number, parts[-1].size
        place.part = max(0, place.part)

    def _read_rest(self, number: int) -> Iterator[PrintedLine]:
        place = self._places[number]
        if place.rest and place.at is not None:
            yield PrintedLine(number, place.at, place.rest.decode(errors="replace"))
            place.rest = b""


def _read_part(source: Attempt, part: OutputPart) -> bytes:
    try:
        return source.output.read_part(part.number)
    except ObjectMissing:  # cleaned up meanwhile
        return b""


def _lines(attempt: int, place: _Place, new: bytes, at: datetime) -> Iterator[PrintedLine]:
    """The whole lines; the rest waits for its end."""
    place.at = at
    *lines, place.rest = (place.rest + new).split(b"\n")
    for line in lines:
        yield PrintedLine(attempt, at, line.decode(errors="replace"))


def follow_lines(
    job: Job, ended: Callable[[], bool], attempt: int | None = None, since: datetime | None = None
) -> Iterator[PrintedLine]:
    """The lines that are there, then new ones as they arrive until `ended` says so."""
    lines = PrintedLines(job, attempt, since)
    while True:
        over = ended()  # asked first: what comes after it is all there is
        yield from lines.read_new()
        if over:
            yield from lines.read_rest()
            return
        time.sleep(LOOK_SECONDS)


def printed_lines(job: Job, ended: Callable[[], bool]) -> Iterator[str]:
    """The same, only the text."""
    return (line.text for line in follow_lines(job, ended))
