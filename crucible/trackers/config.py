"""Which tracker shows a job's curves, and where."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from pydantic import Field, SecretStr, field_serializer

from crucible.settings import Settings

DEFAULT_PROJECT = "crucible"
"""Where the job's own project says nothing."""


class TrackerKind(StrEnum):
    """The trackers that Crucible knows."""

    TENSORBOARD = "tensorboard"
    MLFLOW = "mlflow"
    WANDB = "wandb"
    TRACKIO = "trackio"


class TrackerConfig(Settings):
    """One tracker."""

    name: str
    """The block's name, or the kind's: names its record in the job."""
    kind: TrackerKind
    url: str = ""
    """MLflow: the tracking URI. W&B: a server of your own. Trackio: a Space, such as user/space."""
    project: str = ""
    """W&B and Trackio: the project; MLflow: the experiment. Empty: the job's project."""
    entity: str = ""
    """W&B: the team or user. Empty: the account's default."""
    api_key: SecretStr = Field(SecretStr(""))
    """W&B: the API key. MLflow: a token. Trackio: a token of Hugging Face. Empty: as the library finds it."""

    @field_serializer("api_key", when_used="json")
    def _reveal(self, key: SecretStr) -> str:
        return key.get_secret_value()  # only for the tracker's own process, through a pipe

    def project_for(self, project: str) -> str:
        """The tracker's project for a job of that project."""
        return self.project or (project if project not in ("", "default") else DEFAULT_PROJECT)


def split_names(names: str | Iterable[str]) -> list[str]:
    """The trackers that a person named, each once: `"tensorboard, wandb"`, or a list of such texts."""
    texts = [names] if isinstance(names, str) else names
    found = (name.strip() for text in texts for name in text.split(","))
    return list(dict.fromkeys(name for name in found if name))
