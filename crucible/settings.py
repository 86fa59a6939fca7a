"""What people configure: checked where it is declared, every mistake told in one sentence with its mend."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from crucible.errors import ConfigError


class Settings(BaseModel):
    """Base of every model whose fields a person writes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _suggest_known_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    near = difflib.get_close_matches(str(key), cls.model_fields, n=1)
                    mend = f"did you mean {near[0]}?" if near else f"known settings: {', '.join(cls.model_fields)}"
                    raise invalid(f"{key} = {shown(data[key])} is not a known setting; {mend}")
        return data

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str = "") -> Self:
        """Build one from a mapping; raises ConfigError with one message, naming `source` if given."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError(explain_validation_error(error, source)) from None


def explain_validation_error(error: ValidationError, source: str = "") -> str:
    """One line for a person: each wrong field with its value and what would be right, for any pydantic model."""
    sentences = []
    for detail in error.errors(include_url=False):
        place = ".".join(str(part) for part in detail["loc"])
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == _OWN_SENTENCE:
            sentences.append(f"{place}: {message}" if place else message)
        elif detail["type"] == "missing":
            sentences.append(f"{place} is missing; give it a value")
        elif detail["type"] == "extra_forbidden":
            sentences.append(f"{place} = {shown(detail['input'])} is not a known setting; remove it")
        else:
            mend = message.removeprefix("Input ").replace("should be", "it must be", 1)
            sentences.append(f"{place} = {shown(detail['input'])} is not valid; {mend}")
    text = "; ".join(sentences)
    return f"{source}: {text}" if source else text


def shown(value: Any) -> str:
    """A value as a message quotes it: no more than 80 characters of it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text)} characters)"


_OWN_SENTENCE = "crucible_config"


def invalid(sentence: str) -> PydanticCustomError:
    """What a validator raises to say it in a whole sentence, naming field, value and mend."""
    # The sentence goes in as a value: pydantic would read braces in a template.
    return PydanticCustomError(_OWN_SENTENCE, "{sentence}", {"sentence": sentence})
