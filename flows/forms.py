"""A flow's parameters as one typed request, without changing what a person sees or types.

    class TrainRequest(BaseModel):
        preset: Preset = Field("cpu-small", description="Which shipped configuration to start from.")
        max_attempts: int = Field(50, ge=1, le=100_000, description="Stop after so many attempts.")

    @flow(name="train-nanogpt")
    @takes(TrainRequest)
    def train_nanogpt(**given: Any) -> State:
        request = TrainRequest(**given)

The form and `prefect deployment run train-nanogpt -p max_attempts=3` stay flat: one parameter for each field. Prefect
builds its form, and what the server accepts, from the function's signature. It takes descriptions only from a default
that is a `Field`, and bounds only from the annotation, so `takes` puts each where Prefect looks for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

F = TypeVar("F", bound=Callable[..., Any])


def takes(request: type[BaseModel]) -> Callable[[F], F]:
    """Give the flow function under it one parameter for each field of `request`."""

    def give(fn: F) -> F:
        fn.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [_parameter(name, field) for name, field in request.model_fields.items()],
            return_annotation=inspect.signature(fn).return_annotation,
        )
        return fn

    return give


def described(fn: F) -> F:
    """The same for a flow with a signature of its own: `Annotated[int, Field(ge=1, description=…)] = 3` shows both."""
    signature = inspect.signature(fn, eval_str=True)
    parameters = []
    for name, parameter in signature.parameters.items():
        default = ... if parameter.default is parameter.empty else parameter.default
        parameters.append(_parameter(name, FieldInfo.from_annotated_attribute(parameter.annotation, default)))
    fn.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return fn


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    kind: Any = field.annotation
    return inspect.Parameter(
        name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        annotation=Annotated[(kind, *field.metadata)] if field.metadata else kind,
        default=Field(... if field.is_required() else field.default, description=field.description),
    )
