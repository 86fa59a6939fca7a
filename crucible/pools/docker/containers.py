"""The containers that one local set-up has running."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from crucible.errors import ServiceError
from crucible.pools.docker.configuration import HOME_LABEL
from crucible.pools.docker.engine import connect


def containers_of(home: Path, client: Any = None) -> list[Any]:
    """The running containers of the set-up in `home`. Raises `ServiceError` when no engine answers."""
    found: list[Any] = (client or connect()).containers.list(
        filters={"label": f"{HOME_LABEL}={home}"}, ignore_removed=True
    )
    return found


def stop_containers(home: Path, report: Callable[[str], None]) -> None:
    """Ask every container of the set-up in `home` to save and end, and wait; `report` names each that does not."""
    try:
        client = connect()
    except ServiceError as error:
        report(f"not asked to stop: {error}")
        return
    try:
        if running := containers_of(home, client):
            report(f"stopping {len(running)}")
            with ThreadPoolExecutor(len(running)) as pool:
                list(pool.map(lambda container: _stop(container, report), running))
    finally:
        client.close()


def _stop(container: Any, report: Callable[[str], None]) -> None:
    from docker.errors import APIError, NotFound
    from requests.exceptions import RequestException

    try:
        container.stop(timeout=container.attrs["Config"].get("StopTimeout") or 60)
    except NotFound:
        return
    except APIError as error:  # such as a security module's: the other services are stopped all the same
        report(f"{container.name} could not be stopped: {error.explanation or error}")
    except RequestException as error:
        report(f"{container.name} could not be stopped: {error}")
