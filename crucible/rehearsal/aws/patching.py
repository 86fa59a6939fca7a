"""How this package changes moto: members replaced by name, in the one process that plays AWS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def replace(owner: Any, **members: Any) -> None:
    """Give a class or module new members. Raises AttributeError if moto no longer has what is to be replaced."""
    for name, member in members.items():
        getattr(owner, name)
        setattr(owner, name, member)


def class_method(function: Callable[..., Any]) -> Any:
    """`classmethod`, for a function whose first parameter is untyped."""
    return classmethod(function)
