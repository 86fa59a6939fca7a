"""The names of jobs: which are usable, new ones, and those of a sweep's trials."""

from __future__ import annotations

import re
import secrets
from datetime import datetime

from crucible.errors import ConfigError


def sweep_in_name(job_id: str) -> str:
    """The sweep that the name of a trial begins with, `<sweep>-0001`; empty for any other name, `<sweep>-2` too."""
    name, _, number = job_id.rpartition("-")
    return name if re.fullmatch(r"[0-9]{4}", number) else ""


def checked_job_id(job_id: str) -> str:
    """`job_id` itself. Raises `ConfigError` unless it can name a folder, a tag and a container."""
    if not is_job_id(job_id):
        raise ConfigError(f"job: {job_id!r} is no usable name; use up to 63 letters, digits, '-', '_' or '.'")
    return job_id


def new_job_id(base: str) -> str:
    """A name that no job has: `base`, the time, and four digits for those that start in the same second."""
    return f"{base[:35]}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def is_job_id(name: str) -> bool:
    """Whether it is a usable name."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name) is not None
