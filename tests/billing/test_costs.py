"""The bill: every way of adding up the attempts gives the same sum, to the millionth of a dollar."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from crucible.agent.cost_meter import CostMeter
from crucible.billing import costs
from crucible.billing.budgets import BudgetLimit, budget_state, due_alerts
from crucible.billing.costs import AttemptCost
from crucible.cli import cost as command
from crucible.config import TrainConfig
from crucible.errors import ConfigError
from crucible.jobs.job import Job
from crucible.jobs.records import Claim, EndReason, Heartbeat, JobSpec, Launch, Outcome
from crucible.reports.summary import summarise
from crucible.resources import Resources
from crucible.store import Store
from tests.catalog.offers import MODAL, ON_DEMAND, SPOT, offer_like

pytestmark = pytest.mark.usefixtures("home")

OFFERS = {offer.key: offer for offer in (SPOT, ON_DEMAND, MODAL)}
NOON = datetime(2026, 5, 7, 12, tzinfo=UTC)
# Five attempts on three pools, with costs whose cents do not add up when each is rounded.
FIVE = [
    ("ec2-spot", "g.small", 1800.0, 0.5, 0.333333),
    ("ec2-spot", "g.small", 600.5, 0.5, 0.083403),
    ("ec2-on-demand", "g.small", 1234.5, 1.5, 0.514375),
    ("modal", "L4", 777.7, 0.8, 0.172822),
    ("local", "this-machine", 60.0, 0.0, 0.0),
]


def job_of(store: Store, name: str = "five", project: str = "nano", owner: str = "ada", day: int = 7) -> Job:
    job = Job.create(store, JobSpec(job_id=name, project=project, owner=owner))
    for number, (pool, instance, seconds, price, usd) in enumerate(FIVE, 1):
        job.decide(Launch(number=number, pool=pool, instance=instance, usd_per_hour=price, reason="test"))
        began = NOON.replace(day=day) + timedelta(hours=number)
        job.attempt(number).take(Claim(number=number, claimed_at=began))
        reason = EndReason.COMPLETED if number == 5 else EndReason.INTERRUPTED
        job.attempt(number).end(
            Outcome(end_reason=reason, message="", seconds=seconds, cost_usd=usd, first_step_after_seconds=30.0)
        )
    return job


def test_the_bill_is_the_sum_of_its_attempts_however_it_is_added_up(store: Store, tmp_path: Path) -> None:
    job = job_of(store)
    found = costs.attempt_costs(store, OFFERS)
    expected = sum(round(usd * 1_000_000) for *_, usd in FIVE)
    assert len(found) == 5
    assert costs.total_micro_usd(found) == expected
    assert job.cost_usd() == pytest.approx(expected / 1e6, abs=1e-9)
    for by in costs.GROUPS:
        assert sum(group.micro_usd for group in costs.breakdown(found, by)) == expected, by
    lines = list(csv.DictReader(io.StringIO(costs.as_csv(found))))
    assert sum(round(float(line["usd"]) * 1e6) for line in lines) == expected
    told = json.loads(run("--store", str(tmp_path / "store"), "--by", "pool", "--json"))
    assert told["total_usd"] == f"{expected / 1e6:.6f}"
    assert round(sum(group["usd"] for group in told["groups"]) * 1e6) == expected
    assert f"total ${expected / 1e6:.6f} over 5 attempts" in run("--store", str(tmp_path / "store"))
    printed = csv.DictReader(io.StringIO(run("--store", str(tmp_path / "store"), "--csv")))
    assert sum(round(float(line["usd"]) * 1e6) for line in printed) == expected


def run(*arguments: str) -> str:
    app = typer.Typer()
    command.register(app)
    app.command("other")(lambda: None)
    return CliRunner().invoke(app, ["cost", *arguments], catch_exceptions=False).stdout


def test_savings_compare_with_the_same_seconds_on_demand(store: Store) -> None:
    job_of(store)
    found = {cost.attempt: cost for cost in costs.attempt_costs(store, OFFERS)}
    assert found[1].on_demand_micro_usd == 750_000, "half an hour at $1.50"
    assert costs.saved_share([found[1]]) == pytest.approx(1 - 0.333333 / 0.75)
    assert costs.saved_share([found[3]]) == 0.0
    assert costs.saved_share([found[5]]) == 0.0, "one's own machine saves nothing against itself"
    assert costs.saved_share([]) == 0.0


def test_a_running_attempt_counts_with_its_last_sign_of_life_and_an_unborn_one_not_at_all(store: Store) -> None:
    job = Job.create(store, JobSpec(job_id="running"))
    for number in (1, 2):
        job.decide(Launch(number=number, pool="ec2-spot", instance="g.small", usd_per_hour=0.5, reason="test"))
    job.attempt(1).take(Claim(number=1))
    job.attempt(1).write_heartbeat(Heartbeat(sequence=3, phase="train", seconds=360.0, cost_usd=0.05))
    (only,) = costs.attempt_costs(store, OFFERS)
    assert (only.end_reason, only.micro_usd) == ("running", 50_000)


def test_a_period_and_a_job_can_be_picked(store: Store) -> None:
    job_of(store, "early", day=1)
    job_of(store, "late", day=20)
    middle = NOON.replace(day=10)
    assert {cost.job for cost in costs.attempt_costs(store, OFFERS, since=middle)} == {"late"}
    assert {cost.job for cost in costs.attempt_costs(store, OFFERS, until=middle)} == {"early"}
    assert {cost.job for cost in costs.attempt_costs(store, OFFERS, job="early")} == {"early"}
    with pytest.raises(ConfigError, match="there is no job 'none'"):
        costs.attempt_costs(store, OFFERS, job="none")


def test_nonsense_is_refused(tmp_path: Path) -> None:
    for arguments, message in (
        (("--by", "colour"), "by is 'colour'"),
        (("--since", "yesterday"), "since is 'yesterday'"),
        (("--since", "99999999999d"), "since is '99999999999d'"),
        (("--since", "9e99h"), "since is '9e99h'"),
        (("--json", "--csv"), "exclude each other"),
    ):
        with pytest.raises(ConfigError, match=message):
            run("--store", str(tmp_path), *arguments)
    assert "no attempt has cost anything yet" in run("--store", str(tmp_path))
    assert run("--store", str(tmp_path), "--csv").startswith("job,attempt,stage,pool,")


def an_attempt(**changes: object) -> AttemptCost:
    values: dict[str, object] = {
        "job": "a", "attempt": 1, "stage": "train", "pool": "ec2-spot", "instance": "g.small", "gpu": "L4",
        "project": "nano", "owner": "ada", "started_at": NOON, "end_reason": "completed", "seconds": 1000.0,
        "usd_per_hour": 3.6, "micro_usd": 1_000_000, "on_demand_micro_usd": 1_000_000, "idle_seconds": 0.0,
    }  # fmt: skip
    return AttemptCost(**(values | changes))  # type: ignore[arg-type]


def test_advice_is_given_in_figures_and_only_when_there_is_some() -> None:
    assert costs.advice([an_attempt()]) == []
    assert costs.advice([]) == []
    assert costs.advice([an_attempt(idle_seconds=250.0)])[0].startswith(
        "25% of the money ($0.25) went into starting up"
    )
    assert costs.advice([an_attempt(pool="ec2-on-demand")])[0].startswith(
        "100% of the money ($1.00) was paid on demand"
    )
    assert costs.advice([an_attempt(gpus=4, unused_gpus=3)])[0].startswith(
        "$0.75 were paid for GPUs that stood idle in a"
    )


@pytest.mark.parametrize(
    ("steps", "nodes", "wanted", "unused"), [(2, 1, None, 2), (1, 2, None, 1), (4, 1, 2, 2)], ids=str
)
def test_gpus_that_cannot_be_used_are_counted(
    store: Store, steps: int, nodes: int, wanted: int | None, unused: int
) -> None:
    four = offer_like(SPOT, instance="g.four", gpus=4)
    config, resources = TrainConfig(gradient_accumulation_steps=steps), Resources(gpus=wanted)
    job = Job.create(store, JobSpec(job_id="four", config=config, resources=resources))
    job.decide(Launch(number=1, pool="ec2-spot", instance="g.four", usd_per_hour=2, reason="test"))
    job.attempt(1).take(Claim(number=1, nodes=nodes))
    job.attempt(1).end(Outcome(end_reason=EndReason.COMPLETED, message="", seconds=60, cost_usd=0.03))
    (only,) = costs.attempt_costs(store, {four.key: four})
    assert only.unused_gpus == unused


def test_a_budget_counts_its_own_project_owner_and_period() -> None:
    spent = [
        an_attempt(),
        an_attempt(project="other"),
        an_attempt(owner="bob"),
        an_attempt(started_at=NOON - timedelta(days=1)),
        an_attempt(started_at=NOON.replace(month=4)),
    ]

    def usd(**limits: object) -> float:
        return budget_state(BudgetLimit("b", 10, **limits), spent, NOON).spent_usd  # type: ignore[arg-type]

    assert usd() == 4
    assert usd(period="day") == 3
    assert usd(project="nano") == 3
    assert usd(project="nano", owner="ada", period="day") == 1
    december = BudgetLimit("b", 1)
    assert december.ends(datetime(2026, 12, 31, 23, tzinfo=UTC)) == datetime(2027, 1, 1, tzinfo=UTC)


def test_each_alert_is_given_once_per_period(store: Store) -> None:
    limit = BudgetLimit("b", 10.0, period="day")
    state = budget_state(limit, [an_attempt(micro_usd=8_500_000)], NOON)
    assert [alert.percent for alert in due_alerts(store, state, NOON)] == [50, 80]
    assert due_alerts(store, state, NOON) == []
    over = budget_state(limit, [an_attempt(micro_usd=12_000_000)], NOON)
    (alert,) = due_alerts(store, over, NOON)
    assert alert.sentence() == "100 % reached: budget b: $12.00 of $10.00 spent this day (120 %)"
    assert [alert.percent for alert in due_alerts(store, over, NOON + timedelta(days=1))] == [50, 80, 100]


def test_a_budget_must_be_money() -> None:
    with pytest.raises(ConfigError, match="usd of budget b is -1"):
        BudgetLimit("b", -1)


def test_the_bill_follows_the_machine_that_ran_the_attempt(store: Store) -> None:
    """Planned: g.small at $0.5. What came: a larger machine, whose price rose while it ran."""
    big = offer_like(SPOT, instance="g.large", usd_per_hour=0.9, on_demand_usd_per_hour=4.0, gpu="A10G")
    job = Job.create(store, JobSpec(job_id="moved"))
    for number in (1, 2):
        job.decide(Launch(number=number, pool="ec2-spot", instance="g.small", usd_per_hour=0.5, reason="test"))
        job.attempt(number).take(Claim(number=number, instance="g.large", usd_per_hour=0.8))
    meter = CostMeter(0.8, clock := Clock())
    clock.now += 1800
    meter.set_price(1.2)
    clock.now += 1800
    assert meter.usd() == pytest.approx(0.4 + 0.6)
    outcome = Outcome(end_reason=EndReason.INTERRUPTED, message="", seconds=meter.seconds())
    job.attempt(1).end(outcome.model_copy(update={"cost_usd": meter.usd(), "usd_per_hour": meter.usd_per_hour}))
    job.attempt(2).write_heartbeat(Heartbeat(sequence=1, phase="train", seconds=3600, cost_usd=0.8))
    first, second = costs.attempt_costs(store, OFFERS | {big.key: big})
    assert (first.instance, first.gpu, first.usd_per_hour, first.usd) == ("g.large", "A10G", 1.2, 1.0)
    assert first.on_demand_micro_usd == 4_000_000, "the same hour of the machine that ran, not of the planned one"
    assert (second.usd_per_hour, second.usd) == (0.8, 0.8)
    (unknown, _) = costs.attempt_costs(store, OFFERS)
    assert unknown.on_demand_micro_usd == unknown.micro_usd, "no savings are claimed for a machine without a price"


def test_the_bill_of_several_nodes_is_the_sum_over_their_own_machines(store: Store) -> None:
    """Planned: three times g.small at $0.5. What came: g.small, g.large and g.small, each at a price of its own."""
    big = offer_like(SPOT, instance="g.large", usd_per_hour=0.9, on_demand_usd_per_hour=4.0, gpu="A10G")
    job = Job.create(store, JobSpec(job_id="several"))
    job.decide(Launch(number=1, pool="ec2-spot", instance="g.small", nodes=3, usd_per_hour=1.5, reason="test"))
    job.attempt(1).take(Claim(number=1, instance="g.small", nodes=3, usd_per_hour=1.2))
    meter = CostMeter(1.2, clock := Clock(), nodes=3)
    assert meter.usd_per_hour == 1.2
    clock.now += 600
    assert meter.set_price(0.9, node=1), "the first price of a node counts from the start"
    assert not meter.set_price(0.4, node=2), "it was taken for that"
    clock.now += 1200
    assert meter.usd_per_hour == 1.7
    assert meter.set_price(1.1, node=1), "a later one counts from then on"
    assert meter.set_price(0.6), "and the first node's own"
    clock.now += 1800
    spent = 0.5 * (0.4 + 0.6) + 0.5 * (0.9 + 1.1) + 0.4
    assert (meter.usd(), meter.usd_per_hour) == (pytest.approx(spent), 2.1)
    ended = Outcome(
        end_reason=EndReason.INTERRUPTED,
        message="",
        seconds=meter.seconds(),
        cost_usd=meter.usd(),
        usd_per_hour=meter.usd_per_hour,
        further_instances=["g.large", "g.small"],
    )
    job.attempt(1).end(ended)
    (cost,) = costs.attempt_costs(store, OFFERS | {big.key: big})
    assert (cost.instance, cost.usd_per_hour, cost.usd) == ("g.small + g.large", 2.1, pytest.approx(spent))
    assert cost.on_demand_micro_usd == 7_000_000, "an hour of g.small twice and of g.large once"
    (unknown,) = costs.attempt_costs(store, OFFERS)
    assert unknown.on_demand_micro_usd == unknown.micro_usd, "no savings are claimed where one has no price"
    (shown,) = summarise(job).attempts
    assert (shown.shown_machines, shown.nodes, shown.cost_usd) == ("g.small x 2 + g.large", 3, cost.usd)


class Clock:
    """Time that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"job_id": 7}', None])
