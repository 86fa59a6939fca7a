"""The overview says of every job and sweep where it stands and what it needs, and reads what has ended once."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from crucible.billing.costs import sweep_of
from crucible.cli.main import build_app
from crucible.cli.overview import _shown
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, JobSpec, Outcome, now
from crucible.jobs.status import JobState, JobStatus
from crucible.reports.curve import POINTS, SmallCurve, sparkline
from crucible.reports.overview import Overview, OverviewReader
from crucible.reports.overview_page import overview_page
from crucible.script_config import ScriptConfig
from crucible.store import FileStore, Store
from crucible.supervision.heartbeat import FOLDER, SupervisorHeartbeat
from tests.checkpoints.committing import commit
from tests.faults.small_jobs import running as running_attempt
from tests.reports.history import Past, interrupted_twice


def supervised(store: Store, subject: str) -> None:
    store.write_model(f"{FOLDER}/{subject}.json", SupervisorHeartbeat(flow_run_id=subject, subject=subject))


def stopped(store: Store, name: str, state: JobState, days_ago: float = 0.0) -> None:
    job = Job.create(store, JobSpec(job_id=name))
    at = now() - timedelta(days=days_ago)
    job.store.write_model("status.json", JobStatus(state=state, reason="because", supervisor=1, at=at))


def running(store: Store, folder: Path, name: str = "running") -> Past:
    past = Past(store, folder, name)
    past.attempt(0, 600, [500])
    past.status(JobState.RUNNING)
    supervised(store, name)
    return past


def test_a_running_job_shows_progress_loss_cost_and_time_left(store: Store, tmp_path: Path) -> None:
    running(store, tmp_path)
    (line,) = OverviewReader(store).read().jobs
    assert (line.activity, line.pool, line.instance, line.step) == ("running (training)", "ec2-spot", "g5.xlarge", 600)
    assert line.share == 0.3
    assert line.needs == ""
    assert line.why == "first attempt"
    assert line.seconds_left == pytest.approx(140)
    assert line.cost_left_usd == pytest.approx(140 / 3600 * 0.36)
    assert 1 < len(line.curve) <= 2 * POINTS
    page = overview_page(OverviewReader(store).read())
    assert "**1 job running**" in page
    assert "███░░░░░░░ 30%<br>600 of 2,000<br>2 min 20 s left" in page
    assert len(page) < 3000


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (JobState.BUDGET_STOP, " --max-cost-usd …`"),
        (JobState.FAILED, "fix the cause"),
        (JobState.STOPPED, "given up"),
        (JobState.PAUSED, "Resume"),
        (JobState.RUNNING, "nothing supervises it"),
        (JobState.COMPLETED, ""),
        (JobState.CANCELLED, ""),
    ],
)
def test_what_a_person_has_to_do(store: Store, state: JobState, words: str) -> None:
    stopped(store, "a", state)
    found = OverviewReader(store).read()
    assert words in found.jobs[0].needs
    assert bool(words) == ("## Needs you" in overview_page(found))


def test_a_script_that_failed_goes_on_once_it_is_mended(store: Store, tmp_path: Path) -> None:
    script = ScriptConfig(command=["python", "train.py"])
    for name in ("saved", "unsaved"):
        job = Job.create(store, JobSpec(job_id=name, script=script))
        if name == "saved":
            commit(attempt := running_attempt(job, 1), tmp_path, 5)
            attempt.end(Outcome(end_reason=EndReason.FAILED, message="because", step=7, committed_step=5))
        job.store.write_model("status.json", JobStatus(state=JobState.FAILED, reason="because", supervisor=1))
    needs = {line.job: line.needs for line in OverviewReader(store).read().jobs}
    assert "`crucible jobs fork saved --store" in needs["saved"]
    assert "--code FOLDER` once the script is mended" in needs["saved"]
    assert "`crucible run` once the script is mended" in needs["unsaved"]


@pytest.mark.parametrize("state", [JobState.BUDGET_STOP, JobState.FAILED, JobState.STOPPED, JobState.PAUSED])
def test_a_stage_goes_on_with_the_job_or_the_sweep_that_it_is_part_of(store: Store, state: JobState) -> None:
    script = ScriptConfig(command=["true"])
    Job.create(store, JobSpec(job_id="a-preprocess", script=script, prepares="a"))
    Job.create(store, JobSpec(job_id="a-evaluate-local", script=script, evaluates="a"))
    Job.create(store, JobSpec(job_id="s-preprocess", script=script, prepares="s", sweep="s"))
    for name in Job.ids(store):
        status = JobStatus(state=state, reason="because", supervisor=1)
        Job(store, name).store.write_model("status.json", status)
    needs = {line.job: line.needs for line in OverviewReader(store).read().jobs}
    assert "`crucible jobs continue a" in needs["a-preprocess"]
    assert "`crucible jobs continue a" in needs["a-evaluate-local"]
    assert "`crucible sweeps continue s" in needs["s-preprocess"]
    assert not any("continue a-" in text for text in needs.values())


def test_a_stage_is_supervised_and_continued_with_what_it_belongs_to(store: Store) -> None:
    for stage in ("preprocess", "evaluate-local", "evaluate-modal"):
        relation = {"prepares": "mine"} if stage == "preprocess" else {"evaluates": "mine"}
        Job.create(store, JobSpec(job_id=f"mine-{stage}", script=ScriptConfig(command=["true"]), **relation))
    states = {"preprocess": JobState.COMPLETED, "evaluate-local": JobState.RUNNING, "evaluate-modal": JobState.FAILED}
    for stage, state in states.items():
        status = JobStatus(state=state, reason="because", supervisor=1)
        Job(store, f"mine-{stage}").store.write_model("status.json", status)
    supervised(store, "mine")

    found = {line.job.removeprefix("mine-"): line for line in OverviewReader(store).read().jobs}

    assert {stage: line.state for stage, line in found.items()} == states
    assert found["evaluate-local"].needs == ""
    there = f" --store {store.uri}`"
    needs = found["evaluate-modal"].needs
    assert f"`crucible jobs continue mine{there}; `crucible logs mine-evaluate-modal{there}" in needs


class Counting(FileStore):
    """Counts what is read of each job."""

    reads: list[str]

    def read(self, key: str) -> bytes:
        type(self).reads.append(f"{self.uri}/{key}")
        return super().read(key)

    def child(self, prefix: str) -> Counting:
        return Counting(self._path(prefix), self._store)


def test_what_has_ended_is_read_once_until_somebody_supervises_it_again(tmp_path: Path) -> None:
    Counting.reads = []
    store = Counting(tmp_path / "store")
    interrupted_twice(store, tmp_path / "work")
    stopped(store, "ancient", JobState.COMPLETED, days_ago=30)
    running(store, tmp_path / "work")
    reader = OverviewReader(store)

    def reads() -> Callable[[str], int]:
        Counting.reads.clear()
        overviews.append(reader.read())
        return lambda name: sum(f"/jobs/{name}/" in read for read in Counting.reads)

    overviews: list[Overview] = []
    first, second = reads(), reads()
    assert first("ancient") == 0 == second("ancient")
    assert second("shakespeare") == 0 < second("running")
    assert [line.job for line in overviews[1].jobs] == ["running", "shakespeare"]
    assert overviews[1].older == 1
    supervised(store, "shakespeare")
    assert reads()("shakespeare") > 0
    assert overviews[-1].jobs[1:] == overviews[0].jobs[1:]


def test_a_damaged_job_hides_no_other_and_is_looked_at_again(store: Store) -> None:
    stopped(store, "whole", JobState.COMPLETED)
    store.write("jobs/broken/job.json", b"{")
    reader = OverviewReader(store)
    assert "jobs/broken/job.json is damaged" in reader.read().damaged[0]
    again = reader.read()
    assert len(again.damaged) == 1
    assert [line.job for line in again.jobs] == ["whole"]


def test_the_curve_of_a_long_job_takes_few_reads(tmp_path: Path) -> None:
    Counting.reads = []
    store = Counting(tmp_path)
    past = Past(store, tmp_path / "work")
    attempt = past.attempt(0, 10, [])
    for number in range(400):
        attempt.append_metrics(number, b'{"step": %d, "train_loss": %f, "time": 1}\n' % (number, 5 - number / 500))
    Counting.reads.clear()
    curve = SmallCurve(past.job)
    points = curve.read()
    assert len(Counting.reads) < 3 * POINTS
    assert len(points) <= POINTS
    assert points[-1][0] == 399
    attempt.append_metrics(400, b'{"step": 400, "train_loss": 2.9, "time": 1}\n')
    Counting.reads.clear()
    assert curve.read()[-1][0] == 400
    assert len(Counting.reads) < 10
    assert sparkline([(0, 4.0), (1, 3.0), (2, 2.0)]) == "█▅▁"


def test_trials_are_shown_by_their_sweep_alone(store: Store) -> None:
    stopped(store, "rates-0001", JobState.PAUSED)
    store.write("sweeps/rates/sweep.json", b"{}")
    found = OverviewReader(store).read()
    assert [line.job for line in found.jobs] == []
    assert found.damaged[0].startswith("rates: ")


def test_a_job_that_is_only_named_like_a_trial_is_a_job(store: Store) -> None:
    stopped(store, "rates-2", JobState.PAUSED)
    stopped(store, "rates-20260301", JobState.PAUSED)
    stopped(store, "rates-0001", JobState.PAUSED)
    store.write("sweeps/rates/sweep.json", b"{}")

    found = OverviewReader(store).read()
    assert sorted(line.job for line in found.jobs) == ["rates-2", "rates-20260301"]
    assert sweep_of("rates-0001", {"rates"}) == "rates"
    assert sweep_of("rates-2", {"rates"}) == ""


def test_an_interrupted_job_says_why_it_is_where_it_is(store: Store, tmp_path: Path) -> None:
    past = Past(store, tmp_path)
    past.end(past.attempt(0, 300, [300]), EndReason.INTERRUPTED, "interrupted")
    past.attempt(300, 400, [], pool="modal", reason="no spot capacity: modal is the cheapest that is ready")
    past.status(JobState.RUNNING)
    (line,) = OverviewReader(store).read().jobs
    assert (line.pool, line.attempts) == ("modal", 2)
    assert line.why == "no spot capacity: modal is the cheapest that is ready"


def test_the_command_shows_the_same_as_a_table_and_as_json(store: Store, tmp_path: Path) -> None:
    running(store, tmp_path)
    shown = CliRunner().invoke(build_app(), ["overview", "--store", store.uri], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "running" in shown.output
    assert "30%  2.3449" in shown.output
    found = json.loads(CliRunner().invoke(build_app(), ["overview", "--store", store.uri, "--json"]).stdout)
    (job,) = found["jobs"]
    assert (job["job"], job["step"]) == ("running", 600)


def test_a_narrow_terminal_shows_the_reasons_below_the_table(store: Store, tmp_path: Path) -> None:
    running(store, tmp_path, "shakespeare-char-20261129-112513")
    stopped(store, "done", JobState.COMPLETED)
    arguments = ["overview", "--store", store.uri]
    wide = CliRunner().invoke(build_app(), arguments, env={"COLUMNS": "200"}).output
    (row,) = (line for line in wide.splitlines() if line.startswith("shakespeare"))
    assert row.rstrip().endswith("first attempt")

    narrow = Console(width=80, markup=False)
    with narrow.capture() as captured:
        narrow.print(_shown(OverviewReader(store).read(), 80))
    lines = [line.rstrip() for line in captured.get().splitlines()]
    assert max(map(len, lines)) <= 80
    assert "shakespeare-char-20261129-112513: first attempt" in lines
    assert not any(line.startswith("done: ") for line in lines), "what is completed needs no reason"


def test_another_stores_address_is_broken_after_a_slash(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "a-folder-of-the-project" / "store")
    store.root.mkdir(parents=True)
    stopped(store, "a", JobState.COMPLETED)
    page = overview_page(OverviewReader(store).read())
    (row,) = (line for line in page.splitlines() if line.startswith("| **a**"))
    lines = row.split(" | ")[0].split("<br>")
    address = lines[lines.index("completed, 0 attempts") + 1 : -1]
    assert "".join(address) == store.uri
    assert address[-2:] == ["a-folder-of-the-project/", "store"]
