"""Bring the local set-up up and down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import httpx

from crucible.errors import ServiceError
from crucible.local import access, database, notifications, profile, provision, services
from crucible.local.processes import stop_tree
from crucible.local.services import HOST, Service
from crucible.local.state import PROJECT, Home, State

Report = Callable[[str, str], None]
"""Called with a part ("Prefect server") and its status ("starting"), for a live status line."""
BeforeStop = Callable[[Home, Report], None]
"""Called before `down` stops a service, while the server still answers."""

SAVE_SECONDS = 30.0
"""How long `down` lets running work save itself before it is killed; Prefect allows the same after SIGTERM."""


def up(home: Home, project: Path = PROJECT, report: Report = lambda part, status: None) -> State:
    """Start what is not running, deploy what has changed, select the Prefect profile; return once all of it answers.

    Raises `ServiceError` in one line: what failed, the log and how to fix it. What did start keeps running, so that a
    second call continues from there.
    """
    provision.deployment_names(project)  # refuse a project without deployments before anything starts
    with home.locked():
        _keep_private(home)
        state = State.load(home)
        api_url = ensure_server(home, project, state, report)
        try:
            with access.connect(home, api_url) as api:
                _ensure_the_rest(api, home, project, state, report)
        except httpx.HTTPError as error:
            raise ServiceError(f"the Prefect server refused: {error}; see {home.log('server')}") from error
        previous = profile.select(services.client_settings(home, api_url))
        if previous:
            state.previous_profile = previous
            state.save(home)
        return state


def _keep_private(home: Home) -> None:
    """The server's database holds the blocks' secrets and the key to them; logs may quote what a flow printed."""
    for folder in (home.prefect, home.log("server").parent):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)


def ensure_server(home: Home, project: Path, state: State, report: Report) -> str:
    """The address of the running server, started if need be on its earlier port or, if that is taken, on a free one.

    Raises `ServiceError` if it does not start, or if it would use another database than before.
    """
    database_url = _database_url(state)
    access.choose(home, state)
    # Running work and other shells know the address, so it changes only if another program took the port.
    wanted = httpx.URL(state.api_url).port if state.api_url else None
    while True:
        if not state.is_running("server"):
            port = wanted if wanted and services.is_free(wanted) else services.free_port()
            state.api_url = f"http://{HOST}:{port}/api"
            state.database = database.describe(database_url) if database_url else None
        assert state.api_url is not None
        try:
            ensure_all([services.server(home, state.api_url, database_url)], home, project, state, report)
        except ServiceError:
            refused = httpx.URL(state.api_url).port
            if state.is_running("server") or refused is None or services.is_free(refused):
                raise
            report("Prefect server", f"port {refused} was taken meanwhile, trying the next")
        else:
            return state.api_url


def _database_url(state: State) -> str | None:
    url = database.configured_url()
    wanted = database.describe(url) if url else None
    if state.services.get("server") is None or wanted == state.database:
        return url
    if state.is_running("server") and url is None:
        return None  # it goes on with the database that it was started with
    raise ServiceError(
        f"the Prefect server uses {state.database or 'SQLite in its own folder'}, and {database.SETTING} "
        f"{f'names {wanted}' if wanted else 'is not set here'}: set it as before, or, to change the database, run: "
        "crucible down && crucible up"
    )


def _ensure_the_rest(api: httpx.Client, home: Home, project: Path, state: State, report: Report) -> None:
    """Pool, deployments, worker and watchdog, all at once."""
    assert state.api_url is not None
    provision.ensure_pool(api)
    deploying = None
    if not provision.is_current(api, project):
        report("Deployments", "deploying prefect.yaml")
        deploying = provision.Deploying(home, project, state.api_url)
    try:
        ensure_all(services.companions(home, state.api_url), home, project, state, report)
    finally:
        if deploying:
            deploying.finish(api)
            notifications.keep_budget_checks(api)
    report("Deployments", "deployed" if deploying else "unchanged")


def ensure_all(wanted: list[Service], home: Home, project: Path, state: State, report: Report) -> None:
    """Start the services that are not running, all at once, then wait for each."""
    assert state.api_url is not None
    for service in wanted:
        if not state.is_running(service.name):
            report(service.label, "starting")
            state.services[service.name] = service.start(home, project, state.api_url)
            state.save(home)  # at once: a process that is not on record could never be stopped
    for service in wanted:
        service.wait(state.services[service.name])
        report(service.label, "ready")


def down(
    home: Home,
    report: Report = lambda part, status: None,
    before_stop: Mapping[str, BeforeStop] | None = None,
) -> str | None:
    """Stop everything `up` started and select the earlier Prefect profile again; return its name if it was switched.

    Running work is asked to save and end first; `before_stop` names what else must happen before a service is stopped.
    Raises `ServiceError` if something cannot be stopped.
    """
    with home.locked():
        state = State.load(home)
        stop_services(home, state, report, before_stop or {})
        restored = profile.restore(state.previous_profile)
        home.services_file.unlink(missing_ok=True)
        return restored


def stop_services(
    home: Home, state: State, report: Report, before_stop: Mapping[str, BeforeStop] | None = None
) -> None:
    """Stop all services of `state`, the server last, so that the others can still report to it how they ended."""
    for name in sorted(state.services, key=lambda name: name == "server"):
        record = state.services[name]
        if before_stop and name in before_stop:
            before_stop[name](home, report)
        if (process := record.find()) is not None:
            report(name.capitalize(), "stopping")
            stop_tree(process, children_first_seconds=SAVE_SECONDS if name == "worker" else 0)
            if record.find() is not None:
                raise ServiceError(f"the {name} does not end; stop it yourself, then repeat: kill -9 {record.pid}")
        report(name.capitalize(), "stopped")
        del state.services[name]
        state.save(home)
