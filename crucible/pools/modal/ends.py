"""What the end of a sandbox says about its flow run, when the run itself has not said how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crucible.pools.modal.configuration import ModalJobConfiguration
from crucible.pools.modal.failures import LifetimeReached, ModalFailure, SandboxExited, SandboxStopped

_KILLED = 137


@dataclass(frozen=True)
class End:
    """How a sandbox ended, as far as Modal tells.

    `terminated` covers a preemption, a lost machine and a termination on request alike; Modal gives 137 for all three.
    """

    how: Literal["exited", "terminated", "lifetime"]
    code: int


def failure_of(end: End, configuration: ModalJobConfiguration, last_words: str) -> ModalFailure:
    """The failure that a sandbox's end is for a flow run without a final state of its own."""
    told = f"\nIts last output:\n{last_words}" if last_words else ""
    if end.how == "terminated":
        return SandboxStopped(
            "Modal ended the sandbox: preempted, its machine lost, or terminated on request; Modal does not say which. "
            f"What was saved stands in the attempt's own record, not in this exit code (137).{told}"
        )
    if end.how == "lifetime":
        return LifetimeReached(
            f"The sandbox's lifetime of {configuration.timeout_seconds} s was over. Longer work has to save before and "
            f"go on in a new sandbox; job variable timeout_seconds may be at most 86400.{told}"
        )
    if end.code == _KILLED:
        return SandboxExited(
            "The sandbox's command was killed (137), out of memory perhaps; job variable memory_mib asks for more. "
            f"What was saved stands in the attempt's own record.{told}"
        )
    return SandboxExited(
        f"The sandbox's command ended with exit code {end.code} before the flow run had a final state.{told}"
    )
