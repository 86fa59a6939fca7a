"""A sweep whose store does not answer for a moment."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from crucible.errors import StoreUnavailable
from crucible.jobs.records import now
from crucible.jobs.status import JobState, JobStatus
from crucible.sweeps.records import SweepLimits
from crucible.sweeps.schedules import TrialRung
from tasks import sweeping
from tasks.sweeping import SweepRun


class Blips:
    """A store that answers every call but the first one of each."""

    def __init__(self) -> None:
        self.seen = set[str]()

    def __call__(self, call: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        def calling(*given: Any) -> Any:
            if call not in self.seen:
                self.seen.add(call)
                raise StoreUnavailable(f"{call}: s3 asks to slow down")
            return answer(*given)

        return calling


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "wait", lambda seconds, stop: stop())
    monkeypatch.setattr(sweeping, "get_run_logger", lambda: SimpleNamespace(warning=print, error=print))


def run_of(**sweep: Any) -> SweepRun:
    board = SimpleNamespace(publish=lambda trials: None, due=False)
    return SweepRun(SimpleNamespace(**sweep), lambda _: None, lambda _: [], here=False, board=board)  # type: ignore[arg-type]


def test_a_sweep_begins_and_ends_although_its_store_is_away_for_a_moment() -> None:
    blips, statuses = Blips(), []
    calls = iter(range(10))

    def set_status(status: Any) -> None:
        if next(calls) in (0, 2):  # the first of its start, and of its end
            raise StoreUnavailable("s3 asks to slow down")
        statuses.append(status.state)

    run = run_of(
        set_status=set_status,
        read_limits=blips("limits", lambda: SweepLimits(max_trials=1)),
        read_trials=blips("trials", lambda *_: []),
        planner=blips("planner", lambda: SimpleNamespace(work=lambda results: [])),
    )
    assert run.run().state is statuses[-1]
    assert statuses[0] is JobState.RUNNING


def test_a_trial_that_a_person_stopped_stops_the_sweep_although_the_store_is_away_for_a_moment() -> None:
    trial = SimpleNamespace(number=3, record="record", results=lambda ladder: {})
    attempt = SimpleNamespace(read_stop_request=lambda: None)
    run = run_of(
        read_trials=lambda *_: [trial],
        read_spec=lambda: SimpleNamespace(ladder=[1]),
        job=lambda number: SimpleNamespace(attempts=Blips()("attempts", lambda: [attempt])),
    )
    job = run.sweep.job(3)
    run.sweep.job = lambda number: job  # type: ignore[method-assign]
    run._begun, run._trials, target = now(), {3: trial}, TrialRung(3, 0)  # type: ignore[dict-item]
    run._running[3] = target
    run._ended.put((target, JobStatus(state=JobState.CANCELLED, reason="stopped by a person", supervisor=1)))
    with pytest.raises(StoreUnavailable):
        run._collect()
    run._collect()  # as the next turn does
    assert run._stop is not None
    assert run._stop.reason == "trial 3 was stopped: stopped by a person"
    assert not run._running
