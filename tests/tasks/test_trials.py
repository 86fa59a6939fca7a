"""Attempts in the supervisor's own process: how they are stopped, and which of this machine are over."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect.exceptions import TerminationSignal

import tasks.nodes
import tasks.observing
import tasks.trials
from crucible.jobs.job import Job
from crucible.jobs.records import Claim, EndReason, JobSpec, StopRequest, now
from crucible.jobs.status import JobState
from crucible.local.processes import process_start
from crucible.resources import Resources
from crucible.script_config import ScriptConfig
from crucible.store import Store
from crucible.supervision.launcher import PoolSays
from crucible.supervision.retry_policy import Placement
from crucible.supervision.supervisor import Supervision
from tasks.nodes import first_node, usable_gpus
from tasks.trials import HereLauncher, Machine, TrialListener
from tests.faults.small_jobs import launched, new_job
from tests.waiting import until


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["0", "1", "2", "3"]),
        ("2,3", ["2", "3"]),
        ("GPU-8f, 1", ["GPU-8f", "1"]),
        ("1,-1,2", ["1"]),
        ("", []),
        ("NoDevFiles", []),
        ("0,7", ["0"]),
    ],
)
def test_only_gpus_that_cuda_lets_this_process_use_count(
    visible: str | None, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """nvidia-smi lists the others as well: on a Slurm node that it shares, or where a user has hidden some."""
    monkeypatch.setattr(tasks.nodes, "nvidia_gpus", lambda: [("A100", 40.0)] * 4)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    spec = JobSpec(job_id="x", resources=Resources(gpus=3))
    assert usable_gpus(spec) == min(3, len(names))
    machine = Machine(2, None)
    assert machine.gpus_per_trial == min(1, len(names))
    with machine.share(), machine.share() as second:
        assert second.get("CUDA_VISIBLE_DEVICES") == (names[1] if len(names) > 1 else None)
    warned: list[tuple[object, ...]] = []
    monkeypatch.setattr(tasks.nodes, "run_logger", lambda: SimpleNamespace(warning=lambda *said: warned.append(said)))
    first_node(spec, "local")
    assert [said[1:] for said in warned] == ([(3, len(names))] if len(names) < 3 else [])


@pytest.fixture
def another() -> Iterator[int]:
    """The pid of another process."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


def says(job: Job, **claim: object) -> PoolSays:
    attempt = launched(job, 1)
    attempt.take(Claim(number=1, **claim))  # type: ignore[arg-type]
    launch = attempt.read_launch()
    assert launch is not None
    return HereLauncher(Machine(1, None)).hint(job, launch).says


def test_a_claim_is_alive_while_its_process_is_whatever_the_clock_was_set_to(store: Store, another: int) -> None:
    start = process_start(another)
    assert start is not None
    earlier = now() - timedelta(hours=1)  # than the process, by a clock that has been set since
    assert says(new_job(store), pid=another, process_start=start, claimed_at=earlier) is PoolSays.ALIVE


def test_a_process_that_got_the_pid_of_a_claim_is_not_it(store: Store, another: int) -> None:
    own = process_start(os.getpid())
    assert says(new_job(store), pid=another, process_start=own) is PoolSays.ENDED


@pytest.fixture
def began(home: Path) -> Path:
    """Where the workload says that it runs."""
    return home / "began"


@pytest.fixture
def supervision(store: Store, began: Path, monkeypatch: pytest.MonkeyPatch) -> Supervision:
    """Of a script that runs until it is stopped; a person pauses it as soon as it runs, unless `began` is changed."""
    # Without a server Prefect starts one for the events, and its threads draw from `random` during other tests.
    monkeypatch.setattr(tasks.trials, "emit", lambda *_, **__: None)
    monkeypatch.setattr(tasks.observing, "emit", lambda *_, **__: None)
    job = new_job(store, script=ScriptConfig(command=["sh", "-c", f"touch {began}; exec sleep 600"]))
    pause = StopRequest(end_reason=EndReason.INTERRUPTED, reason="paused in Prefect")

    def requested() -> StopRequest | None:
        return pause if began.exists() else None

    launcher = HereLauncher(Machine(1, None), requested)
    return Supervision(job, launcher, [Placement("local")], TrialListener(), stop_requested=requested)


def test_a_person_stops_what_runs_in_the_supervisors_own_thread(supervision: Supervision) -> None:
    """A stage of a sweep: nobody else looks whether it is to stop until it has ended by itself."""
    status = supervision.run()

    assert (status.state, status.reason) == (JobState.PAUSED, "paused in Prefect")
    [outcome] = [attempt.read_outcome() for attempt in supervision.job.attempts()]
    assert outcome is not None
    assert outcome.label == "interrupted, nothing new saved"


def test_a_signal_lets_it_save_and_reaches_the_flow(supervision: Supervision, began: Path) -> None:
    def terminate(number: int, frame: object) -> None:
        raise TerminationSignal(signal.SIGTERM)

    def strike() -> None:
        until(began.exists)
        os.kill(os.getpid(), signal.SIGTERM)

    supervision.launcher = HereLauncher(Machine(1, None))
    before = signal.signal(signal.SIGTERM, terminate)
    striking = threading.Thread(target=strike)
    striking.start()
    try:
        with pytest.raises(TerminationSignal):
            supervision.run()
    finally:
        signal.signal(signal.SIGTERM, before)
        striking.join()

    [outcome] = [attempt.read_outcome() for attempt in supervision.job.attempts()]
    assert outcome is not None
    assert (outcome.end_reason, outcome.decided_by) == (EndReason.INTERRUPTED, "agent")
