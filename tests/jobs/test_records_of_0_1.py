"""What version 0.1 wrote is still read: `records_of_0_1` is a store that its code made, one of each kind of record."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from crucible.billing.budgets import BudgetLimit, BudgetState, due_alerts
from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.restore import restore
from crucible.cli.main import build_app
from crucible.config import TrainConfig
from crucible.datasets.finished import list_datasets
from crucible.estimate.history import estimates, read_plan, speeds
from crucible.jobs.job import Job
from crucible.jobs.metrics import Metrics
from crucible.jobs.records import EndReason, JobSpec
from crucible.jobs.status import JobState, status_of
from crucible.placement.choice import read_choice
from crucible.script_config import ScriptConfig
from crucible.store import Store
from crucible.supervision.heartbeat import supervisor_heartbeats
from crucible.sweeps import Sweep

RUN = "0b1f6a8e-6f5e-4d0a-9d3e-2f4f2f3c9a10"
RECORDS = Path(__file__).parent / "records_of_0_1"


@pytest.fixture
def old(store: Store) -> Store:
    shutil.copytree(RECORDS, Path(store.uri.removeprefix("file://")))
    return store


def test_a_jobs_records(old: Store) -> None:
    job = Job.open(old, "shakespeare")
    spec = job.read_spec()
    assert spec.config == TrainConfig(
        n_layer=1, n_head=1, n_embd=8, block_size=8, max_iters=40, warmup_iters=4, checkpoint_interval_seconds=30.0
    )
    assert (spec.script, spec.project, spec.owner) == (None, "paper", "ada")
    assert (job.read_limits().max_attempts, job.read_limits().max_cost_usd) == (9, 2.5)
    assert not job.first_start(RUN)
    supervisor = job.read_newest_supervisor()
    assert supervisor is not None
    assert (supervisor.number, supervisor.flow_run_id, supervisor.host) == (1, RUN, "worker-1")
    status = status_of(job)
    assert status is not None
    assert (status.state, status.supervisor) == (JobState.COMPLETED, 1)
    assert job.cost_usd() == pytest.approx(0.0122)


def test_an_attempts_records(old: Store) -> None:
    first, second = Job.open(old, "shakespeare").attempts()
    launch, claim, start, heartbeat = (
        first.read_launch(),
        first.read_claim(),
        second.read_start(),
        first.read_heartbeat(),
    )
    assert launch
    assert (launch.pool, launch.instance, launch.usd_per_hour) == ("ec2-spot", "g5.xlarge", 0.36)
    assert claim
    assert (claim.host, claim.instance, claim.environment["cpus"]) == ("worker-1", "g5.xlarge", 4)
    assert start
    assert (start.step, start.from_attempt, len(start.damaged)) == (20, 1, 1)
    assert heartbeat
    assert (heartbeat.sequence, heartbeat.step, heartbeat.saving["interval_seconds"]) == (7, 20, 30.0)
    request, outcome = first.read_stop_request(), first.read_outcome()
    assert request
    assert outcome
    assert request.end_reason is outcome.end_reason is EndReason.INTERRUPTED
    assert outcome.notifications[0].source == "ec2"
    assert outcome.limits is not None
    assert outcome.limits.max_hours == 8.0


def test_a_script_with_settings_of_its_own(old: Store) -> None:
    spec = Job.open(old, "script").read_spec()
    assert spec.config is None
    assert spec.script == ScriptConfig(
        command=["python", "train.py", "--lr", "0.1"], settings={"lr": 0.1, "model": {"layers": 2}}
    )


def test_metrics_and_checkpoints(old: Store, tmp_path: Path) -> None:
    job = Job.open(old, "shakespeare")
    assert [row["step"] for row in Metrics(job).rows()] == list(range(1, 41))
    newest, before = Checkpoints(job).list()
    assert (newest.step, before.step, newest.val_loss) == (40, 20, 3.25)
    restored = restore(Checkpoints(job), tmp_path)
    assert restored is not None
    assert (restored[1] / "model.safetensors").read_bytes() == b"weights of 40"


def test_supervisor_heartbeats_choices_and_estimates(old: Store) -> None:
    (heartbeat,) = supervisor_heartbeats(old)
    assert (heartbeat.flow_run_id, heartbeat.subject, heartbeat.sequence) == (RUN, "script", 12)
    job = Job.open(old, "shakespeare")
    choice, planned = read_choice(job, RUN), read_plan(job)
    assert choice is not None
    assert choice.finish_by == datetime(2026, 5, 7, 16, tzinfo=UTC)
    assert choice.placements[0].pool == "ec2-spot"
    assert choice.planned == planned
    assert [record.job_id for record in estimates(old)] == ["shakespeare"]
    assert [record.offer for record in speeds(old)] == ["ec2-spot/g5.xlarge"]


def test_datasets_and_budget_alerts(old: Store) -> None:
    (dataset,) = list_datasets(old)
    assert dataset.digest == Job.open(old, "shakespeare").read_spec().dataset
    given = datetime.fromisoformat(f"{old.folders('budgets/paper')[0]}T12:00:00+00:00")
    limit = BudgetLimit(name="paper", usd=0.01, period="day", project="paper")
    assert due_alerts(old, BudgetState(limit, 12_000), given) == []


def test_a_sweeps_records(old: Store) -> None:
    sweep = Sweep.open(old, "rates")
    assert [trial.values["learning_rate"] for trial in sweep.read_trials()] == [0.004, 0.002]
    assert sweep.read_limits().max_trials == 4
    assert not sweep.first_start(RUN)
    status = sweep.read_status()
    assert status is not None
    assert status.state is JobState.CANCELLED
    spec = sweep.job(1).read_spec()
    assert spec.config is not None
    assert spec.config.learning_rate == 0.004
    assert spec.script is not None
    assert spec.script.command[-2] == "workload.py"


def test_a_job_is_continued_with_the_spec_it_had(old: Store) -> None:
    """What a new flow run would record is the same job, not another one of that name."""
    before = json.loads((RECORDS / "jobs/shakespeare/job.json").read_text())
    config = TrainConfig.parse(before["config"])
    spec = JobSpec(job_id="shakespeare", config=config, dataset=before["dataset"], project="paper", owner="ada")
    assert Job.create(old, spec).attempts()


@pytest.mark.parametrize(
    "command",
    [
        "jobs ls",
        "jobs show shakespeare",
        "jobs show script --json",
        "jobs report shakespeare",
        "checkpoints ls shakespeare",
        "checkpoints verify shakespeare",
        "sweeps ls",
        "sweeps show rates",
        "cost --by job",
        "data ls",
    ],
)
def test_commands_show_them(old: Store, command: str) -> None:
    result = CliRunner().invoke(build_app(), [*command.split(), "--store", old.uri])
    assert result.exit_code == 0, result.output
