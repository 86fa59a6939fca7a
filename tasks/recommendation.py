"""The state of the work pools, and a recommendation as artifacts in the Prefect UI."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import StateType, WorkerStatus

from crucible.catalog.ec2 import spot_capacity
from crucible.catalog.offers import load_catalog
from crucible.estimate.ranking import PoolState
from crucible.estimate.request import EstimateResult
from crucible.reports.recommendation import recommendation_report

TABLE_KEY, REPORT_KEY = "recommendation-offers", "recommendation"
_MOST_QUEUED = 200  # waiting runs of a pool that are counted


@task(retries=2, retry_delay_seconds=[2, 5], retry_jitter_factor=0.5)
def pool_states(ask_capacity: bool = True) -> dict[str, PoolState]:
    """The state of every work pool on the server: paused or not, workers online, queue, spot capacity."""
    waiting = FlowRunFilter.model_validate({"state": {"type": {"any_": [StateType.SCHEDULED, StateType.PENDING]}}})
    soon = datetime.now(UTC) + timedelta(minutes=1)
    states = {}
    with get_client(sync_client=True) as client:
        for pool in client.read_work_pools():
            workers = client.read_workers_for_work_pool(pool.name)
            queued = client.read_flow_runs(
                flow_run_filter=waiting,
                work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [pool.name]}}),
                limit=_MOST_QUEUED,
            )
            states[pool.name] = PoolState(
                workers_online=sum(worker.status is WorkerStatus.ONLINE for worker in workers),
                queued=sum(run.expected_start_time is None or run.expected_start_time <= soon for run in queued),
                paused=pool.is_paused,
                capacity=spot_capacity(load_catalog()) if ask_capacity and pool.name == "ec2-spot" else {},
            )
    return states


def publish(found: EstimateResult) -> None:
    """The table and the report (chart, table, reasons) as artifacts of the running flow."""
    ranked = found.recommendation.ranked
    create_table_artifact(
        [
            {
                "rank": place,
                "offer": entry.estimate.offer.key,
                "GPU": entry.estimate.offer.gpu,
                "hours": round(entry.estimate.hours.likely, 3),
                "hours low": round(entry.estimate.hours.low, 3),
                "hours high": round(entry.estimate.hours.high, 3),
                "USD": round(entry.estimate.usd.likely, 4),
                "USD low": round(entry.estimate.usd.low, 4),
                "USD high": round(entry.estimate.usd.high, 4),
                "speed from": entry.estimate.speed.source,
                "availability": entry.availability,
                "pros": ", ".join(entry.pros),
                "cons": ", ".join(entry.cons),
            }
            for place, entry in enumerate(ranked, 1)
        ],
        key=TABLE_KEY,
        description=f"{len(ranked)} offers that fit, best first",
    )
    create_markdown_artifact(recommendation_report(found), key=REPORT_KEY, description="Where to run, and why")
