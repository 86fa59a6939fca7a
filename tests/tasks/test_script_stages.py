"""What runs before and after a script's training: outputs that arrive, evaluations side by side."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from crucible.billing.costs import attempt_costs
from crucible.jobs.job import Job
from crucible.jobs.records import JobSpec, Limits
from crucible.jobs.stage_records import StageRun
from crucible.jobs.status import JobState, JobStatus
from crucible.placement.choice import Choice
from crucible.placement.script import place_script
from crucible.prefect_compat.live_artifacts import LiveArtifact
from crucible.reports import job_report
from crucible.reports.summary import summarise
from crucible.resources import Resources
from crucible.script_config import EvaluateStage, ScriptConfig
from crucible.store import Store
from crucible.supervision.placement_policy import PlacementPolicy
from crucible.supervision.retry_policy import Timeouts
from crucible.supervision.snapshot import SnapshotReader
from crucible.supervision.supervisor import Supervision
from tasks import script_stages
from tasks.scripts import read_config, resolve
from tasks.stopping import StopWatch
from tasks.supervising import SupervisedJob
from tasks.trials import HereLauncher, Machine, TrialListener

FILES = {
    "prepare.py": "open('data.txt', 'w').write('prepared')",
    "train.py": "open('model.txt', 'w').write(open('data.txt').read() + ' trained')",
    "evaluate.py": (
        "import json, os\n"
        "score = len(open('model.txt').read())\n"
        "open(os.environ['CRUCIBLE_METRICS_FILE'], 'a').write(json.dumps({'step': 1, 'score': score}) + '\\n')\n"
    ),
    "crucible.yaml": (
        "command: python train.py\n"
        "output: model.txt\n"
        "preprocess: {command: python prepare.py, output: data.txt}\n"
        "evaluate: {command: python evaluate.py, pools: [local, docker-gpu]}\n"
    ),
}


@dataclass(frozen=True)
class Here(SupervisedJob):
    """Whose attempts run in this process, whatever pool they are meant for."""

    def supervision(self, choice: Choice, policy: PlacementPolicy) -> Supervision:
        timeouts = Timeouts(ended_and_silent=0.0, poll=0.05)
        launcher = HereLauncher(Machine(1, None))
        return Supervision(self.job, launcher, choice.placements, TrialListener(), timeouts=timeouts)


def test_the_chain_of_a_script(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRUCIBLE_HOME", str(tmp_path / "home"))
    tables: list[list[dict[str, Any]]] = []
    monkeypatch.setattr(LiveArtifact, "publish", lambda _, rows, __: tables.append(rows))
    folder = tmp_path / "project"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    config = read_config(str(folder), {})
    script, code = resolve(store, str(folder), {}, config)
    spec = JobSpec(
        job_id="mine",
        script=script,
        code=code,
        preprocess=config.preprocess,
        evaluate=config.evaluate,
        prepared_by="mine-preprocess",
    )
    run = Here(Job(store, "mine"), spec, store.uri, StopWatch())
    choice = place_script("local", Resources())
    run.put_on_record(spec, Limits(), choice)

    prepared = script_stages.preprocess(run, "local")
    assert prepared is not None
    assert prepared.state is JobState.COMPLETED, prepared.reason
    policy: Any = None
    trained = run.run_attempts(choice, policy)
    assert trained.state is JobState.COMPLETED, trained.reason
    stage = spec.evaluate
    assert stage is not None
    assert script_stages.evaluate(run, trained, "local", stage) is trained
    [table] = tables
    assert [(row["pool"], row["score"], row["job"]) for row in table] == [
        ("local", 16, "mine-evaluate-local"),
        ("docker-gpu", 16, "mine-evaluate-docker-gpu"),
    ]
    bill = summarise(run.job)
    assert [(stage.stage, stage.pool, stage.end) for stage in bill.stages] == [
        ("preprocess", "local", "completed"),
        ("evaluate", "local", "completed"),
        ("evaluate", "docker-gpu", "completed"),
    ]
    costs = attempt_costs(store, {}, job="mine")
    assert [(cost.job, cost.stage) for cost in costs] == [
        ("mine", "train"),
        ("mine-preprocess", "preprocess"),
        ("mine-evaluate-local", "evaluate"),
        ("mine-evaluate-docker-gpu", "evaluate"),
    ]
    assert script_stages.preprocess(run, "local").state is JobState.COMPLETED  # type: ignore[union-attr]
    assert len(Job(store, "mine-preprocess").attempts()) == 1, "what is done is not done again"


def test_stages_count_towards_the_jobs_cap(store: Store) -> None:
    spec = JobSpec(
        job_id="mine",
        script=ScriptConfig(command=["true"]),
        evaluate=EvaluateStage.model_validate({"command": "true"}),
    )
    job = Job.create(store, spec)
    job.set_limits(Limits(max_cost_usd=0.5))
    job.write_stage(
        StageRun(name="run-1", stage="preprocess", pool="modal", seconds=3600, cost_usd=0.5, end="completed")
    )
    assert job.cost_usd() == 0.5
    assert SnapshotReader(job, time.monotonic).read().spent_usd == 0.5, "no attempt is started any more"
    [cost] = attempt_costs(store, {})
    assert (cost.stage, cost.attempt, cost.usd) == ("preprocess", 1, 0.5)
    assert "| preprocess | modal<br>" in job_report(job)
    run = Here(job, spec, store.uri, StopWatch(job))
    trained = JobStatus(state=JobState.COMPLETED, reason="", supervisor=1)
    assert spec.evaluate is not None
    refused = script_stages.evaluate(run, trained, "local", spec.evaluate)
    assert refused.state is JobState.BUDGET_STOP
    assert "evaluate on local was not started" in refused.reason
