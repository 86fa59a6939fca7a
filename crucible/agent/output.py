"""Everything the workload prints, kept in the attempt's records: `attempts/0001/output/000000.log`, `000001.log`, …

Whatever its rate: people see a readable share of the lines in the Prefect UI, and these objects have all of them. An
object cannot be appended to. So that a line can be read seconds after it was printed and a training of days does not
leave a hundred thousand objects, the newest object is written again, with more in it, until it is large or old enough.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from crucible.agent.observer import Trouble
from crucible.errors import StoreError
from crucible.jobs.job import Attempt

MOST_UNSENT = 16_000_000
"""Bytes that wait for the store at most; what is printed beyond is counted."""
MOST_KEPT = 1_000_000_000
"""Bytes of one attempt's output that are kept."""


@dataclass(frozen=True)
class Rhythm:
    """When output is sent. On S3, four days of it cost half a dollar of requests at these figures."""

    send_seconds: float = 3.0
    """From a line to the store."""
    part_seconds: float = 60.0
    part_bytes: int = 256_000
    """An object that is as old or as large as this is finished; the next line begins another one."""


class OutputLog:
    """Collects lines from the thread that reads them, and sends them in a thread of its own."""

    def __init__(self, attempt: Attempt, post: Callable[[Trouble], None], rhythm: Rhythm | None = None) -> None:
        self._attempt, self._post, self._rhythm = attempt, post, rhythm or Rhythm()
        self._lock = threading.Condition()
        self._unsent: list[bytes] = []
        self._size = self._kept = self._left_out = 0
        self._sequence, self._part, self._part_began = 0, b"", 0.0
        self._closing = self._full = False
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._thread.start()

    def add(self, line: str) -> None:
        """Keep a line; never waits for the store."""
        data = line.encode(errors="replace") + b"\n"
        with self._lock:
            if self._full:
                return
            if self._size + len(data) > MOST_UNSENT:
                self._left_out += 1
                return
            if self._left_out:
                data = f"[{self._left_out} lines left out: the store did not take them in time]\n".encode() + data
                self._left_out = 0
            if self._kept + self._size > MOST_KEPT:
                self._full = True
                data = f"[the rest is left out: {MOST_KEPT:,} bytes of one attempt are kept]\n".encode()
            self._unsent.append(data)
            self._size += len(data)
            if self._size >= self._rhythm.part_bytes:
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
                if not self._closing and self._size < self._rhythm.part_bytes:
                    self._lock.wait(self._rhythm.send_seconds)
                closing, new = self._closing, b"".join(self._unsent)
                count = len(self._unsent)
            if new and not self._send(new):
                if closing:
                    return
                threading.Event().wait(1.0)
                continue
            with self._lock:
                del self._unsent[:count]
                self._size -= len(new)
                self._kept += len(new)
                if closing and not self._unsent:
                    return

    def _send(self, new: bytes) -> bool:
        """Write the newest object again with `new` at its end, or begin the next one."""
        rhythm, now = self._rhythm, time.monotonic()
        full = len(self._part) >= rhythm.part_bytes or now - self._part_began >= rhythm.part_seconds
        begins = full or not self._part
        sequence = self._sequence + 1 if full and self._part else self._sequence
        part = new if begins else self._part + new
        try:
            self._attempt.output.write(sequence, part)
        except StoreError as error:
            self._post(Trouble("store", f"the workload's output could not be kept: {error}"))
            return False
        self._sequence, self._part = sequence, part
        self._part_began = now if begins else self._part_began
        return True
