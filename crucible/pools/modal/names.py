"""How a sandbox and its flow run refer to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect.client.schemas.objects import FlowRun

if TYPE_CHECKING:
    from modal import Sandbox

_PID_PREFIX = "modal:"


def sandbox_name(flow_run: FlowRun) -> str:
    """One name per attempt: a restarted worker finds the sandbox by it, and no attempt can have two."""
    return f"flow-run-{flow_run.id}-{flow_run.run_count}"


def pid_of(sandbox: Sandbox) -> str:
    """What stands in a flow run's `infrastructure_pid` for a sandbox."""
    return _PID_PREFIX + str(sandbox.object_id)


def sandbox_id(infrastructure_pid: str) -> str:
    """The sandbox that a flow run's `infrastructure_pid` stands for."""
    return infrastructure_pid.removeprefix(_PID_PREFIX)
