"""Every way in which a flow run on Modal can come to nothing: a name for its state, and a sentence for the reader.

The names are the names of Prefect states of type CRASHED. None of them says whether the work was saved: that is known
only to whoever did the work.
"""

from __future__ import annotations

from typing import ClassVar

from crucible.errors import CrucibleError


class ModalFailure(CrucibleError):
    """Base of all failures on the way to a sandbox and of all its bad ends."""

    state_name: ClassVar[str] = "Crashed"


class NoCapacity(ModalFailure):
    """None of the wanted GPUs was to be had in time."""

    state_name = "NoCapacity"


class ImageBuildFailed(ModalFailure):
    """Modal could not build or find the image."""

    state_name = "ImageBuildFailed"


class TokenRefused(ModalFailure):
    """There is no Modal token, or Modal does not accept it."""

    state_name = "TokenRefused"


class ModalUnreachable(ModalFailure):
    """Modal's API does not answer."""

    state_name = "ModalUnreachable"


class RequestRefused(ModalFailure):
    """Modal understood the request and refused it: a wrong GPU name, a secret that does not exist, a spent budget."""

    state_name = "RequestRefused"


class ApiOutOfReach(ModalFailure):
    """The sandbox could not reach the Prefect API under the address it would be given."""

    state_name = "ApiOutOfReach"


class SandboxStopped(ModalFailure):
    """Something ended the sandbox from outside."""

    state_name = "SandboxStopped"


class LifetimeReached(ModalFailure):
    """The sandbox was still at work when its lifetime was over."""

    state_name = "LifetimeReached"


class SandboxExited(ModalFailure):
    """The command in the sandbox ended without a final state of its flow run."""

    state_name = "SandboxExited"


class SandboxGone(ModalFailure):
    """Modal knows nothing of the sandbox any more."""

    state_name = "SandboxGone"


class NotWanted(ModalFailure):
    """The run was cancelled, or went elsewhere, before it had a sandbox."""


PERMANENT = frozenset(kind.state_name for kind in (ImageBuildFailed, TokenRefused, RequestRefused, ApiOutOfReach))
"""Names of states that another attempt would only repeat: a person has to mend something first."""
