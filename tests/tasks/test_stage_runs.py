"""A stage on another pool is waited for, repeated when its machine goes away, and named when it fails."""

from __future__ import annotations

import signal
import time
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelled, Completed, Crashed, Failed, Running

from crucible.errors import ServiceError, StoreUnavailable
from crucible.jobs.records import EndReason, JobSpec, Launch, StopRequest, now
from crucible.jobs.stage_records import StageRun
from crucible.resources import Resources
from tasks import deployment_runs, stage_runs
from tests.supervision.deployed import deployed_run, state_of

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Let the stage's runs end in these states; returns what was asked of each."""

    def prepare(*states: State) -> list[dict[str, Any]]:
        left, asked = list(states), []

        def start(deployment: str, **given: Any) -> Any:
            asked.append({"deployment": deployment, **given})
            with get_client(sync_client=True) as client:
                return client.read_flow_run(uuid.UUID(deployed_run(left.pop(0))))

        monkeypatch.setattr(deployment_runs, "run_deployment", start)
        return asked

    monkeypatch.setattr(stage_runs, "get_run_logger", lambda: SimpleNamespace(info=print, warning=print))
    return prepare


@flow(name="waits-for-a-stage", persist_result=False)
def waits(pool: str = "docker-gpu") -> None:
    stage_runs.run_stage(
        stage_runs.StageRequest("evaluate", pool, JobSpec(job_id="mine"), {"job": "mine"}, Resources(gpus=1))
    )


