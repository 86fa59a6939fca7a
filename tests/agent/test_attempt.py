"""One attempt, with a real workload process: how it ends, what it saved, and what is on record."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from crucible.agent.attempt import run_attempt
from crucible.agent.notices import Notice
from crucible.agent.plan import Scratch
from crucible.agent.saving import SavePolicy
from crucible.errors import CheckpointError
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, Launch
from crucible.store import Store
from tests.agent.harness import LONG_ENOUGH, Bell, Recorder, committed, in_background, newest, plan, run, scripted, stop
from tests.agent.scripted import weights_after
from tests.faults.small_jobs import launched, new_job


def test_a_workload_that_is_done(job: Job, tmp_path: Path) -> None:
    observer = Recorder()
    outcome = run(job, 1, tmp_path, observer, steps=20, every=5, total_steps=20)
    assert outcome.end_reason is EndReason.COMPLETED
    assert (outcome.step, outcome.committed_step, outcome.exit_code) == (20, 20, 0)
    assert job.attempt(1).read_outcome() == outcome
    assert newest(job, tmp_path)[1] == weights_after(20)  # type: ignore[index]
    assert [json.loads(line)["step"] for line in job.attempt(1).metrics()] == list(range(1, 21))
    assert observer.steps == list(range(1, 21))
    assert observer.lines == ["from step 0"]
    assert observer.heartbeats[-1].total_steps == 20
    assert outcome.first_step_after_seconds is not None
    assert observer.messages("ended")
    assert not any((tmp_path / "scratch").rglob("attempt-*")), "the scratch folder outlived the attempt"


def test_attempts_in_a_row_end_with_the_weights_of_an_undisturbed_run(job: Job, tmp_path: Path) -> None:
    assert run(job, 1, tmp_path, steps=30, every=4, at={"10": "kill"}).end_reason is EndReason.KILLED
    assert run(job, 2, tmp_path, steps=30, every=4, at={"18": "exit 1"}).end_reason is EndReason.FAILED
    assert run(job, 3, tmp_path, steps=30, every=4).end_reason is EndReason.COMPLETED
    starts = [attempt.read_start() for attempt in job.attempts()]
    assert [(start.step, start.from_attempt) for start in starts if start] == [(0, None), (8, 1), (16, 2)]
    assert newest(job, tmp_path)[1] == weights_after(30)  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "reason", "code", "words"),
    [
        ({"at": {"7": "exit 3"}}, EndReason.FAILED, 3, "exit code 3: from step 0"),
        ({"at": {"6": "say out of luck", "7": "exit 1"}}, EndReason.FAILED, 1, "exit code 1: out of luck"),
        ({"at": {"7": "kill"}}, EndReason.KILLED, -9, "killed by SIGKILL; perhaps the machine ran out of memory"),
        ({"at": {"7": "exit 137"}}, EndReason.KILLED, -9, "killed by SIGKILL"),
        ({"at": {"7": f"stop {signal.SIGSEGV.value}"}}, EndReason.FAILED, -11, "signal SIGSEGV"),
        ({"at": {"7": "exit 75"}}, EndReason.INTERRUPTED, 75, "stopped and saved"),
    ],
)
def test_other_ends_are_told_in_words(
    job: Job, tmp_path: Path, options: dict[str, Any], reason: EndReason, code: int, words: str
) -> None:
    outcome = run(job, 1, tmp_path, steps=20, **options)
    assert (outcome.end_reason, outcome.exit_code, outcome.step) == (reason, code, 7)
    assert words in outcome.message
    assert outcome.committed_step == committed(job, tmp_path) == 5
    assert job.attempt(1).read_outcome() == outcome


@pytest.mark.parametrize("line", ['{"step": 1, "combinations": 1' + 400 * "0" + "}", 200_000 * "["])
def test_a_metric_that_cannot_be_read_ends_no_training(job: Job, tmp_path: Path, line: str) -> None:
    report = "import os, sys; open(os.environ['CRUCIBLE_METRICS_FILE'], 'w').write(sys.stdin.read())"
    (tmp_path / "line").write_text(line + '\n{"step": 2, "train_loss": 1.5}\n')
    command = ["sh", "-c", f'"{sys.executable}" -c "{report}" < "{tmp_path}/line"']
    outcome = run_attempt(launched(job, 1), plan(tmp_path, command), Recorder())
    assert (outcome.end_reason, outcome.step) == (EndReason.COMPLETED, 2)


def test_a_command_that_does_not_exist(job: Job, tmp_path: Path) -> None:
    outcome = run_attempt(launched(job, 1), plan(tmp_path, ["no-such-program", "--x"]), Recorder())
    assert outcome.end_reason is EndReason.FAILED
    assert "cannot start 'no-such-program': No such file or directory" in outcome.message


def test_trained_to_the_step_asked_for(job: Job, tmp_path: Path) -> None:
    launch = Launch(number=1, pool="local", reason="test", stop_at_step=12)
    outcome = run(job, 1, tmp_path, steps=20, launch=launch)
    assert (outcome.end_reason, outcome.committed_step) == (EndReason.PAUSED, 12)


@pytest.mark.parametrize("error", [CheckpointError("no such dataset"), OSError(28, "No space left on device")])
def test_what_prepare_raises_is_on_record(job: Job, tmp_path: Path, error: Exception) -> None:
    def prepare(_scratch: Scratch) -> list[str]:
        raise error

    with pytest.raises(type(error)):
        run_attempt(launched(job, 1), plan(tmp_path, prepare), Recorder())
    outcome = job.attempt(1).read_outcome()
    assert outcome is not None
    assert outcome.end_reason is EndReason.FAILED
    assert str(error) in outcome.message


def test_a_working_folder_that_is_not_there_is_on_record(job: Job, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run(job, 1, tmp_path, steps=2, cwd=tmp_path / "nowhere")
    assert job.attempt(1).read_outcome() is not None


# Trouble around the workload


@pytest.mark.parametrize("error", [RuntimeError("no artifact"), SystemExit(1)], ids=repr)
def test_observers_that_raise_disturb_nothing(job: Job, tmp_path: Path, error: BaseException) -> None:
    class Broken(Recorder):
        def log(self, line: str) -> None:
            raise error

        def metrics(self, step: int, values: dict[str, float]) -> None:
            raise error

        def heartbeat(self, heartbeat: Any) -> None:
            raise error

        def event(self, kind: str, message: str, **details: Any) -> None:
            raise error

    # More lines than a pipe holds: were nobody reading any more, the workload would hang.
    at = {str(step): "shout" for step in range(1, 41)}
    outcome = run(job, 1, tmp_path, Broken(), steps=40, every=10, seconds=0.01, at=at)
    assert (outcome.end_reason, outcome.committed_step) == (EndReason.COMPLETED, 40)
    assert len([n for n in outcome.notifications if n.source == "observer"]) == 1
    beat = job.attempt(1).read_heartbeat()
    assert beat is not None
    assert beat.sequence > 2


def test_sources_that_raise_silence_nobody(job: Job, tmp_path: Path) -> None:
    class Broken:
        def poll(self) -> Notice | None:
            raise RuntimeError("metadata made of lead")

    bell = Bell()
    observer = Recorder(on_step=lambda step: step == 6 and bell.ring(stop("after all")))
    outcome = run(job, 1, tmp_path, observer, steps=1000, at={"6": f"wait {tmp_path}/never"}, sources=[Broken(), bell])
    assert (outcome.end_reason, outcome.message) == (EndReason.INTERRUPTED, "after all")
    assert any("made of lead" in n.reason for n in outcome.notifications)
    beat = job.attempt(1).read_heartbeat()
    assert beat is not None
    assert beat.sequence > 1


def test_a_checkpoint_that_cannot_be_kept_is_told_and_the_next_one_is(job: Job, tmp_path: Path) -> None:
    observer = Recorder(reactions={"trouble": lambda message, details: (tmp_path / "told").touch()})
    at = {"7": "spoil", "8": f"wait {tmp_path}/told"}
    outcome = run(job, 1, tmp_path, observer, steps=20, every=5, at=at)
    assert (outcome.end_reason, outcome.committed_step) == (EndReason.COMPLETED, 20)
    assert any("state.json is not valid JSON" in message for message in observer.messages("trouble"))


def test_a_last_checkpoint_that_cannot_be_kept_is_a_failure(job: Job, tmp_path: Path) -> None:
    outcome = run(job, 1, tmp_path, steps=20, every=50, at={"19": "spoil", "20": "exit 0"})
    assert outcome.end_reason is EndReason.FAILED
    assert "state.json is not valid JSON" in outcome.message


def test_a_full_disk_at_the_moment_of_the_notice(job: Job, tmp_path: Path) -> None:
    """The agent's own small files cannot be written; the stop goes on."""
    bell = Bell()

    def prepare(scratch: Scratch) -> list[str]:
        scratch.stop_reason_file.mkdir()
        scratch.control_file.with_name("control.json.partial").mkdir()
        return scripted(steps=1000, every=5, at={"6": f"wait {tmp_path}/never"})

    observer = Recorder(on_step=lambda step: step == 6 and bell.ring(stop("going", 60)))
    fields = {"sources": [bell], "save": SavePolicy(minimum_seconds=0.1)}
    outcome = run_attempt(launched(job, 1), plan(tmp_path, prepare, **fields), observer)
    assert (outcome.end_reason, outcome.committed_step) == (EndReason.INTERRUPTED, 6)


