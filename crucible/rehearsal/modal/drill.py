"""The stage of a drill on Modal: the local set-up, a Modal on this machine, the pool `modal` and its real worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from crucible.errors import ServiceError
from crucible.local.access import prefect_settings
from crucible.local.state import PROJECT, Home
from crucible.pools.common.registration import FLOW
from crucible.pools.modal.pool import POOL
from crucible.rehearsal.drill.faults import NOTICE_SECONDS
from crucible.rehearsal.drill.stage import Stage, local_stage
from crucible.rehearsal.modal.fake import FakeModal
from crucible.rehearsal.modal.faults import modal_faults
from crucible.rehearsal.worker_process import WorkerProcess

STORE_SECRET = "store"
IMAGE = "this-machine"
DEPLOYMENT = f"{FLOW}/{POOL}"
_END_SECONDS = 60.0


@dataclass
class ModalStage(Stage):
    """A local set-up with a rehearsed Modal beside it."""

    modal: FakeModal = field(kw_only=True)

    def replace_machine(self) -> None:
        """Nothing to do: every sandbox is a new machine."""

    def still_running(self) -> list[str]:
        """Sandboxes that outlived the job."""
        try:
            views = self.modal.wait_for(lambda views: all(view.over for view in views), _END_SECONDS)
        except ServiceError:
            views = self.modal.sandboxes()
        return [f"sandbox {view.name}" for view in views if not view.over]


@contextmanager
def modal_stage(folder: Path, *, s3: bool = False) -> Iterator[ModalStage]:
    """Bring up everything below `folder`; take it down at the end.

    Raises `ServiceError` when a part of it does not come up.
    """
    image_env = {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    with (
        local_stage(folder, s3=s3) as local,
        FakeModal(image_workdir=PROJECT, image_env=image_env, grace_seconds=NOTICE_SECONDS) as modal,
    ):
        modal.add_secret(STORE_SECRET, {k: v for k, v in local.environment.items() if k.startswith("AWS_")})
        local.crucible("modal", "pool", "--gpu", "L4", "--image", IMAGE, "--secret", STORE_SECRET)
        environment = {**local.environment, **modal.env}
        worker = WorkerProcess(POOL, "modal", environment, local.home.log("modal-worker"))
        worker.start()
        try:
            faults = modal_faults(modal, worker, lambda seconds: _let_live(local.home, seconds))
            yield ModalStage(
                local.home, local.environment, local.store, faults, {"pool": POOL}, local.metadata, modal=modal
            )
        finally:
            worker.stop()


def _let_live(home: Home, seconds: float | None) -> None:
    """How long the sandboxes of attempts to come may live; None: as long as the pool lets them."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentUpdate

    variables = {} if seconds is None else {"timeout_seconds": int(seconds)}
    with prefect_settings(home), get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(DEPLOYMENT)
        client.update_deployment(deployment.id, DeploymentUpdate(job_variables=variables))