def test_a_crashed_stage_is_repeated_and_a_failed_one_is_not(
    ends: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ends(Crashed(message="the machine went away"), Completed())
    waits()
    assert [entry["deployment"] for entry in asked] == ["evaluate/docker-gpu"] * 2
    assert len({entry["idempotency_key"] for entry in asked}) == 2
    assert asked[0]["job_variables"] == {"gpus": "1"}
    assert {"job:mine", "stage:evaluate", "pool:docker-gpu"} <= set(asked[0]["tags"])
    asked = ends(Completed())
    waits("modal")
    assert asked[0]["job_variables"] == {"gpu": ["T4"], "usd_per_hour": 0.9254}, "what is billed is what runs"
    machine = Launch(number=1, pool="skypilot", reason="", instance="gcp/us-central1/g2-standard-4+L4:1/spot")
    with monkeypatch.context() as patch:  # the catalog has such machines once their prices are imported
        patch.setattr(stage_runs, "planned_machine", lambda pool, wanted: machine)
        asked = ends(Completed())
        waits("skypilot")
    assert asked[0]["job_variables"]["instance_type"] == "g2-standard-4"
    ends(Failed(message="no such checkpoint"))
    with pytest.raises(ServiceError, match="evaluate on docker-gpu ended as Failed: no such checkpoint"):
        waits()


def flow_run_of(state: State, seconds: float, *tags: str) -> FlowRun:
    """A run that a machine took up so many seconds ago, or that took so long."""
    began, over = now() - timedelta(seconds=seconds), state.is_final()
    return FlowRun(flow_id=uuid.uuid4(), state=state, start_time=began, end_time=now() if over else None, tags=[*tags])


@pytest.mark.parametrize(
    ("pool", "wanted", "tags", "instance", "usd_per_hour"),
    [
        ("modal", Resources(gpus=0), [], "", stage_runs.MODAL_CPU_USD_PER_HOUR),
        ("modal", Resources(), [], "T4", 0.9254),
        ("ec2-on-demand", Resources(gpus=0), ["instance:g5.xlarge", "lifecycle:on-demand"], "g5.xlarge", 1.006),
        ("local", Resources(), [], "", 0.0),
    ],
)
def test_a_stage_is_billed_at_the_price_of_its_machine(
    pool: str, wanted: Resources, tags: list[str], instance: str, usd_per_hour: float
) -> None:
    request = stage_runs.StageRequest("evaluate", pool, JobSpec(job_id="mine"), {}, wanted)
    bill = stage_runs._Meter(request).read(flow_run_of(Completed(), 1800, *tags))
    assert bill is not None
    assert (bill.instance, bill.usd_per_hour, bill.end) == (instance, usd_per_hour, "completed")
    assert bill.cost_usd == pytest.approx(usd_per_hour / 2, abs=1e-3)
    assert stage_runs._Meter(request).read(FlowRun(flow_id=uuid.uuid4())) is None, "no machine yet"


def test_a_store_that_is_away_for_a_while_ends_no_stage_and_loses_no_bill(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [flow_run_of(Running(), 1), flow_run_of(Running(), 2), flow_run_of(Completed(), 3)]
    client = SimpleNamespace(read_flow_run=lambda _: seen.pop(0) if len(seen) > 1 else seen[0])
    monkeypatch.setattr(stage_runs, "get_client", lambda **_: nullcontext(client))
    monkeypatch.setattr(stage_runs, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(stage_runs, "get_run_logger", lambda: SimpleNamespace(info=print, warning=print))
    recorded, refusals = list[StageRun](), [True, False, True, True]

    def record(bill: StageRun) -> None:
        if refusals and refusals.pop(0):
            raise StoreUnavailable("s3 asks to slow down")
        recorded.append(bill)

    request = stage_runs.StageRequest("evaluate", "modal", JobSpec(job_id="mine"), {}, Resources(), record=record)
    state, cost_usd = stage_runs._follow(flow_run_of(Running(), 0), stage_runs._Meter(request), None)
    assert state.is_completed()
    assert [bill.end for bill in recorded] == ["", "completed"]
    assert recorded[-1].cost_usd == cost_usd > 0


def test_a_stage_ends_at_the_jobs_cap(
    ends: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends(Running())
    dear = Launch(number=1, pool="modal", reason="", usd_per_hour=1e9)
    monkeypatch.setattr(stage_runs, "planned_machine", lambda pool, wanted: dear)
    bills: list[StageRun] = []

    @flow(name="pays-for-a-stage", persist_result=False)
    def pays(left: float) -> None:
        stage_runs.run_stage(
            stage_runs.StageRequest("evaluate", "modal", JobSpec(job_id="mine"), {}, Resources(), left, bills.append)
        )

    with pytest.raises(
        stage_runs.StageOverBudget, match=r"evaluate on modal was stopped at .* max_cost_usd is used up"
    ):
        pays(0.01)
    assert state_of(bills[-1].name) is StateType.CANCELLING
    assert bills[-1].end == "cancelled", "it is not shown as running for ever"
    with pytest.raises(stage_runs.StageOverBudget, match="was not started"):
        pays(0.0)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_stage_is_cancelled_with_the_run_that_waits_for_it_and_only_then(
    ends: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    """A pause as well: the machine costs money. Resumed, the run starts another one. A restart finds it instead."""
    ends(Running())
    stop = StopRequest(end_reason=EndReason.INTERRUPTED, reason="paused in Prefect") if wanted else None
    bills: list[StageRun] = []

    def interrupt(_: float) -> None:
        raise TerminationSignal(signal.SIGTERM)

    request = stage_runs.StageRequest(
        "evaluate",
        "modal",
        JobSpec(job_id="mine"),
        {},
        Resources(),
        record=bills.append,
        stop_requested=lambda: stop,
    )
    with monkeypatch.context() as patch:
        patch.setattr(stage_runs, "time", SimpleNamespace(monotonic=time.monotonic, sleep=interrupt))
        with pytest.raises(TerminationSignal):
            stage_runs.run_stage(request)
    assert state_of(bills[-1].name) is (StateType.CANCELLING if wanted else StateType.RUNNING)
    assert bills[-1].end == ("cancelled" if wanted else "")

    asked = ends(Cancelled(), Completed())
    stage_runs.run_stage(request)
    assert [entry["idempotency_key"].rpartition("/")[2] for entry in asked] == ["1", "2"]


def test_a_stage_ends_when_a_budget_that_jobs_share_is_used_up(ends: Callable[..., list[dict[str, Any]]]) -> None:
    reached: list[str] = []

    def record(bill: StageRun) -> None:
        reached.append("budget team: $10.00 of $10.00 spent")

    request = stage_runs.StageRequest(
        "evaluate",
        "modal",
        JobSpec(job_id="mine"),
        {},
        Resources(),
        record=record,
        over_budget=lambda: reached[0] if reached else None,
    )
    ends(Running())
    with pytest.raises(stage_runs.StageOverBudget, match=r"was stopped at .*: budget team"):
        stage_runs.run_stage(request)
    with pytest.raises(stage_runs.StageOverBudget, match="was not started: budget team"):
        stage_runs.run_stage(request)


def test_a_pool_of_an_earlier_version_names_the_command_that_updates_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_runs, "get_run_logger", lambda: SimpleNamespace(info=print, warning=print))
    with pytest.raises(
        ServiceError, match=r"no deployment evaluate/docker-gpu .* set up again: crucible up --pool docker-gpu"
    ):
        waits()