def test_a_damaged_checkpoint_is_told_and_on_record(job: Job, tmp_path: Path) -> None:
    run(job, 1, tmp_path, steps=20, every=5, at={"7": "kill"})
    run(job, 2, tmp_path, steps=20, every=5, at={"12": "kill"})
    key = "checkpoints/step-00000010.attempt-0002/weights.txt"
    data = bytearray(job.store.read(key))
    data[3] ^= 1
    job.store.write(key, bytes(data))
    observer = Recorder()
    outcome = run(job, 3, tmp_path, observer, steps=20, every=5)
    assert outcome.end_reason is EndReason.COMPLETED
    assert newest(job, tmp_path)[1] == weights_after(20)  # type: ignore[index]
    start = job.attempt(3).read_start()
    assert start is not None
    assert start.step == 5
    assert "step-00000010.attempt-0002: weights.txt has sha256" in start.damaged[0]
    assert len(observer.messages("damaged")) == 1


def test_orphans_of_the_workload_do_not_outlive_it(job: Job, tmp_path: Path) -> None:
    outcome = run(job, 1, tmp_path, steps=5, at={"3": f"orphan {tmp_path}/pid"})
    assert outcome.end_reason is EndReason.COMPLETED
    assert not _alive(int((tmp_path / "pid").read_text()))


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_attempts_in_threads_beside_each_other(store: Store, tmp_path: Path) -> None:
    """A flow may run several, as a sweep on one machine does."""
    jobs = [new_job(store, f"job-{index}") for index in range(3)]
    started = [
        in_background(launched(job, 1), plan(tmp_path, scripted(steps=10, seconds=0.01)), Recorder()) for job in jobs
    ]
    for thread, ends in started:
        thread.join(LONG_ENOUGH)
        assert ends[0].end_reason is EndReason.COMPLETED
