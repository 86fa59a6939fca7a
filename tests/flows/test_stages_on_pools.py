"""Fine-tuning whose stages run on other pools, through a real server and workers; the cloud is rehearsed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crucible.billing.costs import attempt_costs
from crucible.jobs.job import Job
from crucible.local.access import connect
from crucible.local.state import State
from crucible.rehearsal.drill.stage import Stage
from crucible.reports import job_report
from tests.training.conftest import write_gpt2
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

BYTES = 256
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
        "preprocess: {command: python prepare.py, output: data.txt, pool: modal}\n"
        "evaluate: {command: python evaluate.py, pools: [local, modal]}\n"
    ),
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    from crucible.rehearsal.modal.drill import modal_stage

    with modal_stage(tmp_path_factory.mktemp("stage")) as stage:
        yield stage


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT-2 in the files of Hugging Face, with a token for each byte."""
    return write_gpt2(tmp_path_factory.mktemp("gpt2"), BYTES, block_size=48, n_layer=3, n_head=2, n_embd=16)


def run_to_its_end(stage: Stage, deployment: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The final state of a run of the deployment."""
    printed = stage.prefect("deployment", "run", deployment, "--params", json.dumps(parameters))
    run = printed.split("UUID:")[1].split()[0]
    seen: dict[str, Any] = {}

    def over() -> bool:
        with connect(stage.home, State.load(stage.home).api_url or "", seconds=60) as client:
            seen.update(client.get(f"/flow_runs/{run}").json()["state"])
        return seen["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

    until(over, 1500)
    return seen


def test_a_gpt2_is_fine_tuned_with_its_stages_on_a_cloud(stage: Stage, gpt2: Path) -> None:
    request = {
        "preset": "debug",
        "job": "tuned",
        "config": {"init_from": str(gpt2), "max_iters": 20, "eval_interval": 10, "eval_iters": 2},
        "dataset": {"source": "python-stdlib", "max_bytes": 50_000, "tokenizer": "byte"},
        "preprocess_pool": "modal",
        "evaluate_pool": "modal",
    }
    state = run_to_its_end(stage, "train-nanogpt/train-nanogpt", request)
    assert state["type"] == "COMPLETED", state
    job = Job(stage.store, "tuned")
    spec = job.read_spec()
    assert spec.init_source == str(gpt2)
    assert spec.config is not None
    assert (spec.config.n_layer, spec.config.n_embd, spec.config.block_size) == (3, 16, 48), "of the weights"
    bill = {cost.stage: cost for cost in attempt_costs(stage.store, {}, job="tuned")}
    assert (bill["preprocess"].pool, bill["train"].pool, bill["evaluate"].pool) == ("modal", "local", "modal")
    assert bill["preprocess"].usd > 0
    assert bill["evaluate"].usd > 0
    page = job_report(job)
    print(page)
    assert "| preprocess | modal<br>" in page
    assert "| evaluate | modal<br>T4 |" in page

    again = {**request, "job": "tuned-again", "preprocess_pool": "local", "run_evaluation": False}
    again["config"] = {
        "init_from": "job:tuned@best",
        "max_iters": 5,
        "warmup_iters": 1,
        "eval_interval": 5,
        "eval_iters": 2,
    }
    state = run_to_its_end(stage, "train-nanogpt/train-nanogpt", again)
    assert state["type"] == "COMPLETED", state


def test_a_script_is_prepared_on_one_pool_and_evaluated_on_two_side_by_side(stage: Stage, tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    request = {"code": str(tmp_path), "job": "mine", "store": stage.store.uri}
    state = run_to_its_end(stage, "train-script/train-script", request)
    assert state["type"] == "COMPLETED", state
    bill = attempt_costs(stage.store, {}, job="mine")
    assert {(cost.stage, cost.pool) for cost in bill} == {
        ("preprocess", "modal"),
        ("train", "local"),
        ("evaluate", "local"),
        ("evaluate", "modal"),
    }
    assert all((cost.usd > 0) == (cost.pool == "modal") for cost in bill)
    job = Job(stage.store, "mine")
    assert job.cost_usd() == pytest.approx(sum(cost.usd for cost in bill))
    print(job_report(job))
    with connect(stage.home, State.load(stage.home).api_url or "", seconds=60) as client:
        [table] = client.post("/artifacts/filter", json={"artifacts": {"key": {"any_": ["evaluations-mine"]}}}).json()
    rows = {row["pool"]: row["score"] for row in json.loads(table["data"])}
    assert rows == {"local": 16, "modal": 16}
