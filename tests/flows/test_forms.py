"""What the Prefect form shows and what the server accepts, before anything is started."""

from __future__ import annotations

from typing import Annotated, Any, get_args

import pytest
from prefect.client.orchestration import get_client
from prefect.exceptions import ParameterTypeError, PrefectHTTPStatusError
from prefect.flows import Flow
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel, Field, ValidationError

from crucible.resources import Resources
from flows.cleanup import cleanup
from flows.cost_report import cost_report
from flows.evaluate import evaluate
from flows.forms import described, takes
from flows.parameters import Pool, TrainOverrides, TrainRequest, TrainScriptRequest, TuneRequest, TuneScriptRequest
from flows.recommend import recommend
from flows.train import train
from flows.train_nanogpt import train_nanogpt
from flows.train_script import train_script
from flows.tune import tune_nanogpt
from flows.tune_script import tune_script
from tasks.stage_runs import planned_machine
from tests.conftest import PrefectServer

FLOWS = [train_nanogpt, train_script, tune_nanogpt, tune_script, train, evaluate, recommend, cost_report]
FORMS = [
    (train_nanogpt, TrainRequest),
    (train_script, TrainScriptRequest),
    (tune_nanogpt, TuneRequest),
    (tune_script, TuneScriptRequest),
]
MODELS = ("config", "dataset", "script", "resources", "preprocess", "evaluate")
"""Of these the form has a reference, and the default written out."""
HUGE = 10**30


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_the_form_describes_every_parameter(flow: Flow[..., Any]) -> None:
    properties = parameter_schema(flow).properties
    assert [name for name, entry in properties.items() if not entry.get("description")] == []


@pytest.mark.parametrize(("flow", "request_"), FORMS)
def test_the_form_is_flat_and_has_the_bounds_of_the_request(flow: Flow[..., Any], request_: type[BaseModel]) -> None:
    form, model = parameter_schema(flow).properties, request_.model_json_schema()["properties"]
    assert list(form) == list(model)
    shown = {"minimum", "maximum", "exclusiveMinimum", "enum", "anyOf", "type", "default", "description"}
    for name, entry in model.items():
        if name not in MODELS:
            assert {k: v for k, v in form[name].items() if k in shown} == {k: v for k, v in entry.items() if k in shown}


@pytest.mark.parametrize("pool", [pool for pool in get_args(Pool) if pool != "auto"])
def test_a_stage_can_go_to_every_pool_that_an_attempt_can(pool: str) -> None:
    request = TrainRequest.model_validate({"preprocess_pool": pool, "evaluate_pool": pool})
    assert request.preprocess_pool == request.evaluate_pool == pool
    if pool != "skypilot":  # which has no machines before their prices are imported
        assert planned_machine(pool, Resources(gpus=0)).pool == pool


def test_a_request_is_made_of_what_the_form_sends() -> None:
    sent = {"preset": "debug", "config": {"n_layer": 6}, "pool": "auto", "max_cost_usd": 2.5}
    request = TrainRequest.model_validate(sent)
    assert request.draft().config().n_layer == 6
    assert request.limits().max_cost_usd == 2.5
    assert request.config == TrainOverrides.model_validate({"n_layer": 6})
    with pytest.raises(ValidationError):
        TrainRequest.model_validate({"max_atempts": 3})


def test_signatures_of_one_s_own_show_descriptions_and_bounds_too() -> None:
    @described
    def with_bounds(
        step: Annotated[int | None, Field(ge=0, description="Which.")] = None, name: str = "", *, required: int
    ) -> None: ...

    class Request(BaseModel):
        step: int | None = Field(None, ge=0, description="Which.")

    @takes(Request)
    def taking(**given: Any) -> None: ...

    assert parameter_schema(with_bounds).properties["step"] == parameter_schema(taking).properties["step"]
    assert parameter_schema(with_bounds).properties["step"]["anyOf"][0]["minimum"] == 0
    assert parameter_schema(with_bounds).required == ["required"]


@pytest.fixture(scope="module")
def deployed(prefect_server: PrefectServer) -> dict[str, str]:
    """Ids of deployments that no worker serves, by the name of their flow."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect_server.api_url}), get_client(sync_client=True) as client:
        return {
            flow.name: str(
                client.create_deployment(
                    flow_id=client.create_flow_from_name(flow.name),
                    name="forms",
                    parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(),
                    enforce_parameter_schema=True,
                )
            )
            for flow in (train_nanogpt, tune_nanogpt, train)
        }


REFUSED = [
    ("train-nanogpt", {"max_attempts": 0}),
    ("train-nanogpt", {"max_attempts": HUGE}),
    ("train-nanogpt", {"max_cost_usd": -1}),
    ("train-nanogpt", {"max_cost_usd": 0}),
    ("train-nanogpt", {"max_cost_usd": HUGE}),
    ("train-nanogpt", {"max_hours": -0.5}),
    ("train-nanogpt", {"max_hours": HUGE}),
    ("train-nanogpt", {"config": {"eval_interval": HUGE}}),
    ("train-nanogpt", {"dataset": {"max_bytes": HUGE}}),
    ("train-nanogpt", {"pool": "cloud"}),
    ("tune-nanogpt", {"parallelism": 0}),
    ("tune-nanogpt", {"max_trials": HUGE}),
    ("tune-nanogpt", {"seed": -1}),
    ("train", {"job": "a", "attempt": 0}),
    ("train", {"job": "a", "attempt": HUGE}),
]


@pytest.mark.parametrize(("name", "parameters"), REFUSED, ids=lambda value: str(value)[:40])
def test_the_server_refuses_what_is_out_of_bounds(
    prefect_api: str, deployed: dict[str, str], name: str, parameters: dict[str, Any]
) -> None:
    with get_client(sync_client=True) as client, pytest.raises(PrefectHTTPStatusError) as refused:
        client.create_flow_run_from_deployment(deployed[name], parameters=parameters)
    assert refused.value.response.status_code == 409
    *_, field = (key for part in [parameters, *parameters.values()] if isinstance(part, dict) for key in part)
    assert f"field '{field}'" in refused.value.response.json()["detail"].replace("config.", "").replace("dataset.", "")


def test_the_server_refuses_an_unknown_key(prefect_api: str, deployed: dict[str, str]) -> None:
    with get_client(sync_client=True) as client, pytest.raises(PrefectHTTPStatusError) as refused:
        client.create_flow_run_from_deployment(deployed["train-nanogpt"], parameters={"config": {"n_layers": 3}})
    assert refused.value.response.status_code == 409
    assert "n_layers" in refused.value.response.json()["detail"]


@pytest.mark.parametrize("nodes", [2, "2", "2..4"])
def test_the_server_takes_a_number_of_nodes_as_people_write_it(
    prefect_api: str, deployed: dict[str, str], nodes: int | str
) -> None:
    with get_client(sync_client=True) as client:
        client.create_flow_run_from_deployment(
            deployed["train-nanogpt"], parameters={"pool": "local", "resources": {"nodes": nodes}}
        )


@pytest.mark.parametrize("given", [{"days": 1e9}, {"days": float("inf")}, {"quota_gb": float("inf")}])
def test_a_cleanup_of_days_that_no_calendar_has_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(ParameterTypeError, match="less than or equal"):
        cleanup.validate_parameters(given)
