"""What a finished job leaves for the next estimate, and the recommendation for a job that is about to start."""

from __future__ import annotations

import json
import socket

import pytest

from crucible.config import TrainConfig
from crucible.datasets.meta import DatasetMeta
from crucible.errors import ConfigError
from crucible.estimate import history
from crucible.estimate.for_job import recommend_for, remember_job
from crucible.estimate.ranking import PoolState, Preferences
from crucible.jobs.job import Job
from crucible.jobs.records import Claim, EndReason, JobSpec, Launch, Outcome
from crucible.placement.choice import planned_cost
from crucible.script_config import ScriptConfig
from crucible.store import Store, store_at

CONFIG = TrainConfig.preset("gpt2-124m", max_iters=500, warmup_iters=10, lr_decay_iters=500)

pytestmark = pytest.mark.usefixtures("home")


def run_job(store: Store, meta: DatasetMeta, pool: str, instance: str, seconds: float, host: str = "far") -> Job:
    store.write_json("datasets/d/meta.json", meta.model_dump(mode="json"))
    job = Job.create(store, JobSpec(job_id=f"on-{pool}", config=CONFIG, dataset="d"))
    job.decide(Launch(number=1, pool=pool, instance=instance, reason="test"))
    attempt = job.attempt(1).take(Claim(number=1, host=host))
    rows = [{"step": 10, "seconds_per_step": 60.0}]  # compiling
    rows += [{"step": 10 * (count + 2), "seconds_per_step": seconds} for count in range(5)]
    rows.insert(3, {"step": 25, "val_loss": 4.0})
    attempt.append_metrics(1, "".join(json.dumps(row) + "\n" for row in rows).encode())
    attempt.end(Outcome(end_reason=EndReason.COMPLETED, message="", seconds=1800.0, cost_usd=0.2))
    return job


def test_a_finished_job_makes_the_next_estimate_better(store: Store, meta: DatasetMeta) -> None:
    before = recommend_for(store, CONFIG, meta, Preferences())
    job = run_job(store, meta, "ec2-spot", "g6.xlarge", 2.5)
    history.remember_plan(job, planned_cost(before))
    record = remember_job(job)
    assert record is not None
    assert record.hours == 0.5
    after = recommend_for(store, CONFIG, meta, Preferences())
    speeds = {entry.estimate.offer.key: entry.estimate.speed for entry in after.ranked}
    assert speeds["ec2-spot/g6.xlarge"].source == "history"
    assert speeds["ec2-spot/g6.xlarge"].seconds_per_step == 2.5, "the median, without the first report"
    assert speeds["modal/L4"].source == "peak"

    assert remember_job(job) == record
    assert len(history.speeds(store)) == 1, "remembering twice leaves one record"


def test_someone_elses_own_machine_is_not_taken_for_this_one(store: Store, meta: DatasetMeta) -> None:
    remember_job(run_job(store, meta, "local", "", 2.5, host="far"))
    assert history.speeds(store) == []
    other = store_at(f"{store.uri}/other")
    remember_job(run_job(other, meta, "local", "", 2.5, host=socket.gethostname()))
    (record,) = history.speeds(other)
    assert record.offer.startswith("local/")
    assert record.offer != "local/this-machine"


def test_a_script_leaves_only_its_estimate(store: Store) -> None:
    job = Job.create(
        store, JobSpec(job_id="script", script=ScriptConfig(command=["python", "x.py"], settings={"anything": 1}))
    )
    assert remember_job(job) is None
    assert history.speeds(store) == []


def test_auto_takes_only_pools_that_can_start_now(store: Store, meta: DatasetMeta) -> None:
    found = recommend_for(store, CONFIG, meta, Preferences(), pools={"modal": PoolState(workers_online=1)})
    assert {entry.estimate.offer.pool for entry in found.ranked} == {"modal"}
    with pytest.raises(ConfigError, match=r"no offer fits; .* has no worker online"):
        recommend_for(store, CONFIG, meta, Preferences(pools=("ec2-spot",)), pools={"ec2-spot": PoolState(0)})
