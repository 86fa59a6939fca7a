"""What reaches a tracker over the life of a job."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from crucible.adapter.tensorboard import EventFiles
from crucible.cli.main import build_app
from crucible.jobs.metrics import Row
from crucible.jobs.records import EndReason
from crucible.jobs.status import JobState
from crucible.store import FileStore, Store
from crucible.trackers.backends.base import RunRequest
from crucible.trackers.backends.mlflow import where_shown
from crucible.trackers.config import TrackerConfig, TrackerKind, split_names
from crucible.trackers.follow import Follower, JobTracker
from crucible.trackers.points import HOLD_SECONDS, Progress, final_rows
from crucible.trackers.process import TrackerRequest, finish_trackers, start_trackers
from crucible.trackers.records import TrackerRecord, read_record, read_records, write_record
from crucible.trackers.view import EventFolder
from tests.faults.faulty_store import FaultyStore
from tests.reports.history import BEGAN, Past
from tests.trackers.five_attempts import STEPS, MemoryRun, five_attempts

MLFLOW = TrackerConfig(name="mlflow", kind=TrackerKind.MLFLOW)


@pytest.fixture
def file_store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


@pytest.fixture
def _at_that_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crucible.trackers.follow.time.time", BEGAN.timestamp)


@pytest.mark.usefixtures("_at_that_time")
def test_five_attempts_are_one_curve(file_store: FileStore, tmp_path: Path) -> None:
    run = MemoryRun()
    for past in five_attempts(file_store, tmp_path):
        # Anew each time: a supervisor that was restarted has another process.
        JobTracker(past.job, MLFLOW, print, lambda _: run).update(finish=True)

    assert [row["step"] for row in run.rows] == STEPS
    assert [end.state for end in run.ends] == [JobState.COMPLETED]
    attempts = {row["step"]: row["attempt"] for row in run.rows}
    # Step 710 was trained by the fourth attempt, lost, and trained again; 400 was final before it proved damaged.
    assert (attempts[710], attempts[400], attempts[410]) == (5, 2, 3)


def test_what_is_not_committed_waits() -> None:
    history = [{"step": 100 + i, "attempt": 1, "time": 1e9 + i} for i in range(9)]
    progress = Progress(JobState.RUNNING, committed_step=103, live_attempt=1)

    early = final_rows(history, 100, progress, now=1e9 + 9)
    later = final_rows(history, 100, progress, now=1e9 + HOLD_SECONDS + 6)
    lost = final_rows(history, 100, Progress(JobState.RUNNING, 103, live_attempt=2), now=2e9)

    assert [row["step"] for row in early] == [101, 102, 103]
    assert [row["step"] for row in later] == [101, 102, 103, 104, 105], "a script that never saves is seen all the same"
    assert [row["step"] for row in lost] == [101, 102, 103], "what a dead attempt had not saved is trained again"


def test_a_tracker_that_fails_is_reported_once_and_catches_up(file_store: FileStore, tmp_path: Path) -> None:
    past = Past(file_store, tmp_path)
    past.attempt(0, 300, [300])
    run, lines = MemoryRun(), list[str]()
    run.failing = [OSError("refused"), OSError("refused")]
    follower = Follower(MLFLOW, lambda: [past.job], lines.append, make_run=lambda _: run)

    outcomes = [follower.look(), follower.look(), follower.look()]

    assert outcomes == [False, False, True]
    assert [row["step"] for row in run.rows] == STEPS[:29]
    assert [line.split(": ")[0] for line in lines] == [
        "mlflow shows shakespeare",
        "mlflow does not take the metrics of shakespeare",
        "mlflow answers again and has everything up to now",
    ]
    record = read_record(past.job, "mlflow")
    assert record is not None
    assert (record.step, record.url, record.finished) == (290, "http://tracker/run-1", False)


@pytest.mark.parametrize(("newest", "sent"), [(120, STEPS[12:29]), (-1, STEPS[:29]), (None, STEPS[20:29])])
def test_the_tracker_itself_says_what_it_has(
    file_store: FileStore, tmp_path: Path, newest: int | None, sent: list[int]
) -> None:
    past = Past(file_store, tmp_path)
    past.attempt(0, 300, [300])
    write_record(past.job, TrackerRecord(name="mlflow", kind=TrackerKind.MLFLOW, step=200))
    run = MemoryRun()
    run.newest_step = newest

    JobTracker(past.job, MLFLOW, print, lambda _: run).update(finish=False)

    assert [row["step"] for row in run.rows] == sent


def test_no_password_of_a_url_is_shown_or_kept(file_store: FileStore, tmp_path: Path) -> None:
    past = Past(file_store, tmp_path)
    past.attempt(0, 300, [300])
    run, lines = MemoryRun(), list[str]()
    run.failing = [OSError("no answer from http://ann:canary-7@tracker:5000/api")]
    Follower(MLFLOW, lambda: [past.job], lines.append, make_run=lambda _: run).look()

    shown = [
        where_shown("http://ann:canary-7@tracker:5000", "3", "ab"),
        where_shown("postgresql://ann:canary-7@host/runs", "3", "ab"),
    ]
    assert shown == [
        "http://tracker:5000/#/experiments/3/runs/ab",
        "mlflow ui --backend-store-uri postgresql://host/runs",
    ]
    assert "no answer from http://tracker:5000/api" in lines[-1]
    assert "canary" not in "".join(lines)


def test_a_trial_that_has_ended_is_left_alone(file_store: FileStore, tmp_path: Path) -> None:
    asked = list[str]()
    store = FaultyStore(file_store, lambda operation, key: asked.append(f"{operation} {key}"))
    past = [*five_attempts(store, tmp_path)][-1]
    run = MemoryRun()
    follower = Follower(MLFLOW, lambda: [past.job], print, finish_at_once=True, make_run=lambda _: run)
    assert follower.look()
    asked.clear()
    assert follower.look()
    assert asked == ["read status.json"]
    past.job.store.write_json("evaluation.json", {"step": 1000})
    assert follower.look(ending=True)
    assert [end.model for end in run.ends] == ["", "models/step-00001000"]


def test_a_tracker_that_hangs_is_reported_while_it_does(file_store: FileStore, tmp_path: Path) -> None:
    past = Past(file_store, tmp_path)
    past.attempt(0, 300, [300])
    reported, lines = threading.Event(), list[str]()

    class HangingRun(MemoryRun):
        def send(self, rows: Sequence[Row]) -> None:
            assert reported.wait(30)

    def report(line: str) -> None:
        lines.append(line)
        if "has not answered" in line:
            reported.set()

    assert Follower(MLFLOW, lambda: [past.job], report, make_run=HangingRun, slow_seconds=0.05).look()
    assert len([line for line in lines if "goes on" in line]) == 1


def test_a_continued_job_is_the_same_run(file_store: FileStore, tmp_path: Path) -> None:
    past = Past(file_store, tmp_path)
    past.end(past.attempt(0, 300, [300]), EndReason.BUDGET, "budget")
    past.status(JobState.BUDGET_STOP, "budget")
    run = MemoryRun()
    JobTracker(past.job, MLFLOW, print, lambda _: run).update(finish=True)
    past.end(past.attempt(300, 500, [500]), EndReason.COMPLETED, "done")
    past.status(JobState.COMPLETED, "done")

    ids: list[str] = []

    def reopen(request: RunRequest) -> MemoryRun:
        ids.append(request.run_id)
        return run

    JobTracker(past.job, MLFLOW, print, reopen).update(finish=True)

    assert [row["step"] for row in run.rows] == STEPS[:50]
    assert [end.state for end in run.ends] == [JobState.BUDGET_STOP, JobState.COMPLETED]
    assert ids == ["run-1"]


def test_event_files_in_the_store_are_one_curve(store: Store, tmp_path: Path) -> None:
    config = TrackerConfig(name="tensorboard", kind=TrackerKind.TENSORBOARD)
    for past in five_attempts(store, tmp_path):
        JobTracker(past.job, config, print).update(finish=True)

    for info in past.job.store.list("tensorboard"):
        past.job.store.download(info.key, tmp_path / "events" / Path(info.key).name)
    scalars = list(EventFiles(tmp_path, "events").read_new())
    losses = [step for step, tag, _ in scalars if tag == "train_loss"]
    assert losses == STEPS
    assert {tag for _, tag, _ in scalars} == {"attempt", "train_loss", "val_loss", "tokens_per_second"}
    assert [record.step for record in read_records(past.job)] == [1000]


def test_event_files_of_several_jobs_are_made_from_their_records(file_store: FileStore, tmp_path: Path) -> None:
    jobs = [[*five_attempts(file_store, tmp_path / name, name)][-1].job for name in ("a", "b")]
    folder = EventFolder(tmp_path / "events", jobs)

    assert (folder.refresh(), folder.refresh()) == (2 * len(STEPS), 0)
    for name in ("a", "b"):
        found = EventFiles(tmp_path / "events", name).read_new()
        assert [step for step, tag, _ in found if tag == "train_loss"] == STEPS


def test_a_job_without_a_tracker_is_sent_later(file_store: FileStore, tmp_path: Path) -> None:
    job = list(five_attempts(file_store, tmp_path))[-1].job
    arguments = ["track", job.job_id, "--tracker", "tensorboard", "--store", file_store.uri]

    for _ in range(2):
        result = CliRunner().invoke(build_app(), arguments, catch_exceptions=False)
        assert result.stdout == f"{job.job_id}: every step that was reported is in tensorboard\n"

    found = EventFiles(file_store.root / "jobs" / job.job_id / "tensorboard", "*tfevents*").read_new()
    assert [step for step, tag, _ in found if tag == "train_loss"] == STEPS


def test_a_process_of_its_own_sends_what_is_left_and_leaves(file_store: FileStore, tmp_path: Path) -> None:
    past = [*five_attempts(file_store, tmp_path)][-1]
    lines: list[str] = []
    config = TrackerConfig(name="tensorboard", kind=TrackerKind.TENSORBOARD)

    processes = start_trackers({"root": file_store.uri}, [config], {"job": past.job_id}, lines.append)
    behind = finish_trackers(processes, 60)

    record = read_record(past.job, "tensorboard")
    assert behind == [], lines
    assert record is not None
    assert (record.step, record.finished) == (1000, True)
    assert lines == [f"tensorboard shows {past.job_id}: {past.job.store.uri}/tensorboard"]


def test_a_process_that_hangs_is_left_behind(file_store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/sh")  # the guard becomes a shell that knows no such options
    processes = start_trackers({"root": file_store.uri}, [MLFLOW], {"job": "any"}, print)

    assert finish_trackers(processes, 10) == ["mlflow"]


def test_one_name_or_several() -> None:
    assert split_names("wandb, tensorboard,,wandb") == split_names(["wandb,tensorboard"]) == ["wandb", "tensorboard"]
    with pytest.raises(ValueError, match="name a job or a sweep"):
        TrackerRequest(store={}, tracker=MLFLOW)
