"""What can go wrong in the rehearsed cloud, by name. Each function does one thing to a running `Cloud`.

A drill asks for them over the control port (`AwsRehearsal.fault("reclaim")`); a person through
`crucible rehearse fault reclaim`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from crucible.rehearsal.aws.cloud import Cloud
from crucible.rehearsal.aws.machines import ON_DEMAND, SPOT, Machine
from crucible.rehearsal.aws.runs import Run

Answer = dict[str, Any]


class NoTargetError(LookupError):
    """There is nothing now that this fault could hit."""


def notice(cloud: Cloud, seconds: float = 120.0, job: str | None = None, instance: str | None = None) -> Answer:
    """A spot reclaim with its notice: the host goes after so many seconds."""
    machine = _machine(cloud, job, instance, lifecycle=SPOT)
    cloud.machines.give_notice(machine.instance_id, seconds)
    return {"instance": machine.instance_id}


def rebalance(cloud: Cloud, job: str | None = None, instance: str | None = None) -> Answer:
    """A rebalance recommendation: a warning without a date, and nothing after it."""
    machine = _machine(cloud, job, instance, lifecycle=SPOT)
    cloud.machines.recommend_rebalance(machine.instance_id)
    return {"instance": machine.instance_id}


def reclaim(cloud: Cloud, job: str | None = None, instance: str | None = None) -> Answer:
    """A host lost without any notice: everything on it is gone in the same moment."""
    machine = _machine(cloud, job, instance, lifecycle=None)
    cloud.say(f"{machine.instance_id} is lost without notice")
    cloud.machines.end(machine.instance_id, shutdown_seconds=0.0)
    return {"instance": machine.instance_id}


def shutdown(cloud: Cloud, seconds: float = 5.0, job: str | None = None, instance: str | None = None) -> Answer:
    """A host that shuts down unannounced: SIGTERM, and so many seconds."""
    machine = _machine(cloud, job, instance, lifecycle=None)
    cloud.machines.end(machine.instance_id, shutdown_seconds=seconds)
    return {"instance": machine.instance_id}


def drought(cloud: Cloud, on: bool = True, lifecycle: str = SPOT) -> Answer:
    """No capacity of that kind until it is turned off."""
    _switch(cloud.machines.market.drought, _lifecycle(lifecycle), on)
    return {"drought": sorted(cloud.machines.market.drought)}


def no_quota(cloud: Cloud, on: bool = True, lifecycle: str = SPOT) -> Answer:
    """The account may have no GPU instance of that kind until it is turned off."""
    _switch(cloud.machines.market.no_quota, _lifecycle(lifecycle), on)
    return {"no_quota": sorted(cloud.machines.market.no_quota)}


def give_up(cloud: Cloud) -> Answer:
    """ECS gives up on every task that still waits for a machine, as after half an hour."""
    waiting = cloud.tasks.waiting()
    for run in waiting:
        cloud.tasks.give_up(run)
    return {"tasks": [run.id for run in waiting]}


def stop_task(cloud: Cloud, job: str | None = None) -> Answer:
    """Somebody stops the task by hand: SIGTERM, and SIGKILL after its stop timeout."""
    run = _run(cloud, job)
    cloud.tasks.stop(run, "UserInitiated", "Task stopped by user")
    return {"task": run.id}


def kill_task(cloud: Cloud, job: str | None = None) -> Answer:
    """The container is killed and its host lives on, as when memory runs out."""
    run = _run(cloud, job)
    assert run.container is not None
    run.container.kill()
    return {"task": run.id}


def freeze(cloud: Cloud, job: str | None = None) -> Answer:
    """The container stands still, as when its machine is moved; `thaw` lets it go on."""
    run = _run(cloud, job)
    assert run.container is not None
    run.container.freeze()
    return {"task": run.id}


def thaw(cloud: Cloud, task: str) -> Answer:
    """A frozen container goes on, if it is still there."""
    for run in cloud.running():
        if run.id == task and run.container is not None:
            run.container.thaw()
    return {"task": task}


def late_stop(cloud: Cloud, job: str | None = None) -> Answer:
    """A STOPPED event arrives for a dead task that carries the tags of the one that runs."""
    run = _run(cloud, job)
    return {"task": run.id, "dead": cloud.tasks.tell_of_a_dead_predecessor(run)}


def expired_credentials(cloud: Cloud, on: bool = True, whose: str = "task") -> Answer:
    """The credentials of the tasks or of the worker are refused as expired until it is turned off."""
    keys = {"task": cloud.task_key, "worker": cloud.worker_key}
    if whose not in keys:
        raise ValueError(f"whose = {whose!r}: task or worker")
    _switch(cloud.expired_keys, keys[whose], on)
    return {"expired_keys": sorted(cloud.expired_keys)}


FAULTS: dict[str, Callable[..., Answer]] = {
    function.__name__: function
    for function in (
        notice,
        rebalance,
        reclaim,
        shutdown,
        drought,
        no_quota,
        give_up,
        stop_task,
        kill_task,
        freeze,
        thaw,
        late_stop,
        expired_credentials,
    )
}


def _run(cloud: Cloud, job: str | None) -> Run:
    if not (running := cloud.running(job=job)):
        raise NoTargetError(f"no task is running{f' for job {job}' if job else ''}")
    return running[-1]


def _machine(cloud: Cloud, job: str | None, instance: str | None, *, lifecycle: str | None) -> Machine:
    """The named machine, or that of the newest running task."""
    if instance is not None:
        if (machine := cloud.machines.machines.get(instance)) is None:
            raise NoTargetError(f"there is no instance {instance} now")
        return machine
    for run in reversed(cloud.running(job=job)):
        if run.machine is not None and lifecycle in (None, run.machine.lifecycle) and run.machine.goes_at is None:
            return run.machine
    raise NoTargetError(f"no task runs on {lifecycle or 'any'} instance{f' for job {job}' if job else ''}")


def _lifecycle(value: str) -> str:
    if value not in (SPOT, ON_DEMAND):
        raise ValueError(f"lifecycle = {value!r}: {SPOT} or {ON_DEMAND}")
    return value


def _switch(members: set[str], member: str, on: bool) -> None:
    if on:
        members.add(member)
    else:
        members.discard(member)
