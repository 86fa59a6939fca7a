"""`crucible` from Python: what a notebook sees of a job, and what `submit` and `sweep` ask of the server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.states import Cancelled
from prefect.utilities.callables import parameter_schema

import crucible
from crucible.config import TrainConfig
from crucible.errors import ConfigError
from crucible.jobs.records import EndReason, Limits
from crucible.jobs.status import JobState
from crucible.local import access
from crucible.run_config import RunConfig
from crucible.script_config import ScriptConfig
from crucible.store import Store
from flows.parameters import TrainRequest, TrainScriptRequest, TuneRequest, TuneScriptRequest
from flows.train_nanogpt import train_nanogpt
from flows.tune import tune_nanogpt
from scripts.python_api import PAGE, page
from tests.reports.history import Past, interrupted_twice

ROOT = Path(__file__).parents[1]


def test_importing_it_is_light() -> None:
    code = "import sys, crucible; print({'torch', 'numpy', 'pydantic', 'prefect', 'httpx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_finished_job_shows_what_it_did(store: Store, tmp_path: Path) -> None:
    past = interrupted_twice(store, tmp_path)
    past.job.attempt(1).output.write(0, b"first\nsec")
    past.job.attempt(1).output.write(1, b"ond\nlast")
    job = crucible.job("shakespeare", store=store.uri)
    status = job.status()
    assert (status.state, status.step, status.total_steps, status.progress) == ("completed", 2000, 2000, 1.0)
    assert (status.pool, status.attempts) == ("ec2-on-demand", 3)
    assert status.moved == "ec2-spot → ec2-on-demand: lost before"
    assert status.cost_usd == pytest.approx((62 + 72) * 0.36 / 3600 + 82 * 1.0 / 3600)
    assert job.wait() == status
    assert list(job.logs(follow=True)) == ["first", "second", "last"]
    assert job.metrics()["step"].is_monotonic_increasing
    assert [checkpoint.step for checkpoint in job.checkpoints()][:2] == [2000, 1600]
    page = job._repr_html_()
    assert "ec2-spot → ec2-on-demand" in page
    assert 'src="data:image/png;base64,' in page
    with pytest.raises(ConfigError, match="is not running"):
        job.stop()
    with pytest.raises(ConfigError, match="was not started by a flow run"):
        job.resume(max_hours=3)
    assert past.job.read_limits().max_hours == 3
    with pytest.raises(ConfigError, match="there is no job 'other'"):
        crucible.job("other", store=store.uri)


Server = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, store: Store) -> list[dict[str, Any]]:
    """What was asked of a server that has every pool, and says of each flow run that it is running, then completed."""
    created: list[dict[str, Any]] = []
    states = iter([("PENDING", ""), ("RUNNING", ""), ("COMPLETED", "all done")])

    def answer(request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path.endswith("/create_flow_run"):
            created.append({"deployment": path.split("/")[-2], **json.loads(request.content)["parameters"]})
            return httpx.Response(201, json={"id": "run-1"})
        if path.startswith("/deployments/name/"):
            return httpx.Response(200, json={"id": path.split("/")[-1]})
        if path.endswith("/workers/filter"):
            return httpx.Response(200, json=[{"status": "ONLINE"}])
        if path.startswith("/work_pools/"):
            return httpx.Response(200, json={"is_paused": False})
        kind, message = next(states)
        return httpx.Response(200, json={"state": {"type": kind, "message": message, "name": kind}})

    monkeypatch.setattr(
        access,
        "connect_here",
        lambda seconds=30: httpx.Client(transport=httpx.MockTransport(answer), base_url="http://server"),
    )
    return created


def test_what_is_submitted_is_what_the_flows_take(asked: list[dict[str, Any]], store: Store, tmp_path: Path) -> None:
    config = TrainConfig.preset("debug").with_overrides({"max_iters": 70, "learning_rate": 3e-4})
    crucible.submit(config, name="mine", store=store.uri, limits=Limits(max_cost_usd=2), optimize_for="cost")
    crucible.submit("debug", pool="auto", dataset={"source": "shakespeare"}, store=store.uri)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text("print(1)")
    script = ScriptConfig(command=["python", "train.py"], total_steps=9)
    crucible.submit(script, folder=tmp_path / "code", name="own", store=store.uri, limits=Limits(max_hours=1))
    crucible.submit(
        RunConfig.parse({"command": "python train.py", "pool": "docker-gpu"}), folder=tmp_path / "code", store=store.uri
    )
    crucible.sweep({"learning_rate": [1e-3, 1e-4]}, store=store.uri, preset="debug", max_trials=2)
    searched = ScriptConfig(command=["python", "train.py", "--lr={lr}"])
    of_script = crucible.sweep(
        {"lr": [1, 2]}, script=searched, folder=tmp_path / "code", store=store.uri, metric="accuracy", max_cost_usd=3
    )

    own, preset, first_script, second_script, sweep, script_sweep = asked
    search = TuneScriptRequest.model_validate(without_deployment(script_sweep))
    assert (search.search()["metric"], search.max_cost_usd, search.sweep) == ("accuracy", 3, of_script.sweep_id)
    assert search.search()["space"] == {"lr": {"choice": [1, 2]}}
    assert (script_sweep["deployment"], search.command) == ("tune-script", "python train.py '--lr={lr}'")
    assert TrainRequest.model_validate(without_deployment(own)).draft().config() == config
    assert (own["deployment"], own["job"], own["max_cost_usd"], own["pool"]) == ("train-nanogpt", "mine", 2, "local")
    assert TrainRequest.model_validate(without_deployment(preset)).dataset.source == "shakespeare"
    for sent in (first_script, second_script):
        assert TrainScriptRequest.model_validate(without_deployment(sent)).command == "python train.py"
    assert (first_script["job"], first_script["max_hours"], second_script["pool"]) == ("own", 1, "docker-gpu")
    assert first_script["script"] == {"total_steps": 9}
    assert TuneRequest.model_validate(without_deployment(sweep)).max_trials == 2


def without_deployment(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name != "deployment"}


def test_a_running_job_is_monitored_to_its_end(asked: list[dict[str, Any]], store: Store, tmp_path: Path) -> None:
    job = crucible.submit("debug", name="shakespeare", store=store.uri)

    async def states() -> list[tuple[str, str, int]]:
        found = []
        async for status in job.monitor():
            found.append((status.state, status.message, status.step))
            if len(found) == 1:
                past = Past(store, tmp_path)
                past.end(past.attempt(0, 300, [300]), EndReason.COMPLETED, "done")
                past.status(JobState.RUNNING)
            else:
                past.status(JobState.COMPLETED)
        return found

    assert job.status().state == "waiting"
    assert asyncio.run(states()) == [
        ("waiting", "waiting for the worker", 0),
        ("running", "evaluating", 300),
        ("completed", "all done", 300),
    ]
    assert job.wait(timeout_seconds=0).ended


def test_a_real_server_takes_what_is_submitted_and_searched(
    prefect_api: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No worker serves these deployments: what counts is that the server accepts them, and says how they end."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    with get_client(sync_client=True) as client:
        for of in (train_nanogpt, tune_nanogpt):
            client.create_deployment(
                flow_id=client.create_flow_from_name(of.name),
                name=of.name,
                parameter_openapi_schema=parameter_schema(of).model_dump_for_openapi(),
                enforce_parameter_schema=True,
            )
        job = crucible.submit("debug", name="submitted", store=store.uri, limits=Limits(max_attempts=3))
        sweep = crucible.sweep({"learning_rate": [1e-3, 1e-4]}, store=store.uri, sweep="searched", max_trials=2)
        with pytest.raises(ConfigError, match="max_attempts"):
            crucible.submit("debug", store=store.uri, max_attempts=-1)
        runs = {run.name: run for run in client.read_flow_runs()}

        async def states() -> list[str]:
            found = []
            async for status in job.monitor():
                found.append(status.state)
                if len(found) == 1:
                    client.set_flow_run_state(runs["submitted"].id, Cancelled(message="not today"), force=True)
            return found

        assert asyncio.run(states()) == ["waiting", "cancelled"]
    assert runs["submitted"].parameters["max_attempts"] == 3
    assert runs[sweep.sweep_id].parameters["space"] == {"learning_rate": [1e-3, 1e-4]}


def test_estimate_is_a_function_and_a_package(home: Path) -> None:
    import crucible.estimate.request

    by_name, by_config = crucible.estimate("debug"), crucible.estimate(TrainConfig.preset("debug"))
    assert isinstance(by_name, crucible.estimate.request.EstimateResult)
    assert by_name.needs.to_dict() == by_config.needs.to_dict()


def test_the_page_says_what_the_docstrings_say() -> None:
    assert PAGE.read_text() == page(), "run: python -m scripts.python_api"
