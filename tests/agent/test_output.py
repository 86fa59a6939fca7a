"""What a workload prints: all of it is kept, and a failure is explained by what it printed last."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from crucible.agent import output
from crucible.agent.attempt import run_attempt
from crucible.agent.last_lines import LastLines
from crucible.jobs.job import Job
from tests.agent.harness import Recorder, plan
from tests.faults.small_jobs import launched, running

FAILING = """
for number in range(3000):
    print("line", number)
def deeper(depth):
    if depth:
        deeper(depth - 1)
    else:
        {"a": 1}["b"]
try:
    deeper(30)
except KeyError as error:
    raise ValueError("no such column: b") from error
"""


def test_all_output_is_kept_and_the_whole_traceback_reaches_people(job: Job, tmp_path: Path) -> None:
    observer = Recorder()
    outcome = run_attempt(launched(job, 1), plan(tmp_path, [sys.executable, "-S", "-c", FAILING]), observer)
    assert outcome.message == "the workload failed with exit code 1: ValueError: no such column: b"
    kept = job.attempt(1).output.read().decode().splitlines()
    assert kept[:3000] == [f"line {number}" for number in range(3000)]
    (tail,) = observer.messages("last-lines")
    lines = tail.splitlines()
    assert lines == kept[-len(lines) :]
    assert "KeyError: 'b'" in lines
    assert lines[0].startswith("Traceback") or "line 2999" in lines


def test_output_beyond_the_most_that_is_kept_is_named(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "MOST_KEPT", 10)
    attempt = running(job, 1)
    kept = output.OutputLog(attempt, print)
    for number in range(9):
        kept.add(f"line {number}")
    kept.close(30.0)
    end = "[the rest is left out: 10 bytes of one attempt are kept]"
    assert attempt.output.read().decode().splitlines() == ["line 0", "line 1", end]


def last(*lines: str) -> LastLines:
    found = LastLines()
    for line in lines:
        found.add(line)
    return found


def test_the_cause_is_the_exception_and_not_what_a_launcher_says_after_it() -> None:
    raised = ["Traceback (most recent call last):", '  File "train.py", line 3, in <module>', "ZeroDivisionError"]
    footer = ["", "wandb: Find logs at: ./wandb"]
    assert last("a", *raised, *footer).cause() == "ZeroDivisionError"
    ranks = [f"[rank1]: {line}" for line in [*raised[:2], "torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB"]]
    assert (
        last(*ranks, "E1128 failed (exitcode: 1)").cause() == "torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB"
    )
    assert last(*raised, *["it went on"] * 30, "out of luck").cause() == "out of luck"
    assert last().cause() == "it printed nothing"
