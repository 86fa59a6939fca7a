"""Free what nobody needs any more; without `dry_run=false` it only says what that is.

python -m flows.cleanup
"""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.states import Completed
from pydantic import Field

from crucible.cleanup.plan import GB, CleanupRequest, clean_up, cleanup_page, plan_cleanup
from crucible.formatting import counted, size
from crucible.home import crucible_home
from crucible.prefect_compat.live_artifacts import LiveArtifact
from flows.forms import described
from tasks.observing import add_tags
from tasks.storage import open_store


@flow(name="cleanup", persist_result=False)
@described
def cleanup(
    dry_run: Annotated[bool, Field(description="Only say what would go.")] = True,
    days: Annotated[
        float, Field(ge=0, le=36_500, description="Jobs that ended longer ago keep their best model.")
    ] = 30.0,
    quota_gb: Annotated[float, Field(gt=0, le=1e9, description="For each project; a warning at 80 per cent.")] = 100.0,
    store: Annotated[str, Field(description="Name of a Store block, or an address (file://…, s3://…).")] = "default",
) -> State[Any]:
    """Checkpoints and logs of old jobs, packages that no job names, uploads and folders that killed processes left."""
    add_tags("stage:cleanup")
    placed = open_store(store)
    plan = plan_cleanup(placed, CleanupRequest(days=days, quota_bytes=quota_gb * GB), crucible_home() / "scratch")
    result = None if dry_run else clean_up(plan, lambda removal: get_run_logger().info("removed %s", removal.name))
    for use in plan.use:
        if use.warning:
            get_run_logger().warning(use.warning)
            resource = {"prefect.resource.id": f"crucible.project.{use.project}", "prefect.resource.name": use.project}
            emit_event("crucible.quota", resource, payload={"message": use.warning, "percent": round(use.percent)})
    LiveArtifact("cleanup", "markdown").publish(cleanup_page(plan, result), "What the store need not hold any more")
    removals = plan.removals if result is None else result.removed
    done = "would be removed" if dry_run else "removed"
    freed = size(sum(removal.bytes for removal in removals))
    return Completed(message=f"{counted(len(removals), 'thing')}, {freed}, {done}")


if __name__ == "__main__":
    cleanup()
