"""What the local set-up remembers between commands: `$CRUCIBLE_HOME/services.json`, readable with `cat`."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import crucible
from crucible.errors import ServiceError
from crucible.home import crucible_home
from crucible.local.processes import ProcessRecord

PROJECT = Path(crucible.__file__).parent.parent
"""The folder with `prefect.yaml`, `flows/`, `tasks/` and `blocks/`; the worker runs everything from here."""


@dataclass(frozen=True)
class Home:
    """The files of one local set-up."""

    root: Path

    @classmethod
    def current(cls) -> Home:
        return cls(crucible_home())

    @property
    def services_file(self) -> Path:
        return self.root / "services.json"

    @property
    def prefect(self) -> Path:
        """Prefect's home for server and worker: the database and stored results."""
        return self.root / "prefect"

    @property
    def auth_file(self) -> Path:
        """The user name and password of the server's API, readable by its owner only."""
        return self.root / "api-auth"

    def log(self, service: str) -> Path:
        return self.root / "logs" / f"{service}.log"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one `crucible up` or `down` at a time change the set-up; the second waits for the first."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "services.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class State(BaseModel):
    """The services that were started, and what to put back when they are stopped."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    api_url: str | None = None
    """Address of the server's API; None before the first start."""
    database: str | None = None
    """The server's own database as shown to people, without its password; None for SQLite in the home."""
    previous_profile: str | None = None
    """The Prefect profile that was selected before ours."""
    services: dict[str, ProcessRecord] = Field(default_factory=dict)

    @classmethod
    def load(cls, home: Home) -> State:
        """Read the state; an absent file is an empty state. Raises `ServiceError` if the file is damaged."""
        try:
            return cls.model_validate_json(home.services_file.read_bytes())
        except FileNotFoundError:
            return cls()
        except ValidationError as error:
            raise ServiceError(
                f"{home.services_file} cannot be read ({error.errors()[0]['msg']}); stop what it lists, delete it, "
                "then run: crucible up"
            ) from error

    def save(self, home: Home) -> None:
        home.root.mkdir(parents=True, exist_ok=True)
        staged = home.services_file.with_suffix(".partial")
        staged.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        staged.replace(home.services_file)

    def is_running(self, service: str) -> bool:
        record = self.services.get(service)
        return record is not None and record.find() is not None
