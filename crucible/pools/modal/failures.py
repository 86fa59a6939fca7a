"""Every way in which a flow run on Modal can come to nothing, and what the end of a sandbox says about its flow run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from crucible.pools.common.failures import NothingRuns, PoolFailure

if TYPE_CHECKING:
    from crucible.pools.modal.configuration import ModalJobConfiguration

_KILLED = 137


class ModalFailure(PoolFailure):
    """Base of all failures on the way to a sandbox and of all its bad ends; the class names the flow run's state."""

    def __init_subclass__(cls) -> None:
        cls.state_name = cls.__name__


class NoCapacity(ModalFailure):
    """None of the wanted GPUs was available in time."""


class ImageBuildFailed(ModalFailure):
    """Modal could not build or find the image."""


class ImageBuildInterrupted(ModalFailure):
    """Modal stopped building the image, or a registry or mirror did not deliver; the same build may succeed later."""

    state_name = "ImageBuildInterrupted"


class TokenRefused(ModalFailure):
    """There is no Modal token, or Modal does not accept it."""


class ModalUnreachable(ModalFailure):
    """Modal's API does not answer."""


class RequestRefused(ModalFailure):
    """Modal understood the request and refused it: a wrong GPU name, a secret that does not exist, a spent budget."""


class ApiOutOfReach(ModalFailure):
    """The sandbox could not reach the Prefect API under the address it would be given."""


class SandboxStopped(ModalFailure):
    """Something ended the sandbox from outside."""


class LifetimeReached(ModalFailure):
    """The sandbox still worked when its lifetime was over."""


class SandboxExited(ModalFailure):
    """The command in the sandbox ended without a final state of its flow run."""


class SandboxGone(ModalFailure, NothingRuns):
    """Modal knows nothing of the sandbox any more."""


PERMANENT = frozenset(kind.state_name for kind in (ImageBuildFailed, TokenRefused, RequestRefused, ApiOutOfReach))
"""Names of states that another attempt would only repeat: a person has to fix something first."""


@dataclass(frozen=True)
class End:
    """How a sandbox ended, as far as Modal reports it.

    `terminated` covers a preemption, a lost machine and a termination on request alike; Modal gives 137 for all three.
    """

    how: Literal["exited", "terminated", "lifetime"]
    code: int


def failure_of(end: End, configuration: ModalJobConfiguration, last_output: str) -> ModalFailure:
    """The failure that a sandbox's end is for a flow run without a final state of its own."""
    printed = f"\nIts last output:\n{last_output}" if last_output else ""
    if end.how == "terminated":
        return SandboxStopped(
            "Modal ended the sandbox: preempted, its machine lost, or terminated on request; Modal does not say which. "
            f"What was saved stands in the attempt's own record, not in this exit code (137).{printed}"
        )
    if end.how == "lifetime":
        return LifetimeReached(
            f"The sandbox's lifetime of {configuration.timeout_seconds} s was over. Longer work has to save before and "
            f"go on in a new sandbox; job variable timeout_seconds may be at most 86400.{printed}"
        )
    if end.code == _KILLED:
        return SandboxExited(
            "The sandbox's command was killed (137), out of memory perhaps; job variable memory_mib asks for more. "
            f"What was saved stands in the attempt's own record.{printed}"
        )
    return SandboxExited(
        f"The sandbox's command ended with exit code {end.code} before the flow run had a final state.{printed}"
    )
