"""The drill's set-up for the EC2 pools: a local set-up whose pools and store are in a rehearsed AWS."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from crucible.local.access import auth_string
from crucible.local.state import PROJECT, Home
from crucible.pools.aws.pools import SPOT
from crucible.rehearsal.aws.client import AwsRehearsal, NothingToHitError, RehearsalError
from crucible.rehearsal.aws.session import PARAMETERS, prefect_secret, serving_pools
from crucible.rehearsal.drill.faults import Fault
from crucible.rehearsal.drill.pauses import Wake, pauses
from crucible.rehearsal.drill.scene import Scene
from crucible.rehearsal.drill.stage import Stage
from crucible.store import store_at

NOTICE_SECONDS = 30.0
PROVISIONING_SECONDS = 8.0
"""ECS gives up on a waiting task after half an hour; a drill need not."""
DROUGHT_SECONDS = 600.0
"""The longest that no spot machine is to be had; it ends with the attempt that found its way to on-demand."""


@dataclass
class Ec2Stage(Stage):
    """A stage whose machines are instances of the rehearsed cloud; the market replaces them by itself."""

    cloud: AwsRehearsal | None = None

    def announce_reclaim(self, seconds: float) -> None:
        assert self.cloud is not None
        self.cloud.fault("notice", seconds=seconds)

    def replace_machine(self) -> None:
        """The scaling group does it."""

    def still_running(self) -> list[str]:
        """Tasks that ECS still lists as not stopped, half a minute after the job's end."""
        assert self.cloud is not None
        try:
            self.cloud.wait_for(lambda state: not _unstopped(state["tasks"]), "the end of all tasks", 30)
        except RehearsalError:
            return _unstopped(self.cloud.state()["tasks"])
        return []


@contextmanager
def ec2_stage(folder: Path, pool: str = SPOT) -> Iterator[Stage]:
    """Bring up a rehearsed AWS and a local set-up below `folder`, with the store in the stack's bucket.

    `pool` is `ec2-spot` or `ec2-on-demand`; everything is taken down at the end. Raises `CrucibleError`.
    """
    with ExitStack() as stack:
        cloud = stack.enter_context(
            AwsRehearsal.start(
                folder / "aws",
                working_directory=PROJECT,
                boot_seconds=1.0,
                idle_seconds=30.0,
                provisioning_seconds=PROVISIONING_SECONDS,
            )
        )
        state = cloud.deploy(parameters=PARAMETERS | prefect_secret(cloud, auth_string(Home(folder))))
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "CRUCIBLE_", "AWS_"))},
            **cloud.environment,
            "CRUCIBLE_HOME": str(folder),
            "PREFECT_HOME": str(folder / "prefect-client"),
            "CRUCIBLE_STORE": state.outputs["StoreUri"],
        }
        options = {
            "endpoint_url": cloud.url,
            "key": cloud.environment["AWS_ACCESS_KEY_ID"],
            "secret": cloud.environment["AWS_SECRET_ACCESS_KEY"],
        }
        store = store_at(state.outputs["StoreUri"], **options)
        faults = ec2_faults(cloud, spot=pool == SPOT)
        stage = Ec2Stage(Home(folder), environment, store, faults, {"pool": pool}, cloud=cloud)
        stack.callback(stage.crucible, "down")
        stage.crucible("up")
        stack.enter_context(serving_pools(cloud, state, environment, project=PROJECT))
        yield stage


def ec2_faults(cloud: AwsRehearsal, *, spot: bool = True) -> list[Fault]:
    """What can be done to a job on EC2; on-demand machines get no notices and know no drought of spot."""

    def hit(name: str, **arguments: object) -> Callable[[Scene], bool]:
        def strike(scene: Scene) -> bool:
            try:
                cloud.fault(name, **arguments)
            except NothingToHitError:
                return False
            return True

        return strike

    def notice(scene: Scene) -> bool:
        """On-demand machines, to which a drought may have sent the job, get no notice: there the task is stopped."""
        return hit("notice", seconds=NOTICE_SECONDS)(scene) or hit("stop_task")(scene)

    def freeze(scene: Scene) -> Wake | None:
        try:
            frozen = cloud.fault("freeze", job=scene.job.job_id)
        except NothingToHitError:
            return None
        return lambda: cloud.fault("thaw", task=frozen["task"])

    def drought(scene: Scene) -> bool:
        hit("drought")(scene)
        struck = False
        for machine in cloud.state()["instances"]:
            struck = hit("reclaim", instance=machine["id"])(scene) or struck
        threading.Thread(target=_end_drought, args=(cloud,), daemon=True).start()
        return struck

    faults = [
        Fault("reclaim", "the machine is lost without a notice", hit("reclaim")),
        Fault("stop-task", "somebody stops the ECS task", hit("stop_task"), with_notice=True),
        Fault("kill-task", "the container is killed, as when memory runs out", hit("kill_task")),
        Fault(
            "late-stop",
            "a late STOPPED event of a dead task names the live flow run",
            hit("late_stop"),
            ends_attempt=False,
        ),
        *pauses(freeze, "the task's machine stands still"),
    ]
    if not spot:
        return faults
    return [
        Fault("notice", "the machine is taken back after a notice", notice, with_notice=True),
        *faults,
        Fault("drought", "all machines are lost, and no spot machine is to be had any more", drought, comes_last=True),
    ]


def _end_drought(cloud: AwsRehearsal) -> None:
    with contextlib.suppress(RehearsalError, httpx.HTTPError):  # the drill may be over before
        cloud.wait_for(_runs_on_demand, "a task on an on-demand machine", DROUGHT_SECONDS)
        cloud.wait_for(lambda state: not _runs_on_demand(state), "the end of that task", DROUGHT_SECONDS)
        cloud.fault("drought", on=False)


def _runs_on_demand(state: dict[str, Any]) -> bool:
    return any(task["status"] == "RUNNING" and task["lifecycle"] == "on-demand" for task in state["tasks"])


def _unstopped(tasks: list[dict[str, str]]) -> list[str]:
    return [f"ECS task {task['id']} ({task['status']})" for task in tasks if task["status"] != "STOPPED"]
