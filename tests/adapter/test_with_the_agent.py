"""The agent, the adapter and a script that knows nothing of either."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from crucible.agent.attempt import run_attempt
from crucible.agent.plan import Scratch
from crucible.checkpoints.commits import Checkpoints
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, Outcome
from crucible.reports.report import job_report
from crucible.reports.summary import summarise
from crucible.script_config import ScriptConfig
from crucible.store import Store
from tests.adapter.harness import nano, nano_state
from tests.agent.harness import Bell, Recorder, plan, stop
from tests.faults.small_jobs import launched, new_job


@pytest.fixture
def job(store: Store) -> Job:
    return new_job(store, script=nano())


def attempt(job: Job, number: int, tmp_path: Path, *arguments: str, stop_at: int | None = None) -> Outcome:
    """Run an attempt of the nanoGPT-style script; ask it to stop once the commit of `stop_at` is in the store."""
    bell = Bell()
    observer = Recorder()
    work = tmp_path / f"work-{number}"
    work.mkdir()

    def committed(_message: str, details: dict[str, int]) -> None:
        if stop_at is not None and details["step"] >= stop_at:
            bell.ring(stop("the machine goes", 60))

    observer.reactions["commit"] = committed

    def prepare(scratch: Scratch) -> list[str]:
        config = scratch.root / "script.json"
        config.write_text(nano(*arguments).model_dump_json())
        return [sys.executable, "-P", "-m", "crucible.adapter", "--script", str(config)]

    return run_attempt(launched(job, number), plan(tmp_path, prepare, sources=[bell], cwd=work), observer)


def test_a_foreign_script_is_carried_resumed_and_reported(job: Job, tmp_path: Path) -> None:
    first = attempt(job, 1, tmp_path, "--max_iters=100000", stop_at=10)
    assert (first.end_reason, first.saved) == (EndReason.INTERRUPTED, True)
    assert first.saving["own_interval_seconds"] > 0
    newest = Checkpoints(job).list()[0]
    assert newest.step == first.committed_step >= 10
    assert newest.val_loss is not None
    (stored,) = [file.name for file in newest.files if file.name != "state.json"]
    job.store.download(f"checkpoints/{newest.name}/{stored}", tmp_path / "stored" / stored)
    assert nano_state(tmp_path / "stored")["iter_num"] == newest.step

    second = attempt(job, 2, tmp_path, f"--max_iters={newest.step + 2}", "--fail_at=" + str(newest.step + 1))
    assert (second.end_reason, second.saved) == (EndReason.FAILED, False)
    assert second.message.endswith(f"ValueError: loss is nan at {newest.step + 1}")
    assert second.committed_step == newest.step, "the step that it saved again after resuming is no progress"

    third = attempt(job, 3, tmp_path, f"--max_iters={newest.step + 6}")
    assert third.end_reason is EndReason.COMPLETED
    assert third.committed_step == newest.step + 5 - newest.step % 5
    output = job.attempt(3).output.read().decode()
    assert "Resuming training from out" in output
    losses = [json.loads(line) for line in job.attempt(3).metrics()]
    assert {line["step"] for line in losses if "train_loss" in line} == set(range(newest.step, newest.step + 7))
    page = job_report(job)
    assert "when the script saves" in page
    assert "**The resume was not exact**" in page


def test_a_script_that_reports_no_step_is_not_shown_at_the_number_of_its_outputs(store: Store, tmp_path: Path) -> None:
    script = ScriptConfig(
        command=[sys.executable, "-S", "-c", "open('model.txt', 'w').write('x')"], output=["model.txt"]
    )
    job = new_job(store, script=script)

    def prepare(scratch: Scratch) -> list[str]:
        (scratch.root / "script.json").write_text(script.model_dump_json())
        return [sys.executable, "-P", "-m", "crucible.adapter", "--script", str(scratch.root / "script.json")]

    outcome = run_attempt(launched(job, 1), plan(tmp_path, prepare), Recorder())
    assert (outcome.end_reason, outcome.committed_step) == (EndReason.COMPLETED, 0)
    assert Checkpoints(job).list()[0].step == 1
    assert summarise(job).step == 0
