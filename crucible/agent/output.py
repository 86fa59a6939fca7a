"""Everything the workload prints, kept in the attempt's records: `attempts/0001/output/000000.log`, `000001.log`, …

Whatever its rate: people see a readable share of the lines while it runs, and these objects have all of them. An object
cannot be appended to, so there are several, as with metrics: a few requests a minute, and nothing is sent twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from crucible.agent.observer import Trouble
from crucible.errors import StoreError
from crucible.jobs.job import Attempt

PART_SECONDS = 10.0
PART_BYTES = 1_000_000
MOST_UNSENT = 16_000_000
"""Bytes that wait for the store at most; what is printed beyond is counted."""
MOST_KEPT = 1_000_000_000
"""Bytes of one attempt's output that are kept."""


class OutputLog:
    """Collects lines from the thread that reads them, and sends them in a thread of its own."""

    def __init__(self, attempt: Attempt, post: Callable[[Trouble], None], part_seconds: float = PART_SECONDS) -> None:
        self._attempt, self._post, self._part_seconds = attempt, post, part_seconds
        self._lock = threading.Condition()
        self._unsent: list[bytes] = []
        self._size = self._kept = self._left_out = self._sequence = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._thread.start()

    def add(self, line: str) -> None:
        """Keep a line; never waits for the store."""
        data = line.encode(errors="replace") + b"\n"
        with self._lock:
            if self._size + len(data) > MOST_UNSENT or self._kept + self._size > MOST_KEPT:
                self._left_out += 1
                return
            if self._left_out:
                data = f"[{self._left_out} lines left out: the store did not take them in time]\n".encode() + data
                self._left_out = 0
            self._unsent.append(data)
            self._size += len(data)
            if self._size >= PART_BYTES:
                self._lock.notify()

    def close(self, timeout_seconds: float) -> None:
        """Send what is left; gives up after so many seconds."""
        with self._lock:
            self._closing = True
            self._lock.notify()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._closing and self._size < PART_BYTES:
                    self._lock.wait(self._part_seconds)
                closing, part = self._closing, b"".join(self._unsent)
                count = len(self._unsent)
            if part and not self._send(part):
                if closing:
                    return
                threading.Event().wait(1.0)
                continue
            with self._lock:
                del self._unsent[:count]
                self._size -= len(part)
                self._kept += len(part)
                if closing and not self._unsent:
                    return

    def _send(self, part: bytes) -> bool:
        try:
            self._attempt.append_output(self._sequence, part)
        except StoreError as error:
            self._post(Trouble("store", f"the workload's output could not be kept: {error}"))
            return False
        self._sequence += 1
        return True
