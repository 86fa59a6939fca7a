"""The block that says where curves are shown besides Crucible's own report."""

from __future__ import annotations

from typing import Literal

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from crucible.trackers.config import TrackerConfig, TrackerKind


class Tracker(Block):
    """TensorBoard, MLflow, Weights & Biases or Trackio, with an address or a key of its own."""

    _block_type_name = "Crucible Tracker"
    _block_type_slug = "crucible-tracker"
    _description = "Where the curves of jobs are shown besides Crucible's own report."
    _code_example = """
    ```python
    from blocks.tracker import Tracker

    Tracker(kind="mlflow", url="http://mlflow.internal:5000", project="nanogpt").save("team-mlflow")
    # then: prefect deployment run train-nanogpt -p tracker=team-mlflow
    ```
    """

    kind: Literal["tensorboard", "mlflow", "wandb", "trackio"] = Field(title="Kind")
    url: str = Field(
        "",
        title="URL",
        description="MLflow: the tracking URI. W&B: a server of your own. Trackio: a server or a Space (user/space). "
        "Empty: the library's own default.",
    )
    project: str = Field(
        "", description="W&B and Trackio: the project. MLflow: the experiment. Empty: the job's project."
    )
    entity: str = Field("", description="W&B: the team or user. Empty: the account's default.")
    api_key: SecretStr = Field(
        SecretStr(""),
        title="API key",
        description="W&B: the API key. MLflow: a token. Trackio: a token of Hugging Face. Empty: the Secret block "
        "wandb-api-key, mlflow-tracking-token or hf-token, else the environment of the supervising process.",
    )

    def settings(self, name: str) -> TrackerConfig:
        """The tracker as the library uses it; `name` is the name of the saved block."""
        return TrackerConfig(
            name=name,
            kind=TrackerKind(self.kind),
            url=self.url,
            project=self.project,
            entity=self.entity,
            api_key=self.api_key,
        )
