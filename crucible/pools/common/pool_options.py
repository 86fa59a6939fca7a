"""What the pools of Crucible's own workers share when a user creates one: the options, and the template they make."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from crucible.errors import ConfigError
from crucible.pools.common import registration
from crucible.pools.common.offered import offer_only, with_environment
from crucible.settings import explain_validation_error

if TYPE_CHECKING:
    from prefect.workers.base import BaseWorker

_NEED_THE_SERVER = ("env", "credentials")
"""Variables whose values may refer to the Prefect server's blocks and variables."""


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """What a user decides about a pool; a run may override what the pool offers as a job variable."""

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    """For all machines of the pool: `CRUCIBLE_STORE`, `PREFECT_API_URL` as they reach it, credentials of the store."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the worker. They stay as they are until they are named again."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^/%&<>:\s]+", self.name):
            raise ConfigError(f"name = {self.name!r}: a pool's name has no spaces and none of / % & < > :")


Options = TypeVar("Options", bound=PoolOptions)


def template_of(
    worker: type[BaseWorker[Any, Any, Any]], offered: Collection[str], options: PoolOptions, **defaults: Any
) -> dict[str, Any]:
    """The worker's own base job template, with the options' settings as its defaults.

    `defaults` replace the worker's where the settings name nothing else.
    Raises `ConfigError` if the worker has no variable of a name, or its value is not valid.
    """
    variables = worker.job_configuration_variables
    assert variables is not None
    checked = {name: value for name, value in options.settings.items() if value != "" and name not in _NEED_THE_SERVER}
    try:
        variables.model_validate(checked)
    except ValidationError as error:
        raise ConfigError(explain_validation_error(error)) from None
    template: dict[str, Any] = worker.get_default_base_job_template()
    for name, value in defaults.items():
        template["variables"]["properties"][name]["default"] = value
    return offer_only(template, offered, with_environment(options.settings, options.environment))


def register(
    options: Options, kind: str, template: Callable[[Options], dict[str, Any]], *, runs: str, description: str
) -> str:
    """Create or update the pool and its deployments, as `registration.register` does; returns the pool's name.

    The settings that the pool was given before stay in force where `options` name no others.
    """
    return registration.register(
        options.name,
        kind,
        lambda former: template(replace(options, settings={**former, **options.settings})),
        runs=runs,
        description=description,
    )
