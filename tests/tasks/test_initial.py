"""Weights to start from: into the store before the launch, and onto the attempt's machine."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import tasks.initial
import tasks.training
from crucible.agent.plan import Scratch
from crucible.checkpoints.commits import Checkpoints
from crucible.config import ConfigDraft
from crucible.contract import Variable
from crucible.datasets.meta import load_meta
from crucible.errors import ConfigError
from crucible.jobs.job import Job
from crucible.jobs.records import JobSpec
from crucible.store import Store
from crucible.training.data import Dataset
from crucible.training.model import load_model
from tasks.initial import settle
from tasks.training import prepare
from tests.faults.small_jobs import launched
from tests.training.conftest import train_in, write_dataset


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRUCIBLE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tasks.initial, "get_run_logger", lambda: logging.getLogger("test"))


@pytest.fixture
def trained(store: Store, tmp_path: Path) -> Job:
    """A job `before` with commits of steps 5 and 10."""
    meta = load_meta(write_dataset(tmp_path / "data"))
    store.write_json(f"datasets/{meta.digest}/meta.json", meta.model_dump(mode="json"))
    job = Job.create(store, JobSpec(job_id="before", dataset=meta.digest))
    attempt = launched(job, 1)
    folder, resume = tmp_path / "trained", None
    for until in (5, 10):
        train_in(folder, Dataset(write_dataset(tmp_path / "data")), resume=resume, until=until)
        resume = folder / f"step-{until:08d}"
        Checkpoints(job).commit(attempt, resume)
    return job


def draft(init_from: str, **stated: object) -> ConfigDraft:
    values = {"init_from": init_from, "max_iters": 4, "warmup_iters": 1, "device": "cpu", "fast_gemm": "off"}
    return ConfigDraft({"n_layer": 4, "n_head": 4}, {**values, **stated})


def test_a_job_starts_from_the_checkpoint_of_another_that_is_gone(
    trained: Job, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "job:before@5"
    settled = settle(draft(text), store)
    assert settled.config.init_from is not None
    assert settled.config.init_from.startswith("weights:")
    assert (settled.config.n_layer, settled.config.n_head, settled.config.block_size) == (2, 2, 16)
    meta = load_meta(write_dataset(tmp_path / "data"))
    settled.require_dataset(meta)
    with pytest.raises(ConfigError, match="has 17 tokens, the dataset 65"):
        settled.require_dataset(meta.model_copy(update={"vocab_size": 65}))
    other = meta.tokenizer.model_copy(update={"sha256": "of other characters"})
    with pytest.raises(ConfigError, match=r"job before was trained with another tokenizer .* tokenizer_file a copy of"):
        settled.require_dataset(meta.model_copy(update={"tokenizer": other}))
    shutil.rmtree(tmp_path / "store" / "jobs" / "before")

    again = settle(draft(text), store, (settled.config, settled.init_source))
    assert (again.config, again.init_source) == (settled.config, text), "of the record: the job is gone"
    assert settle(draft(settled.config.init_from), store).config == settled.config

    data = write_dataset(tmp_path / "data")
    monkeypatch.setattr(tasks.training, "fetch_dataset", lambda store, digest, cache: data)
    spec = JobSpec(job_id="after", config=settled.config, init_source=text, dataset=Dataset(data).digest)
    job, scratch = Job.create(store, spec), Scratch(tmp_path / "scratch")
    scratch.root.mkdir()
    command = prepare(job, spec, scratch, gpus=0)
    environment = {**os.environ, Variable.CHECKPOINT_DIR: str(tmp_path / "own"), Variable.STOP_AT_STEP: "1"}
    run = subprocess.run(command.arguments, env=environment, capture_output=True, text=True)
    assert run.returncode == 75, run.stderr
    assert "started from " in run.stderr
    start, _ = load_model(tmp_path / "trained" / "step-00000005")
    own, config = load_model(tmp_path / "own" / "step-00000001")
    assert config == settled.config
    near = max(float((a - b).detach().abs().max()) for a, b in zip(own.parameters(), start.parameters(), strict=True))
    assert near < 2 * settled.config.learning_rate, "one step away from where it began"

    (scratch.resume / "step-00000001").mkdir(parents=True)
    assert "--weights" not in prepare(job, spec, scratch, gpus=0).arguments, "the job's own checkpoint wins"


@pytest.mark.parametrize(
    ("init_from", "message"),
    [
        ("job:before@7", "job before has no such checkpoint; there are: 10, 5"),
        ("job:nobody", "there is no job 'nobody'"),
        ("/nowhere/gpt2", "/nowhere/gpt2 does not exist on this machine"),
        ("resume:job:before", "A job goes on by itself"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_launched(
    trained: Job, store: Store, init_from: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        settle(draft(init_from), store)
    assert message in str(caught.value)


def test_the_newest_and_the_best_checkpoint_of_a_job(trained: Job, store: Store) -> None:
    addresses = {which: settle(draft(f"job:before{which}"), store).config.init_from for which in ("", "@best", "@10")}
    assert len(set(addresses.values())) == 1, addresses
    with pytest.raises(ConfigError, match="n_layer = 3, but job:before has 2"):
        settle(draft("job:before", n_layer=3), store)
