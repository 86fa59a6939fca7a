"""What a workload printed is read once, in order, over all attempts, while it grows and afterwards."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from crucible.agent.observer import Trouble
from crucible.agent.output import OutputLog, Rhythm
from crucible.cli.main import build_app
from crucible.errors import ConfigError
from crucible.jobs.job import Job
from crucible.jobs.printed import PrintedLines
from crucible.jobs.records import EndReason, JobSpec, Outcome
from crucible.store import Store
from tests.waiting import until


@pytest.fixture
def job(store: Store) -> Job:
    return Job.create(store, JobSpec(job_id="printing"))


def end(job: Job, number: int) -> None:
    job.attempt(number).end(Outcome(end_reason=EndReason.INTERRUPTED, message="interrupted"))


def logs(store: Store, *options: str) -> list[str]:
    done = CliRunner().invoke(build_app(), ["logs", "printing", "--store", store.uri, *options])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout.splitlines()


def test_a_line_arrives_soon_and_objects_stay_few(job: Job) -> None:
    rhythm, troubles = Rhythm(send_seconds=0.01, part_seconds=3600, part_bytes=300), list[Trouble]()
    output = OutputLog(job.attempt(1), troubles.append, rhythm)
    reader, read = PrintedLines(job), list[str]()

    def arrived(count: int) -> bool:
        read.extend(line.text for line in reader.read_new())
        return len(read) == count

    for number in range(60):
        output.add(f"line {number}")
        until(partial(arrived, number + 1))
    output.close(10)
    assert read == [f"line {number}" for number in range(60)]
    assert [part.number for part in job.attempt(1).output.list_parts()] == [0, 1]
    assert not troubles
    assert job.attempt(1).output.read() == b"".join(b"line %d\n" % number for number in range(60))


def test_attempts_follow_each_other_and_a_line_without_an_end_comes_last(job: Job, store: Store) -> None:
    job.attempt(1).output.write(0, b"one\ntw")
    lines = PrintedLines(job)
    assert [(line.attempt, line.text) for line in lines.read_new()] == [(1, "one")]
    job.attempt(1).output.write(0, b"one\ntwo\nthr")
    job.attempt(1).output.write(1, b"ee\ncut")
    assert [line.text for line in lines.read_new()] == ["two", "three"]
    end(job, 1)
    job.attempt(2).output.write(0, b"again\n")
    assert [(line.attempt, line.text) for line in lines.read_new()] == [(1, "cut"), (2, "again")]
    assert logs(store) == ["1 | one", "1 | two", "1 | three", "1 | cut", "2 | again"]


def test_what_arrives_while_the_reader_is_slow_is_not_skipped(job: Job) -> None:
    """A pager, or a terminal that is held with Ctrl-S, takes one line and the next a minute later."""
    output = job.attempt(1).output
    output.write(0, b"one\n")
    lines = PrintedLines(job)
    assert [line.text for line in lines.read_new()] == ["one"]
    output.write(0, b"one\ntwo\n")
    reading = lines.read_new()
    assert next(reading).text == "two"
    output.write(0, b"one\ntwo\nthree\n")
    output.write(1, b"four\n")
    assert [line.text for line in (*reading, *lines.read_new())] == ["three", "four"]


def test_attempt_pattern_and_form(job: Job, store: Store) -> None:
    job.attempt(1).output.write(0, b"step 1: loss 2.5\n\x1b[31mstep 2: loss nan\x1b[0m\n")
    job.attempt(2).output.write(0, b"step 3: loss 2.1\n")
    assert logs(store, "--grep", "loss [0-9]") == ["1 | step 1: loss 2.5", "2 | step 3: loss 2.1"]
    assert logs(store, "--attempt", "1", "--raw") == ["step 1: loss 2.5", "step 2: loss nan"]
    printed = [json.loads(line) for line in logs(store, "--json", "--attempt", "2")]
    assert [(line["attempt"], line["line"]) for line in printed] == [(2, "step 3: loss 2.1")]
    with pytest.raises(ConfigError, match="job printing has no such attempt; it has 2 so far"):
        logs(store, "--attempt", "3")
    with pytest.raises(ConfigError, match="is no regular expression"):
        logs(store, "--grep", "(")


def test_since_leaves_out_what_was_written_before(job: Job, store: Store) -> None:
    for number, text in enumerate((b"old\n", b"new\n")):
        job.attempt(1).output.write(number, text)
    hour_ago = time.time() - 3600
    os.utime(Path(store.uri.removeprefix("file://"), "jobs/printing/attempts/0001/output/000000.log"), (hour_ago,) * 2)
    assert logs(store, "--since", "10m") == ["1 | new"]
    assert logs(store, "--since", "2h") == ["1 | old", "1 | new"]


def test_following_ends_with_the_attempt(job: Job, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    job.attempt(1).output.write(0, b"first\n")
    steps: list[Callable[[], None]] = [lambda: job.attempt(1).output.write(0, b"first\nsecond\n"), lambda: end(job, 1)]
    monkeypatch.setattr("crucible.jobs.printed.time", SimpleNamespace(sleep=lambda _: steps.pop(0)()))
    assert logs(store, "-f", "--attempt", "1") == ["1 | first", "1 | second"]
    assert not steps
