"""Changing the limits of a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from crucible.errors import ConfigError
from crucible.jobs.job import Job
from crucible.jobs.records import Limits
from crucible.settings import explain_validation_error


def change_limits(job: Job, given: Mapping[str, Any]) -> Limits:
    """Set some limits, and return those in force. A number may be given as text, and `none` lifts a limit.

    Raises `ConfigError` for what is no limit.
    """
    changes = {
        name: None if isinstance(value, str) and value.lower() == "none" else value
        for name, value in given.items()
        if value is not None
    }
    if changes:
        try:
            job.set_limits(Limits.model_validate({**job.read_limits().model_dump(), **changes}))
        except ValidationError as error:
            raise ConfigError(explain_validation_error(error)) from error
    return job.read_limits()
