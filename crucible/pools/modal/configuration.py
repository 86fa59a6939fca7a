"""The variables of a `modal` work pool, how they configure one flow run, and the block with a Modal token.

Needs no Modal SDK. `crucible up` registers the block; elsewhere:

    prefect block register -m crucible.pools.modal.configuration
"""

from __future__ import annotations

import re
from typing import Any

from prefect.blocks.core import Block
from prefect.client.schemas.objects import FlowRun
from prefect.workers.base import BaseVariables
from pydantic import BaseModel, Field, PrivateAttr, SecretStr, field_validator

from crucible.errors import ConfigError
from crucible.pools.common.configuration import Names, OfferedJobConfiguration

LONGEST_LIFETIME_SECONDS = 24 * 3600
POOL_ID_TAG = "prefect-work-pool-id"
"""Keeps the sandboxes of several Prefect servers apart, whose pools may have the same name."""

_TAG_NAME, _TAG_VALUE = re.compile(r"[\w.-]{1,50}"), re.compile(r"[\w.-]{1,63}")
_GPU = re.compile(r"[A-Za-z][A-Za-z0-9-]*[!+]?(:[1-8])?")


class ModalCredentials(Block):
    """A Modal token, as `modal token new` prints it."""

    _block_type_name = "Modal Credentials"
    _block_type_slug = "modal-credentials"
    _description = "Token with which a `modal` work pool creates sandboxes."
    _code_example = """
    ```python
    from crucible.pools.modal.configuration import ModalCredentials

    ModalCredentials(token_id="ak-…", token_secret="as-…").save("modal")
    ```
    """

    token_id: SecretStr = Field(description="Begins with ak-.")
    token_secret: SecretStr = Field(description="Begins with as-.")


