"""What the job configurations of Crucible's own workers share: checked against what the pool offers, explained in one
message, and with no more of the worker's settings than a machine elsewhere needs."""

from __future__ import annotations

from typing import Annotated, Any, Self

from prefect.client.schemas.objects import FlowRun
from prefect.workers.base import BaseJobConfiguration
from pydantic import BeforeValidator, PrivateAttr, ValidationError, WithJsonSchema

from crucible.errors import ConfigError
from crucible.pools.common.environment import passing
from crucible.pools.common.offered import require_offered


def _from_commas(value: Any) -> Any:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value or []


_STRING = {"type": "string"}
Names = Annotated[
    list[str],
    BeforeValidator(_from_commas),
    WithJsonSchema({"anyOf": [{"type": "array", "items": _STRING}, _STRING]}),
]
"""A list, or one text with commas: `gpu: [H100, A100-80GB]` in a file, `-jv gpu=H100,A100-80GB` on the command line."""


class OfferedJobConfiguration(BaseJobConfiguration):
    """How one flow run is to be run on a pool that offers some of its variables."""

    _run_tags: dict[str, str] = PrivateAttr(default_factory=dict)
    """The flow run's tags of the form `name:value`."""

    @classmethod
    async def from_template_and_values(
        cls, base_job_template: dict[str, Any], values: dict[str, Any], client: Any = None
    ) -> Self:
        """Fill the pool's template.

        Raises:
            ConfigError: a job variable is invalid, and the message names each one with what to write instead; or the
                pool does not offer it.
        """
        require_offered(base_job_template, values)
        try:
            return await super().from_template_and_values(base_job_template, values, client=client)
        except ValidationError as error:
            raise ConfigError(_problems(error)) from None

    def prepare_for_flow_run(self, flow_run: FlowRun, *args: Any, **kwargs: Any) -> None:
        """As every Prefect worker does it, but of the worker's settings only those that are of use on its machine."""
        asked_for = set(self.env)
        super().prepare_for_flow_run(flow_run, *args, **kwargs)
        pairs = (tag.partition(":") for tag in flow_run.tags)
        self._run_tags = {name: value for name, _, value in pairs if name and value}
        self.env = passing(self.env, asked_for)
        self.env.setdefault("PYTHONUNBUFFERED", "1")  # otherwise what a flow prints shows up when it is over


def _problems(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        field = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        shown = "" if field.startswith("credentials") else f" (got {problem['input']!r})"
        problems.append(f"job variable {field}: {message}{shown}")
    return "; ".join(problems)
