"""The evaluate flow on a real Prefect server, from a job's records to the model in the store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.manifest import MANIFEST
from crucible.errors import ConfigError, StoreError, StoreUnavailable
from crucible.jobs.job import Job
from crucible.jobs.records import Claim, EndReason, JobSpec, Launch, Outcome, Start
from crucible.reports import job_report
from crucible.script_config import ScriptConfig
from crucible.store import FileStore, Store
from flows.evaluate import evaluate
from tasks.evaluation import upload_model
from tests.evaluation.conftest import Trained


@pytest.fixture
def job(trained: Callable[..., Trained], store: Store) -> Job:
    """A finished job whose store holds the checkpoints of a training and its dataset."""
    example = trained("char", False)
    digest = json.loads((example.data / "meta.json").read_text())["digest"]
    shutil.copytree(example.data, Path(store.uri.removeprefix("file://")) / "datasets" / digest)
    made = Job.create(store, JobSpec(job_id="evaluated", config=example.config, dataset=digest))
    made.decide(Launch(number=1, pool="local", reason="first attempt"))
    attempt = made.attempt(1).take(Claim(number=1))
    attempt.begin(Start(step=0))
    for folder in example.checkpoints:
        Checkpoints(made).commit(attempt, folder)
    attempt.append_metrics(0, b'{"step": 6, "time": 1.0, "train_loss": 3.0}\n')
    attempt.end(Outcome(end_reason=EndReason.COMPLETED, message="done", step=6, committed_step=6))
    return made


def test_a_job_is_evaluated_and_its_model_is_in_the_store(prefect_api: str, job: Job) -> None:
    evaluation = evaluate(job="evaluated", store=job.root.uri, export=("huggingface", "nanogpt"), samples=1)

    assert job.store.read_json("evaluation.json") == evaluation
    assert evaluation["step"] == 6
    assert [entry["step"] for entry in evaluation["candidates"]] == [6], "nothing looked better than the newest"
    assert evaluation["model"] == "jobs/evaluated/models/step-00000006"
    written = {info.key.removeprefix("models/step-00000006/"): info.size for info in job.store.list("models")}
    assert written == evaluation["files"]
    assert set(written) >= {"README.md", "metrics.json", "model.safetensors", "nanogpt/ckpt.pt", "samples.txt"}
    card = job.store.read("models/step-00000006/README.md").decode()
    assert "1 attempt" in card
    assert f"data/crucible --store {job.root.uri}`" in card, "which is not the default store"
    with get_client(sync_client=True) as client:
        artifacts = {artifact.key: str(artifact.data) for artifact in client.read_artifacts()}
    assert f"{evaluation['val_loss']:.4f}" in artifacts["evaluation-evaluated"]
    assert "data:image/png;base64," in artifacts["evaluation-evaluated"]
    assert "## Model" in artifacts["job-evaluated"]
    assert f"{evaluation['perplexity']:.3f}" in job_report(job)


def test_an_earlier_checkpoint_is_read_only_if_it_looked_better(prefect_api: str, job: Job) -> None:
    newest = Checkpoints(job).list()[0]
    assert newest.state["best"]["step"] == newest.step == 6

    manifest = f"checkpoints/{newest.name}/{MANIFEST}"
    record = job.store.read_json(manifest)
    record["state"]["estimated_val_loss"] = 1e3
    earlier = f"checkpoints/{Checkpoints(job).list()[1].name}/{MANIFEST}"
    before = job.store.read_json(earlier)
    before["state"]["val_loss"] = 1e2
    job.store.write_json(manifest, record)
    job.store.write_json(earlier, before)
    evaluation = evaluate(job="evaluated", store=job.root.uri, samples=0)
    assert [entry["step"] for entry in evaluation["candidates"]] == [6, 0]
    assert evaluation["step"] == 6, "the estimate was wrong: over the whole split the newest is better"


def test_a_damaged_newest_checkpoint_is_passed_over(prefect_api: str, job: Job) -> None:
    newest = Checkpoints(job).list()[0]
    weights = bytearray(job.store.read(f"checkpoints/{newest.name}/model.safetensors"))
    weights[-1] ^= 1
    job.store.write(f"checkpoints/{newest.name}/model.safetensors", bytes(weights))

    assert evaluate(job="evaluated", store=job.root.uri, export=(), samples=0)["step"] == 0


def test_what_cannot_be_evaluated_is_told_before_anything_starts(prefect_api: str, job: Job, store: Store) -> None:
    with pytest.raises(ConfigError, match=r"step = 5: job .* has no such checkpoint; there are: 6, 0"):
        evaluate(job="evaluated", store=store.uri, step=5)
    Job.create(store, JobSpec(job_id="script", script=ScriptConfig(command=["python", "train.py"])))
    with pytest.raises(ConfigError, match=r"script runs a script of its own \(python train.py\)"):
        evaluate(job="script", store=store.uri)
    assert not job.store.exists("evaluation.json")


def test_the_evaluations_own_words_are_the_flows_error(prefect_api: str, job: Job) -> None:
    with pytest.raises(Exception, match=r"character '\$' .* is not in the tokenizer"):
        evaluate(job="evaluated", store=job.root.uri, prompt="$")
    assert not job.store.list("models")


def test_a_model_that_could_not_be_uploaded_whole_has_no_metrics(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model"
    out.mkdir()
    for name in ("config.json", "model.safetensors", "samples.txt"):
        (out / name).write_text(name)
    (out / "metrics.json").write_text('{"step": 6}')
    upload_model(job, out)
    assert job.store.exists("models/step-00000006/metrics.json")
    upload = FileStore.upload

    def refuse(self: FileStore, path: Path, key: str) -> None:
        if path.name == "samples.txt":
            raise StoreUnavailable("no space left")
        upload(self, path, key)

    monkeypatch.setattr(FileStore, "upload", refuse)
    with pytest.raises(StoreError):
        upload_model(job, out)

    assert not job.store.exists("models/step-00000006/metrics.json")
