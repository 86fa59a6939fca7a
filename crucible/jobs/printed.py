"""What the workload of a job printed, while it runs and afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from crucible.jobs.job import Job

LOOK_SECONDS = 1.0


def printed_pieces(job: Job, ended: Callable[[], bool], attempt: int | None = None) -> Iterator[tuple[int, bytes]]:
    """The pieces that arrived in the store, each with its attempt's number: of one attempt, or of all in their order.

    Goes on with new pieces as they arrive until `ended` says so.
    """
    known: dict[int, int] = {}
    while True:
        over = ended()  # asked first: what comes after it is all there is
        for source in job.attempts() if attempt is None else [job.attempt(attempt)]:
            for number, piece in source.read_output(after=known.get(source.number, -1)):
                known[source.number] = number
                yield source.number, piece
        if over:
            return
        time.sleep(LOOK_SECONDS)


def printed_lines(job: Job, ended: Callable[[], bool]) -> Iterator[str]:
    """The same of all attempts, line by line."""
    rest: dict[int, bytes] = {}
    for attempt, piece in printed_pieces(job, ended):
        *lines, rest[attempt] = (rest.get(attempt, b"") + piece).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
    yield from (line.decode(errors="replace") for line in rest.values() if line)
