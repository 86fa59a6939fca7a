"""A model of characters, served by a job under the real supervisor, and asked through the client of OpenAI."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from crucible.config import TrainConfig
from crucible.contract import step_name
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, JobSpec, StopRequest
from crucible.jobs.status import JobState
from crucible.local.serving import ServeRequest, plan_serving
from crucible.store import Store
from crucible.supervision.retry_policy import Placement
from crucible.supervision.supervisor import Supervision
from tasks.trials import HereLauncher, Machine
from tests.agent.runner import Silent
from tests.conftest import unused_port
from tests.waiting import until

CHARACTERS = "\n abcdefghijklmnopqrstuvwxyz"


def trained_job(store: Store, folder: Path) -> Job:
    """A job with a model as the evaluation leaves it."""
    from crucible.datasets.tokenizers.char import CharTokenizer
    from crucible.evaluation.checkpoint import TrainedModel
    from crucible.evaluation.huggingface import export_huggingface
    from crucible.training.model import GPT

    config = TrainConfig(n_layer=2, n_head=2, n_embd=16, block_size=32, device="cpu")
    folder.mkdir()
    model = GPT(config, len(CHARACTERS))
    export_huggingface(TrainedModel(folder, model, config, {"step": 60}), CharTokenizer(CHARACTERS), folder)
    job = Job.create(store, JobSpec(job_id="shakespeare", config=config))
    for path in folder.iterdir():
        job.store.upload(path, f"models/{step_name(60)}/{path.name}")
    return job


def healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def server_on(port: int) -> psutil.Process:
    """The process of `transformers serve`, which listens on that port."""
    for process in psutil.Process().children(recursive=True):
        command = process.cmdline()
        if str(port) in command and command[1:4] == ["-P", "-m", "transformers.cli.transformers"]:
            return process
    raise AssertionError("no server runs")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_answers_comes_back_when_killed_and_stops(
    store: Store, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openai = pytest.importorskip("openai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    port = unused_port()
    planned = plan_serving(
        trained_job(store, tmp_path / "model"), ServeRequest(step=60, port=port, name="served"), tmp_path / "code"
    )
    planned.packed.upload(store)
    job = Job.create(store, JobSpec(job_id="served", script=planned.script, code=planned.packed.record))
    supervision = Supervision(job, HereLauncher(Machine(1, None)), [Placement("local")], Silent())
    with ThreadPoolExecutor(1) as executor:
        ended = executor.submit(supervision.run)
        until(lambda: ended.done() or healthy(port), 600)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)

        answer = client.completions.create(model="shakespeare", prompt="to be", max_tokens=8)
        assert answer.usage.completion_tokens == 8
        assert len(answer.choices[0].text) == 8, "a token of this model is a character"
        parts = list(client.completions.create(model="shakespeare", prompt="to be", max_tokens=8, stream=True))
        assert "".join(part.choices[0].text for part in parts[:-1])
        assert len(parts) == 9
        with pytest.raises(openai.APIStatusError):
            client.completions.create(model="shakespeare", prompt="to be", max_tokens=100)  # beyond its context

        server_on(port).kill()
        until(lambda: ended.done() or (len(job.attempts()) == 2 and healthy(port)), 600)
        assert client.completions.create(model="shakespeare", prompt="or not", max_tokens=8).choices[0].text
        job.attempt(2).request_stop(StopRequest(end_reason=EndReason.CANCELLED, reason="enough"))
        status = ended.result(300)

    assert (status.state, status.reason) == (JobState.CANCELLED, "enough")
    outcomes = [attempt.read_outcome() for attempt in job.attempts()]
    assert [outcome.end_reason for outcome in outcomes if outcome] == [EndReason.KILLED, EndReason.CANCELLED]
    assert not healthy(port)
