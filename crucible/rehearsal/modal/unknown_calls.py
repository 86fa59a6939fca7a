"""Every call of Modal's that the stand-in does not have is refused and remembered, never half answered."""

from __future__ import annotations

from typing import Any, TypeVar

from grpclib import GRPCError, Status

Service = TypeVar("Service")


def refuse_unknown(service: type[Service]) -> type[Service]:
    """Class decorator: fill the abstract methods of a gRPC service with refusals noted in `cloud.unknown_calls`."""
    for name in getattr(service, "__abstractmethods__", ()):
        setattr(service, name, _refusal(name))
    service.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
    return service


def _refusal(name: str) -> Any:
    async def refuse(self: Any, _stream: Any) -> None:
        self.cloud.unknown_calls.append(name)
        raise GRPCError(Status.UNIMPLEMENTED, f"the Modal stand-in does not know {name}")

    return refuse
