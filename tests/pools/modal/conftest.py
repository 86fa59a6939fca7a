"""A Modal stand-in, a real Prefect server, and real `modal` workers as processes of their own."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings

from crucible.pools.modal.worker import ModalWorker
from crucible.rehearsal.modal import FakeModal, SandboxView

PROJECT = Path(__file__).resolve().parents[3]
PATIENCE_SECONDS = 180.0  # a busy machine's SQLite may keep the server from answering for a minute
LOOK_AGAIN_SECONDS = 0.3
"""Each look is a request to the server, which others use as well."""


@dataclass
class Pool:
    """A `modal` work pool on the shared server with one worker, and what a test does there."""

    name: str
    client: SyncPrefectClient
    modal: FakeModal
    env: dict[str, str]
    log: Path
    worker: subprocess.Popen[bytes] | None = None

    def start_worker(self) -> None:
        """Make sure that a worker runs; a dead one is followed by another of the same name."""
        if self.worker is not None:
            return
        command = [sys.executable, "-m", "prefect", "worker", "start", "--type", "modal"]
        with self.log.open("ab") as log:
            self.worker = subprocess.Popen(
                [*command, "--pool", self.name, "--name", "modal-1"],
                env={**self.env, **self.modal.env},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def stop_worker(self, *, kill: bool = False) -> None:
        if self.worker is None:
            return
        if kill:
            self.worker.kill()
        else:
            self.worker.terminate()
        self.worker.wait(PATIENCE_SECONDS)
        self.worker = None

    def submit(self, command: str | None, *, entrypoint: str | None = None, **variables: Any) -> FlowRun:
        """Ask for a flow run on a GPU; a shell's `command` stands in for the flow where its code does not matter."""
        deployment = self.client.create_deployment(
            flow_id=self.client.create_flow_from_name("on-modal"),
            name=f"test-{uuid.uuid4().hex[:8]}",
            work_pool_name=self.name,
            entrypoint=entrypoint,
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(PROJECT)}}],
            job_variables={"image": "python:3.11-slim", "gpu": ["T4"], **variables}
            | ({"command": f"sh -c '{command}'"} if command else {}),
        )
        return self.client.create_flow_run_from_deployment(deployment)

    def wait_for(self, run: FlowRun, true: Callable[[FlowRun], bool]) -> FlowRun:
        """Wait until something is true of a flow run."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not true(now := self.client.read_flow_run(run.id)):
            if time.monotonic() > deadline:
                raise AssertionError(f"waited in vain; the run is {now.state!r}\n{self.log.read_text()[-6000:]}")
            time.sleep(LOOK_AGAIN_SECONDS)
        return now

    def wait_for_state(self, run: FlowRun, *names: str) -> FlowRun:
        return self.wait_for(run, lambda now: now.state is not None and now.state.name in names)

    def end_of(self, run: FlowRun) -> str:
        """Wait for a run's final state: its type and name, and after a colon its message."""
        state = self.wait_for(run, lambda now: now.state is not None and now.state.is_final()).state
        assert state is not None
        return f"{state.type.value} {state.name}: {state.message}"

    def sandboxes(self, run: FlowRun) -> list[SandboxView]:
        """The sandboxes of a run, in the order of their creation."""
        return _of(run, self.modal.sandboxes())

    def wait_for_sandbox(self, run: FlowRun, number: int = 1) -> SandboxView:
        """Wait until the run's sandbox of that number is at work, and its worker has noted it."""

        def there(views: list[SandboxView]) -> bool:
            mine = _of(run, views)
            return len(mine) >= number and mine[number - 1].status == "RUNNING"

        sandbox = _of(run, self.modal.wait_for(there))[number - 1]
        self.wait_for(run, lambda now: now.infrastructure_pid == f"modal:{sandbox.id}")
        return sandbox

    def wait_for_log(self, run: FlowRun, text: str) -> list[str]:
        """Wait until a log message of the run contains a text; returns all messages."""
        only = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            messages = [log.message for log in self.client.read_logs(only, limit=200)]
            if any(text in message for message in messages):
                return messages
            assert time.monotonic() < deadline, f"no {text!r} in {messages}"
            time.sleep(LOOK_AGAIN_SECONDS)


def _of(run: FlowRun, views: list[SandboxView]) -> list[SandboxView]:
    return [view for view in views if view.tags.get("prefect-flow-run-id") == str(run.id)]


@pytest.fixture(scope="module")  # its setting of Prefect's address must not reach other files of this process
def modal_pool(prefect_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """One stand-in, one pool and one worker for all tests: each of them takes seconds to start."""
    name = "modal-tests"
    template = ModalWorker.get_default_base_job_template()
    prefect_server.create_pool(name, type=ModalWorker.type, base_job_template=template)
    env = {
        **prefect_server.env,
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://prefect:very-secret@db/prefect",
        "A_SECRET_OF_THE_WORKER": "very-secret",
    }
    log = tmp_path_factory.mktemp("modal") / "worker.log"
    with (
        temporary_settings({PREFECT_API_URL: prefect_server.api_url}),
        get_client(sync_client=True) as client,
        FakeModal(image_workdir=PROJECT, grace_seconds=10) as modal,
    ):
        pool = Pool(name, client, modal, env, log)
        yield pool
        pool.stop_worker()


@pytest.fixture
def pool(modal_pool: Pool) -> Iterator[Pool]:
    """The pool with a living worker. A call that the stand-in does not know fails the test that made it."""
    known = len(modal_pool.modal.unknown_calls())
    modal_pool.start_worker()
    yield modal_pool
    assert modal_pool.modal.unknown_calls()[known:] == []
    assert [view for view in modal_pool.modal.sandboxes() if not view.over] == []