def test_a_damaged_record_costs_only_its_own_line(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes | None
) -> None:
    job_of(store, "sound")
    for name, record in (("broken", "job.json"), ("half", "attempts/0002/outcome.json")):
        job_of(store, name)
        file = tmp_path / "store" / "jobs" / name / record
        file.unlink()
        if damage is None:
            file.mkdir()
        else:
            file.write_bytes(damage)
    (tmp_path / "store" / "jobs" / "not a job").mkdir()
    problems: list[str] = []
    found = costs.attempt_costs(store, OFFERS, on_damage=problems.append)
    assert {cost.job for cost in found} >= {"sound", "half"}
    assert [cost.attempt for cost in found if cost.job == "sound"] == [1, 2, 3, 4, 5]
    assert [cost.attempt for cost in found if cost.job == "half"] == [1, 3, 4, 5]
    assert any("jobs/broken/job.json" in problem for problem in problems)
    assert any("attempts/0002/outcome.json" in problem for problem in problems)
    assert "over 9 attempts" in run("--store", str(tmp_path / "store"))


def test_a_spreadsheet_does_not_run_what_a_person_wrote(store: Store) -> None:
    job_of(store, project="=HYPERLINK(1)", owner="@ada")
    (line, *_) = csv.DictReader(io.StringIO(costs.as_csv(costs.attempt_costs(store, OFFERS))))
    assert (line["project"], line["owner"]) == ("'=HYPERLINK(1)", "'@ada")
    assert costs.as_rows(costs.attempt_costs(store, OFFERS))[0]["project"] == "=HYPERLINK(1)"


def test_what_has_ended_is_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared budget is looked at every minute: on S3 each record costs a request."""
    job_of(store)
    running = Job.create(store, JobSpec(job_id="running"))
    running.decide(Launch(number=1, pool="ec2-spot", instance="g.small", usd_per_hour=0.5, reason="test"))
    attempt = running.attempt(1).take(Claim(number=1, claimed_at=NOON))
    attempt.write_heartbeat(Heartbeat(sequence=1, phase="train", seconds=60, cost_usd=0.1))
    bill = costs.Bill(store, OFFERS)
    first = bill.read()

    read, keys = type(store).read, []
    monkeypatch.setattr(type(store), "read", lambda self, key: keys.append(key) or read(self, key))
    assert bill.read() == first
    assert set(keys) == {f"attempts/0001/{name}.json" for name in ("launch", "claim", "outcome", "heartbeat")}

    attempt.end(Outcome(end_reason=EndReason.COMPLETED, message="", seconds=120, cost_usd=0.2))
    assert costs.total_micro_usd(bill.read()) == costs.total_micro_usd(first) + 100_000
    assert bill.read() == costs.attempt_costs(store, OFFERS)
