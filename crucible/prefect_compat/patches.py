"""What every patch of another package's code declares, and the only way to apply one.

A patch replaces code of Prefect or of one of its libraries, because neither a public API nor a class of our own can do
what is needed. It is applied by the entry points of Crucible's own processes, never on import, so installing Crucible
changes nobody else's worker or server. A patch whose self-check fails stays off, with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

NONE_FOUND = "none found"

logger = logging.getLogger("crucible.prefect_compat")


@dataclass(frozen=True)
class Patch:
    """One fault of one library, and what keeps it away."""

    name: str
    fault: str
    """What goes wrong without the patch, in at most two lines."""
    issue: str
    """Address of the upstream issue, or `NONE_FOUND`."""
    versions: str
    """The versions that the patch was checked with, such as "prefect 3.8.8"."""
    delete_when: str
    """The condition under which the patch has done its work."""
    self_check: Callable[[], str | None]
    """Says how the code to be patched differs from what the patch was written for; None: it does not. It changes
    nothing, needs no server, and also works where the patch is in force already."""
    apply: Callable[[], None]
    """Put the patch in force in this process; a second call does nothing."""


@dataclass(frozen=True)
class PatchStatus:
    """Whether a patch can be in force with the versions that are installed here."""

    patch: Patch
    difference: str | None

    @property
    def on(self) -> bool:
        return self.difference is None


def check(patch: Patch) -> PatchStatus:
    """Run a patch's self-check."""
    return PatchStatus(patch, difference_of(patch.self_check))


def difference_of(self_check: Callable[[], str | None]) -> str | None:
    """What the check found. An exception is a difference too: the code that was looked at has another shape."""
    try:
        return self_check()
    except Exception as error:  # noqa: BLE001 - whatever the library has become
        return f"{type(error).__name__}: {error}"


def apply_all(patches: Iterable[Patch]) -> list[PatchStatus]:
    """Apply each patch whose self-check passes to this process; warn of every other."""
    found = [check(patch) for patch in patches]
    for status in found:
        if status.on:
            status.patch.apply()
        else:
            logger.warning(
                "Patch %s stays OFF: %s. It was checked with %s. Without it: %s (upstream: %s)",
                status.patch.name,
                status.difference,
                status.patch.versions,
                status.patch.fault,
                status.patch.issue,
            )
    return found
