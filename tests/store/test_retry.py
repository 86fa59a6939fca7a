"""One policy for a store that is away: what is tried again, how often, and what ends it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import islice

import pytest

from crucible.errors import (
    LocalDiskError,
    ObjectExists,
    ObjectMissing,
    RecordDamaged,
    StoreAccessDenied,
    StoreError,
    StoreUnavailable,
)
from crucible.store.retry import DENIED_TRIES, delays, no_wait, persist, wait, wait_at_most


def failing(*errors: Exception) -> Callable[[], str]:
    """Raises one error after the other, then succeeds."""
    left: Iterator[Exception] = iter(errors)

    def act() -> str:
        for error in left:
            raise error
        return "done"

    return act


def test_an_outage_is_outlived_with_growing_delays() -> None:
    waited: list[float] = []
    seen: list[StoreError] = []
    outage = [StoreUnavailable(f"try {number}") for number in range(20)]
    assert persist(failing(*outage), lambda delay: bool(waited.append(delay)), seen.append) == "done"
    assert seen == outage
    assert 0.25 <= waited[0] <= 0.5
    assert all(5.0 <= delay <= 10.0 for delay in waited[6:])
    assert len(set(waited)) == 20  # no two processes come back at the same moment


@pytest.mark.parametrize("kind", [RecordDamaged, ObjectMissing, ObjectExists, LocalDiskError, ValueError])
def test_what_waiting_does_not_help_is_raised_at_once(kind: type[Exception]) -> None:
    with pytest.raises(kind, match="at once"):
        persist(failing(kind("at once")), lambda _: pytest.fail("waited"))


def test_refused_credentials_get_a_few_tries() -> None:
    waited: list[float] = []
    denied = [StoreAccessDenied(f"try {number}") for number in range(1, 10)]
    with pytest.raises(StoreAccessDenied, match=f"try {DENIED_TRIES}"):
        persist(failing(*denied), lambda delay: bool(waited.append(delay)))
    assert sum(waited) < 5.0
    assert persist(failing(*denied[:2]), lambda _: False) == "done"


def test_a_cancellation_ends_the_wait_at_once() -> None:
    cancelled = threading.Event()
    cancelled.set()
    for pause in (cancelled.wait, wait_at_most(3600.0, cancelled), wait_at_most(3600.0, cancelled.is_set), no_wait):
        with pytest.raises(StoreUnavailable, match="first"):
            persist(failing(StoreUnavailable("first"), StoreUnavailable("second")), pause)


def test_the_deadline_is_counted_from_the_start() -> None:
    pause = wait_at_most(0.0)
    with pytest.raises(StoreUnavailable, match="first"):
        persist(failing(StoreUnavailable("first")), pause)
    assert wait_at_most(60.0)(0.0) is False


def test_a_wait_says_whether_it_was_stopped() -> None:
    answers = iter([False, True])
    assert wait(60.0, lambda: next(answers))
    assert not wait(0.0, lambda: False)
    assert not wait(0.0)


def test_delays_have_no_end() -> None:
    assert len(list(islice(delays(), 1000))) == 1000