class _ModalFields(BaseModel):
    """What both the pool's form and a flow run's configuration have; documented here for both."""

    image: str | None = Field(
        default=None,
        description="Registry reference, or the id of an image on Modal (im-…). Empty: Crucible's own, from its "
        "Dockerfile in the worker's checkout.",
    )
    dockerfile: str | None = Field(
        default=None, description="Path of a Dockerfile on the worker's machine, instead of `image`."
    )
    context_dir: str | None = Field(
        default=None, description="Folder that the Dockerfile copies from; default its own."
    )
    registry_secret: str | None = Field(
        default=None, description="Name of the Modal Secret with the login of a private registry."
    )
    gpu: Names = Field(
        default_factory=list,
        title="GPU",
        description="Like L4, A100-80GB or H100:8. Several are tried in turn until one is to be had. Empty: CPU only. "
        "Modal may preempt a sandbox with a GPU at any time.",
    )
    cpu: float | None = Field(default=None, gt=0, title="CPU", description="Physical cores.")
    memory_mib: int | None = Field(default=None, gt=0, title="Memory", description="MiB of memory.")
    timeout_seconds: int = Field(
        default=LONGEST_LIFETIME_SECONDS,
        ge=10,
        le=LONGEST_LIFETIME_SECONDS,
        description="Lifetime of the sandbox. Modal allows 24 hours; longer work has to go on in a new sandbox.",
    )
    capacity_timeout_seconds: int = Field(
        default=600, ge=1, description="How long to wait for a GPU before the next one of the list is tried."
    )
    region: Names = Field(
        default_factory=list,
        description="Modal regions to stay in. All prices are then multiplied, by 1.5 for a broad region (us) and by "
        "1.75 for a narrow one (us-west), and CPU sandboxes can be preempted too.",
    )
    cloud: str | None = Field(
        default=None, description="Cloud provider to stay in (aws, gcp, oci). CPU sandboxes can then be preempted too."
    )
    volumes: dict[str, str] = Field(
        default_factory=dict, description="Modal Volumes to mount: mount path → name. Created if missing."
    )
    secrets: Names = Field(
        default_factory=list,
        description="Names of Modal Secrets whose values become environment variables. They never pass the worker.",
    )
    credentials: ModalCredentials | None = Field(
        default=None, description="Modal token; empty: the worker's own (MODAL_TOKEN_ID and _SECRET, or ~/.modal.toml)."
    )
    app_name: str = Field(default="crucible", description="Modal App that the sandboxes belong to. Created if missing.")
    environment_name: str | None = Field(default=None, description="Modal Environment; empty: the token's default.")
    workdir: str | None = Field(default=None, description="Working folder in the sandbox; empty: the image's.")
    tags: dict[str, str] = Field(
        default_factory=dict,
        description="Tags of the sandbox, by which Modal can sum up costs. The flow run's own tags of the form "
        "name:value are added.",
    )
    exclusive_tag: str | None = Field(
        default=None,
        description="Name of a tag. Sandboxes of this pool with the same value of it never run side by side: before "
        "one starts, the former is gone. Empty: only those of the same flow run are kept apart.",
    )
    stream_output: bool = Field(default=True, description="Show what the sandbox prints in the flow run's logs.")
    grace_seconds: int = Field(
        default=45,
        ge=0,
        description="Time for a sandbox to end by itself once its flow run is cancelled, over, or in a newer sandbox. "
        "Then it is terminated.",
    )
    max_restarts: int = Field(
        default=0,
        ge=0,
        description="How often a run goes back to AwaitingRetry, for a new sandbox, when Modal stopped its sandbox or "
        "its lifetime was over. 0 where something else decides over retries, as Crucible's supervising flow does.",
    )
    usd_per_hour: float | None = Field(
        default=None, ge=0, description="List price of what is asked for, to compare with what Modal bills."
    )

    @field_validator("gpu")
    @classmethod
    def _known_form(cls, value: list[str]) -> list[str]:
        for gpu in value:
            if not _GPU.fullmatch(gpu):
                raise ValueError(f"{gpu!r} is no GPU of Modal's; write a type and up to 8 of it, like L4 or H100:8")
        return value

    @field_validator("tags")
    @classmethod
    def _allowed_by_modal(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not _TAG_NAME.fullmatch(name) or not _TAG_VALUE.fullmatch(text):
                raise ValueError(
                    f"{name}={text!r}: Modal takes letters, digits, '.', '_' and '-', up to 50 in a name, 63 in a value"
                )
        return value


class ModalVariables(_ModalFields, BaseVariables):
    """The form of a `modal` work pool."""


class ModalJobConfiguration(_ModalFields, OfferedJobConfiguration):
    """How one flow run is to be run on Modal."""

    _pool_id: str = PrivateAttr(default="")

    def prepare_for_flow_run(self, flow_run: FlowRun, *args: Any, work_pool: Any = None, **kwargs: Any) -> None:
        """As every pool does it; the sandbox's tags also say which server's pool it belongs to."""
        super().prepare_for_flow_run(flow_run, *args, work_pool=work_pool, **kwargs)
        self._pool_id = str(work_pool.id) if work_pool is not None else ""

    @staticmethod
    def _base_flow_run_command() -> str:
        # The first process takes Modal's SIGINT and asks for a checkpoint; Prefect would end the run without one.
        return "python -m crucible.agent.entrypoint -- prefect flow-run execute"

    def sandbox_tags(self, attempt: int) -> dict[str, str]:
        """The tags of the sandbox: the user's, the flow run's, and those by which the worker finds it again."""
        own = {
            "prefect-flow-run-id": self.labels.get("prefect.io/flow-run-id"),
            "prefect-work-pool": self.labels.get("prefect.io/work-pool-name"),
            POOL_ID_TAG: self._pool_id,
            "prefect-deployment": self.labels.get("prefect.io/deployment-name"),
            "prefect-flow": self.labels.get("prefect.io/flow-name"),
            "prefect-attempt": str(attempt),
        }
        tags_of_run = {tag_name(name): tag_value(value) for name, value in self._run_tags.items()}
        return self.tags | tags_of_run | {name: tag_value(value) for name, value in own.items() if value}

    def exclusive(self) -> dict[str, str]:
        """The tags whose sandboxes must not run beside this run's.

        Raises:
            ConfigError: neither the run nor the pool has a tag of the configured name.
        """
        name = self.exclusive_tag or "prefect-flow-run-id"
        tags = self.sandbox_tags(0)
        if name not in tags:
            raise ConfigError(
                f"job variable exclusive_tag: the flow run has no tag {name}:…; start it with one, or leave this empty"
            )
        return {tag: tags[tag] for tag in (name, POOL_ID_TAG) if tag in tags}

    @property
    def price_multiplier(self) -> float:
        """What choosing regions does to all of Modal's prices, after modal.com/docs/guide/region-selection."""
        if not self.region:
            return 1.0
        return 1.75 if any("-" in region for region in self.region) else 1.5


def tag_name(text: str) -> str:
    """A text as Modal takes it for the name of a tag."""
    return re.sub(r"[^\w.-]", "-", text, flags=re.ASCII)[:50]


def tag_value(text: str) -> str:
    """A text as Modal takes it for the value of a tag."""
    return re.sub(r"[^\w.-]", "-", text, flags=re.ASCII)[:63]


def sandbox_name(flow_run: FlowRun) -> str:
    """One name per attempt: a restarted worker finds the sandbox by it, and no attempt can have two."""
    return f"flow-run-{flow_run.id}-{flow_run.run_count}"
