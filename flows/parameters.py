"""Parameters that several flows share, so that the Prefect form and the command line say the same."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Optional

from pydantic import BaseModel, ConfigDict, Field, create_model

from crucible.config import TrainConfig

Preset = Literal["cpu-small", "debug", "gpt2-124m", "shakespeare-char"]
Pool = Literal["local", "docker-gpu", "ec2-spot", "ec2-on-demand", "modal"]


def _overrides() -> type[BaseModel]:
    """`TrainConfig` with every field optional: what is left empty comes from the preset."""
    fields: dict[str, Any] = {}
    for name, field in TrainConfig.model_fields.items():
        kind: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        fields[name] = (
            Optional[kind],  # noqa: UP045  (an Annotated built at run time knows no `|`)
            Field(None, title=name, description=f"{field.description} Empty: as in the preset."),
        )
    return create_model(
        "TrainOverrides",
        __config__=ConfigDict(extra="forbid", title="Configuration", protected_namespaces=()),
        __doc__="What differs from the preset, by nanoGPT's own key names.",
        **fields,
    )


TrainOverrides = _overrides()


def resolve(preset: str, overrides: BaseModel) -> TrainConfig:
    """The complete configuration. Raises `ConfigError` naming field, value and mend."""
    return TrainConfig.preset(preset, **overrides.model_dump(exclude_none=True))
