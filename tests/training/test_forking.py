"""The trainer goes on from a forked checkpoint with other settings, which it refuses from anybody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.forking import copy_checkpoint
from crucible.checkpoints.restore import restore
from crucible.errors import ConfigError
from crucible.jobs.job import Job
from crucible.jobs.records import JobSpec
from crucible.store import Store
from tests.faults.small_jobs import running
from tests.training.conftest import TINY, Train


def test_training_goes_on_with_the_new_settings(train: Train, store: Store, tmp_path: Path) -> None:
    train(tmp_path / "parent", until=4)
    saved = tmp_path / "parent" / "step-00000004"
    parent = Job.create(store, JobSpec(job_id="parent", config=TINY))
    commit = Checkpoints(parent).commit(running(parent, 1), saved)
    slower = TINY.with_overrides({"learning_rate": 1e-3, "weight_decay": 0.0})
    with pytest.raises(ConfigError, match=r"learning_rate 0.003 -> 0.001"):
        train(tmp_path / "refused", slower, resume=saved)

    fork = Job(store, "fork")
    copy_checkpoint(Checkpoints(parent), commit, fork, slower, tmp_path / "work")
    Job.create(store, JobSpec(job_id="fork", config=slower))
    found = restore(Checkpoints(fork), tmp_path / "restored")
    assert found is not None
    _, changed = train(tmp_path / "fork", slower, resume=found[1], until=8)
    _, same = train(tmp_path / "same", resume=saved, until=8)
    assert changed.step == same.step == 8
    assert changed.weights_sha256 != same.weights_sha256
