"""Carrying checkpoints and choosing how often: one at a time, the newest first, the interval by what saving costs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crucible.agent.observer import Trouble
from crucible.agent.saving import SaveInterval, SavePolicy
from crucible.agent.states import Committed, Uploaded
from crucible.agent.uploads import Uploads
from crucible.checkpoints.commits import Checkpoints
from crucible.contract import Control
from crucible.jobs.job import Job
from crucible.store import Store
from crucible.workload.clock import CheckpointClock
from tests.faults.faulty_store import FaultyStore
from tests.faults.small_jobs import checkpoint_folder, new_job, running


class Carrier:
    """Uploads and the interval of one attempt, put together as the agent does it."""

    def __init__(self, job: Job, scratch: Path, policy: SavePolicy) -> None:
        self.commits: list[int] = []
        self.troubles: list[str] = []
        self.ended = threading.Event()
        self.failure: Exception | None = None
        self.folder = scratch / "checkpoints"
        self.control = scratch / "control.json"
        self.folder.mkdir(parents=True)
        self.saves = SaveInterval(policy, self.control, self.trouble)
        self._job, self._keep_last = job, policy.keep_last

    def start(self, committed_step: int) -> None:
        self.uploads = Uploads(self._job.attempt(1), self.folder, committed_step, self._keep_last, self.receive)
        self.uploads.start()

    def receive(self, event: Any) -> None:
        match event:
            case Committed(checkpoint, seconds):
                self.saves.committed(seconds, checkpoint.bytes)
                self.commits.append(checkpoint.step)
            case Trouble(source, message):
                self.trouble(source, message)
            case Uploaded(failure):
                self.failure = failure
                self.ended.set()

    def trouble(self, source: str, message: str) -> None:
        self.troubles.append(f"{source}: {message}")

    def finish(self, seconds: float = 120.0) -> None:
        self.uploads.finish(time.monotonic() + seconds)
        assert self.ended.wait(120)

    @property
    def interval(self) -> float:
        return Control.read(self.control).checkpoint_seconds

    def carried(self, step: int) -> None:
        end = time.monotonic() + 20
        while step not in self.commits:
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.005)


@pytest.fixture
def job(store: Store) -> Job:
    job = new_job(store)
    running(job, 1)
    return job


def test_while_one_is_on_its_way_only_the_newest_waits(job: Job, tmp_path: Path) -> None:
    opens, under_way = threading.Event(), threading.Event()

    def hold(operation: str, key: str) -> None:
        if operation == "upload":
            under_way.set()
            assert opens.wait(120)

    carrier = Carrier(Job(FaultyStore(job.root, hold), "job"), tmp_path, SavePolicy())
    carrier.start(0)
    checkpoint_folder(carrier.folder, 10)
    assert under_way.wait(120)
    for step in (20, 30, 40):
        checkpoint_folder(carrier.folder, step)
    (carrier.folder / "step-00000050.partial").mkdir()
    opens.set()
    carrier.carried(40)
    carrier.finish()
    assert carrier.commits == [10, 40]
    assert [path.name for path in carrier.folder.iterdir()] == ["step-00000050.partial"], "local copies go"


def test_the_last_folder_is_carried_before_it_finishes(job: Job, tmp_path: Path) -> None:
    carrier = Carrier(job, tmp_path, SavePolicy())
    carrier.start(0)
    checkpoint_folder(carrier.folder, 10)
    carrier.finish()
    assert carrier.commits == [10]
    assert carrier.failure is None


def test_what_was_resumed_from_is_not_carried_again(job: Job, tmp_path: Path) -> None:
    carrier = Carrier(job, tmp_path, SavePolicy())
    checkpoint_folder(carrier.folder, 10)
    carrier.start(10)
    carrier.finish()
    assert carrier.commits == []


def test_old_checkpoints_are_cleared_as_it_goes(job: Job, tmp_path: Path) -> None:
    carrier = Carrier(job, tmp_path, SavePolicy(keep_last=2))
    carrier.start(0)
    for step in range(1, 7):
        checkpoint_folder(carrier.folder, step)
        carrier.carried(step)
    carrier.finish()
    assert [c.step for c in Checkpoints(job).list()][:2] == [6, 5]
    assert len(Checkpoints(job).list()) <= 3


@pytest.mark.parametrize(
    ("policy", "stall", "write", "upload", "holds"),
    [
        (SavePolicy(fixed_seconds=42.0), 0.5, 0.1, 0.0, lambda interval: interval == 42.0),
        # sqrt(2 · 0.5 s · 4 h) = 120 s
        (SavePolicy(mtbf_seconds=4 * 3600, maximum_seconds=500), 0.5, 0.1, 0.0, lambda i: 115 < i < 125),
        (SavePolicy(mtbf_seconds=4 * 3600, maximum_seconds=60), 0.5, 0.1, 0.0, lambda i: i == 60),
        (SavePolicy(mtbf_seconds=60, minimum_seconds=20), 0.001, 0.1, 0.0, lambda i: i == 20),
        # a save that takes longer than the interval
        (SavePolicy(fixed_seconds=1.0), 0.1, 10.0, 0.0, lambda i: 15.0 <= i < 17.0),
    ],
)
def test_how_often(
    job: Job,
    tmp_path: Path,
    policy: SavePolicy,
    stall: float,
    write: float,
    upload: float,
    holds: Callable[[float], bool],
) -> None:
    carrier = Carrier(job, tmp_path, policy)
    assert carrier.interval == (policy.fixed_seconds or 15.0)
    carrier.saves.measured(stall, write)
    carrier.start(0)
    checkpoint_folder(carrier.folder, 1)
    carrier.finish()
    assert holds(carrier.interval), carrier.interval
    assert carrier.saves.figures.as_record()["interval_seconds"] == pytest.approx(carrier.interval, abs=1e-3)
    slow = [said for said in carrier.troubles if "longer than the interval" in said]
    assert bool(slow) == (write > (policy.fixed_seconds or 1e9))


def test_a_measurement_that_comes_after_its_commit_counts(job: Job, tmp_path: Path) -> None:
    carrier = Carrier(job, tmp_path, SavePolicy(mtbf_seconds=4 * 3600))
    carrier.start(0)
    checkpoint_folder(carrier.folder, 1)
    carrier.finish()
    carrier.saves.measured(0.5, 0.1)
    assert carrier.interval == pytest.approx(120, rel=0.05)


@pytest.mark.parametrize(("stall", "write"), [(0.5, 0.1), (0.001, 0.1), (0.02, 400.0)])
def test_a_trainer_without_an_agent_saves_as_often(job: Job, tmp_path: Path, stall: float, write: float) -> None:
    """One formula: the same figures give the same interval, whoever applies it."""
    carrier = Carrier(job, tmp_path, SavePolicy())
    clock = CheckpointClock(None, environment={})
    assert clock.seconds == carrier.interval
    carrier.saves.measured(stall, write)
    clock.measured(stall, write)
    assert clock.seconds == pytest.approx(carrier.interval, abs=1e-3)


def test_whatever_goes_wrong_the_next_one_is_carried(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carrier = Carrier(job, tmp_path, SavePolicy())
    commit = Checkpoints.commit

    def trip(self: Checkpoints, attempt: Any, folder: Path, **rest: Any) -> Any:
        if folder.name.endswith("1"):
            raise ZeroDivisionError("a fault of our own")
        return commit(self, attempt, folder, **rest)

    monkeypatch.setattr(Checkpoints, "commit", trip)
    carrier.start(0)
    checkpoint_folder(carrier.folder, 1)
    end = time.monotonic() + 20
    while not carrier.troubles:
        assert time.monotonic() < end
        time.sleep(0.005)
    checkpoint_folder(carrier.folder, 2)
    carrier.finish()
    assert carrier.commits == [2]
    assert carrier.failure is None
    assert "a fault of our own" in carrier.troubles[0]
