"""How long a run takes and what it costs, before it starts; which offers fit best."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """`crucible.estimate` is this package, and also the function that `docs/python-api.md` describes."""

    def __call__(self, *arguments: Any, **request: Any) -> Any:
        from crucible.estimate.request import estimate

        return estimate(*arguments, **request)


sys.modules[__name__].__class__ = _Callable
