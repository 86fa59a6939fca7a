"""Where should this run? Estimates every offer and shows the ranking, a chart and the reasons as artifacts.

python -m flows.recommend gpt2-124m 1B
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from pydantic import Field

from crucible.errors import CrucibleError
from crucible.estimate.request import EstimateRequest, run_estimate
from crucible.formatting import money, rough_duration
from flows.forms import described
from flows.parameters import Preset
from tasks.ending import end_as
from tasks.observing import add_tags
from tasks.recommendation import pool_states, publish


@flow(name="recommend", persist_result=False)
@described
def recommend(
    preset: Annotated[Preset, Field(description="Which shipped configuration.")] = "cpu-small",
    tokens: Annotated[str, Field(description="Train on this many tokens: 300M, 1B. Empty: as configured.")] = "",
    changes: Annotated[tuple[str, ...], Field(description="What differs from the preset, as key=value.")] = (),
    optimize_for: Annotated[Literal["cost", "time", "balanced"], Field(description="What comes first.")] = "balanced",
    pools: Annotated[tuple[str, ...], Field(description="Only these work pools. Empty: all.")] = (),
    dedicated: Annotated[bool, Field(description="No host that other customers share.")] = False,
    uninterrupted: Annotated[bool, Field(description="No machine that can be interrupted.")] = False,
    max_cost_usd: Annotated[float | None, Field(gt=0, description="Most that it may cost.")] = None,
    finish_by: Annotated[str, Field(description="Deadline: 12h, 2d, or 2026-05-07T18:00. Empty: none.")] = "",
    store: Annotated[str | None, Field(description="Address of the store with past runs. Empty: the local.")] = None,
) -> State[Any]:
    """Rank all offers for a training run: hours and dollars, low to high, with pros and cons."""
    add_tags("stage:recommend")
    try:
        request = EstimateRequest.parse(
            {
                "preset": preset,
                "tokens": tokens or None,
                "changes": changes,
                "optimize_for": optimize_for,
                "pools": pools or None,
                "dedicated": dedicated,
                "uninterrupted": uninterrupted,
                "max_cost_usd": max_cost_usd,
                "finish_by": finish_by or None,
                "store": store,
            }
        )
        found = run_estimate(request, pools=pool_states())
    except CrucibleError as error:
        get_run_logger().error(str(error))
        return end_as(Failed(message=str(error)))
    publish(found)
    best = found.recommendation.ranked[0].estimate
    sentence = f"{best.offer.key}: {rough_duration(best.hours.likely)}, {money(best.usd.likely)}"
    get_run_logger().info(sentence)
    return Completed(message=sentence)


if __name__ == "__main__":
    import sys

    given: dict[str, Any] = dict(zip(("preset", "tokens"), sys.argv[1:3], strict=False))  # Prefect checks them
    recommend(**given)
