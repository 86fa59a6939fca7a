"""Try again while the store is away: the one policy that agent, supervisor, checkpoints and flows share.

    persist(lambda: attempt.end(outcome), wait_at_most(60.0))
    persist(attempt.require_current, cancelled.wait)        # a `threading.Event`: gives up once it is set

`StoreUnavailable` is retried for as long as the caller's `Pause` allows, with growing, jittered delays. Credentials
that are refused are tried a few more times, since a new role or policy takes seconds to arrive everywhere. Everything
else (a damaged record, a missing object, this machine's disk) is raised at once: waiting does not help.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from crucible.errors import StoreAccessDenied, StoreError, StoreUnavailable

T = TypeVar("T")

FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 10.0
DENIED_TRIES = 4
"""Refused credentials are tried this often: about three seconds in all."""
LOOK_SECONDS = 0.2
"""How often a wait asks a `stop` that is a function."""

Pause = Callable[[float], bool]
"""Waits that many seconds. Returns True when the caller must give up: the time is over, or somebody cancelled."""

Stop = threading.Event | Callable[[], bool]
"""Ends a wait early: an event that is set, or a function that returns True."""


def persist(action: Callable[[], T], pause: Pause, on_failure: Callable[[StoreError], None] | None = None) -> T:
    """Call `action` until it succeeds or `pause` gives up; returns what it returns.

    `on_failure` receives each error that is going to be retried. Raises the last `StoreUnavailable` or
    `StoreAccessDenied` when it gives up, and any other error of `action` or `pause` at once.
    """
    denied = 0
    for delay in delays():
        try:
            return action()
        except (StoreUnavailable, StoreAccessDenied) as error:
            denied += isinstance(error, StoreAccessDenied)
            if denied >= DENIED_TRIES:
                raise
            if on_failure is not None:
                on_failure(error)
            if pause(delay):
                raise
    raise AssertionError("the delays have no end")


def delays() -> Iterator[float]:
    """Seconds between one try and the next, without end: 0.5, 1, 2 … 10, each shortened by up to half at random."""
    longest = FIRST_DELAY_SECONDS
    while True:
        yield longest * (0.5 + random.random() / 2)
        longest = min(longest * 2, LONGEST_DELAY_SECONDS)


def no_wait(_seconds: float) -> bool:
    """A `Pause` that gives up at once: one try only."""
    return True


def wait_at_most(seconds: float, stop: Stop | None = None) -> Pause:
    """A `Pause` that gives up once `seconds` have passed since now, or as soon as `stop` says so."""
    deadline = time.monotonic() + seconds

    def pause(delay: float) -> bool:
        if time.monotonic() + delay > deadline:
            return True
        return wait(delay, stop)

    return pause


def wait(seconds: float, stop: Stop | None = None) -> bool:
    """Wait that long, or until `stop`; returns whether it was stopped."""
    if stop is None:
        time.sleep(seconds)
        return False
    if isinstance(stop, threading.Event):
        return stop.wait(seconds)
    end = time.monotonic() + seconds
    while not stop():
        left = end - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(left, LOOK_SECONDS))
    return True
