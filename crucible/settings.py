"""What people configure: checked where it is declared; every mistake gets one sentence with its fix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from crucible.errors import ConfigError

MOST = 2**53 - 1
"""The largest whole number that JSON, Prefect's database and a browser all keep exactly."""
MOST_ATTEMPTS = 1_000_000
MOST_USD = 1e9
MOST_HOURS = 1e6
"""Of a limit: what is beyond is a typing error, and no longer a time that a clock can tell."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A sha256; it also names files."""
Count = Annotated[int, Field(ge=1, le=MOST_ATTEMPTS)]
"""How many of something: at least one."""
Dollars = Annotated[float, Field(gt=0, le=MOST_USD, allow_inf_nan=False)]
Hours = Annotated[float, Field(gt=0, le=MOST_HOURS, allow_inf_nan=False)]


class Settings(BaseModel):
    """Base of every model whose fields a person writes."""

    hints: ClassVar[Mapping[str, str]] = {}
    """What to do instead, for keys of other programs that have no field here."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _suggest_known_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and (unknown := [key for key in data if key not in cls.model_fields]):
            raise invalid("; ".join(f"{key} = {shown(data[key])} {cls._hint(key)}" for key in unknown))
        return data

    @model_validator(mode="before")
    @classmethod
    def _read_whole_numbers(cls, data: Any) -> Any:
        """`6e5` is a whole number to people, and text to YAML."""
        if not isinstance(data, Mapping):
            return data
        return {key: _whole(value) if _wants_int(cls, key) else value for key, value in data.items()}

    @classmethod
    def _hint(cls, key: Any) -> str:
        if key in cls.hints:
            return f"is not a setting here: {cls.hints[key]}"
        near = difflib.get_close_matches(str(key), cls.model_fields, n=1)
        fix = f"did you mean {near[0]}?" if near else f"known settings: {', '.join(cls.model_fields)}"
        return f"is not a known setting; {fix}"

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
            fix = message.removeprefix("Input ").replace("should be", "it must be", 1)
            sentences.append(f"{place} = {shown(detail['input'])} is not valid; {fix}")
    text = "; ".join(sentences)
    return f"{source}: {text}" if source else text


def shown(value: Any) -> str:
    """A value as a message quotes it: no more than 80 characters of it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text)} characters)"


def _wants_int(model: type[BaseModel], name: Any) -> bool:
    field = model.model_fields.get(name)
    return field is not None and field.annotation in (int, int | None)


def _whole(value: Any) -> Any:
    """The whole number that a text such as `6e5` or `1.5e3` writes; anything else as it is."""
    if not isinstance(value, str) or not _SCIENTIFIC.fullmatch(value.strip()):
        return value
    number = Decimal(value.strip())
    return int(number) if number == number.to_integral_value() else value


_SCIENTIFIC = re.compile(r"[+-]?\d{1,20}(\.\d{0,20})?[eE]\+?\d{1,2}")
_OWN_SENTENCE = "crucible_config"


def invalid(sentence: str) -> PydanticCustomError:
    """What a validator raises to say it in a whole sentence, naming field, value and fix."""
    # The sentence goes in as a value: pydantic would read braces in a template.
    return PydanticCustomError(_OWN_SENTENCE, "{sentence}", {"sentence": sentence})
