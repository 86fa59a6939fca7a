"""Bring the local set-up up and down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx

from crucible.errors import ServiceError
from crucible.local import profile, provision, services
from crucible.local.processes import stop_tree
from crucible.local.services import HOST, Service
from crucible.local.state import PROJECT, Home, State

Report = Callable[[str, str], None]
"""Told of a part ("Prefect server") and what it is doing now ("starting"); for a live status line."""

SAVE_SECONDS = 30.0
"""How long `down` lets running work save itself before it is killed; what Prefect allows after SIGTERM as well."""


def up(home: Home, project: Path = PROJECT, report: Report = lambda part, status: None) -> State:
    """Start what is not running, deploy what has changed, select the Prefect profile; return once all of it answers.

    Raises `ServiceError` in one line: what failed, the log and how to mend it. What did start keeps running, so that a
    second call goes on from there.
    """
    provision.deployment_names(project)  # refuse a project without deployments before anything starts
    with home.locked():
        state = State.load(home)
        api_url = _ensure_server(home, project, state, report)
        try:
            with httpx.Client(base_url=api_url, timeout=30) as api:
                _ensure_the_rest(api, home, project, state, report)
        except httpx.HTTPError as error:
            raise ServiceError(f"the Prefect server refused: {error}; see {home.log('server')}") from error
        previous = profile.select(services.client_settings(api_url))
        if previous:
            state.previous_profile = previous
            state.save(home)
        return state


def _ensure_server(home: Home, project: Path, state: State, report: Report) -> str:
    """The address of the running server, started if need be where it was before, or on the first free port."""
    # Work that is under way and other shells know the address; only a port that someone else took makes it change.
    wanted = httpx.URL(state.api_url).port if state.api_url else None
    while True:
        if not state.is_running("server"):
            port = wanted if wanted and services.is_free(wanted) else services.free_port()
            state.api_url = f"http://{HOST}:{port}/api"
        assert state.api_url is not None
        try:
            ensure_all([services.server(state.api_url)], home, project, state, report)
        except ServiceError:
            refused = httpx.URL(state.api_url).port
            if state.is_running("server") or refused is None or services.is_free(refused):
                raise
            report("Prefect server", f"port {refused} was taken meanwhile, trying the next")
        else:
            return state.api_url


def _ensure_the_rest(api: httpx.Client, home: Home, project: Path, state: State, report: Report) -> None:
    """Pool, deployments, worker and watchdog, side by side."""
    assert state.api_url is not None
    provision.ensure_pool(api)
    deploying = None
    if not provision.is_current(api, project):
        report("Deployments", "deploying prefect.yaml")
        deploying = provision.Deploying(home, project, state.api_url)
    try:
        ensure_all(services.companions(state.api_url), home, project, state, report)
    finally:
        if deploying:
            deploying.finish(api)
    report("Deployments", "deployed" if deploying else "unchanged")


def ensure_all(wanted: list[Service], home: Home, project: Path, state: State, report: Report) -> None:
    """Start those of the services that are not running, all at once, then wait for each."""
    assert state.api_url is not None
    for service in wanted:
        if not state.is_running(service.name):
            report(service.label, "starting")
            state.services[service.name] = service.start(home, project, state.api_url)
            state.save(home)  # at once: a process nobody knows of could never be stopped
    for service in wanted:
        service.wait(state.services[service.name])
        report(service.label, "ready")


def down(home: Home, report: Report = lambda part, status: None) -> str | None:
    """Stop everything `up` started and select the earlier Prefect profile again; return its name if it was switched.

    Work that runs is asked to save and end first. Raises `ServiceError` if something cannot be stopped.
    """
    with home.locked():
        state = State.load(home)
        stop_services(home, state, report)
        restored = profile.restore(state.previous_profile)
        home.services_file.unlink(missing_ok=True)
        return restored


def stop_services(home: Home, state: State, report: Report) -> None:
    """Stop all services of `state`, the server last, so that the others can still tell it how they ended."""
    for name in sorted(state.services, key=lambda name: name == "server"):
        record = state.services[name]
        if name == services.DOCKER_WORKER:
            from crucible.pools.docker.local_pool import stop_runs

            stop_runs(home, report)
        if (process := record.find()) is not None:
            report(name.capitalize(), "stopping")
            stop_tree(process, children_first_seconds=SAVE_SECONDS if name == "worker" else 0)
            if record.find() is not None:
                raise ServiceError(f"the {name} does not end; stop it yourself, then repeat: kill -9 {record.pid}")
        report(name.capitalize(), "stopped")
        del state.services[name]
        state.save(home)
