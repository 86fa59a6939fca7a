"""Crucible's bill compared with the clouds': AWS Cost Explorer by the tag `crucible:job`, Modal by the tag `job`.

Both are late (Modal by minutes, AWS by up to a day) and include what attempts do not measure: boot, disks, traffic. AWS
reports by the tag only once it is activated as a cost allocation tag, and separates ECS tasks on one machine only with
split cost allocation data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from crucible.billing.costs import MICRO, AttemptCost
from crucible.catalog.prices import query_cloud

_AWS_TAG, _MODAL_TAG = "crucible:job", "job"
_AWS_POOLS = ("ec2-spot", "ec2-on-demand")


@dataclass(frozen=True)
class Reconciled:
    """One job on one cloud: the sum of its attempts, and what the cloud billed."""

    cloud: str
    job: str
    attempts_usd: float
    billed_usd: float

    @property
    def difference_usd(self) -> float:
        return self.billed_usd - self.attempts_usd


def reconcile(
    costs: Sequence[AttemptCost], since: datetime, until: datetime
) -> tuple[list[Reconciled], tuple[str, ...]]:
    """Compare per job, largest difference first; the messages name the clouds that could not be queried, and why."""
    clouds: tuple[tuple[str, str, tuple[str, ...], Callable[[], dict[str, float]]], ...] = (
        ("AWS", "ec2-spot", _AWS_POOLS, lambda: billed_by_aws(since, until)),
        ("Modal", "modal", ("modal",), lambda: _billed_by_modal(since, until)),
    )
    found: list[Reconciled] = []
    messages: list[str] = []
    for cloud, pool, pools, query in clouds:
        billed = query_cloud(cloud, pool, query, messages)
        if billed is None:
            continue
        ours: dict[str, int] = {}
        for cost in costs:
            if cost.pool in pools:
                ours[cost.job] = ours.get(cost.job, 0) + cost.micro_usd
        for job in sorted(ours.keys() | {job for job in billed if job}):
            found.append(Reconciled(cloud, job, ours.get(job, 0) / MICRO, billed.get(job, 0.0)))
    found.sort(key=lambda entry: -abs(entry.difference_usd))
    return found, tuple(messages)


def billed_by_aws(since: datetime, until: datetime) -> dict[str, float]:
    """USD by job, from Cost Explorer, in whole days of UTC."""
    import boto3

    client = boto3.client("ce", region_name="us-east-1")
    days = {"Start": f"{since:%Y-%m-%d}", "End": f"{until + timedelta(days=1):%Y-%m-%d}"}
    billed: dict[str, float] = {}
    token: dict[str, str] = {}
    while True:
        answer = client.get_cost_and_usage(
            TimePeriod=days,
            Granularity="DAILY",
            Metrics=["UnblendedCost"],
            GroupBy=[{"Type": "TAG", "Key": _AWS_TAG}],
            **token,
        )
        for day in answer["ResultsByTime"]:
            for group in day.get("Groups", []):
                job = group["Keys"][0].removeprefix(f"{_AWS_TAG}$")
                billed[job] = billed.get(job, 0.0) + float(group["Metrics"]["UnblendedCost"]["Amount"])
        if not answer.get("NextPageToken"):
            return billed
        token = {"NextPageToken": answer["NextPageToken"]}


def _billed_by_modal(since: datetime, until: datetime) -> dict[str, float]:
    from crucible.pools.modal.sandboxes import LONGEST_BILL, billed_by_tag

    return asyncio.run(billed_by_tag(_MODAL_TAG, since=max(since, until - LONGEST_BILL + timedelta(hours=1))))
