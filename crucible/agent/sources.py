"""Where notices come from on this machine: the container's stop signal, EC2's metadata, the machine's lifetime."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from crucible.agent.notices import Notice, NoticeSource
from crucible.agent.notices_ec2 import Ec2MetadataNotices
from crucible.contract import DEFAULT_STOP_GRACE_SECONDS, StopReason, Variable

LIFETIME_MARGIN_SECONDS = 120.0


class StopFile:
    """The stop request that a container's entrypoint writes when it gets SIGTERM or SIGINT.

    A file that is there but damaged still means stop: nobody writes it for another reason.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def poll(self) -> Notice | None:
        try:
            request = StopReason.read(self.path)
            return Notice(request.source, request.reason, request.deadline)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            try:
                deadline = self.path.stat().st_mtime + DEFAULT_STOP_GRACE_SECONDS
            except OSError:
                return None
            return Notice("container", f"the container was asked to stop; the stop file is damaged: {error}", deadline)


class MachineLifetime:
    """The hour at which the pool takes the machine away: stop early enough to save."""

    def __init__(self, ends_at: float, margin_seconds: float = LIFETIME_MARGIN_SECONDS) -> None:
        self.ends_at, self.margin_seconds = ends_at, margin_seconds

    def poll(self) -> Notice | None:
        if time.time() < self.ends_at - self.margin_seconds:
            return None
        return Notice(source="lifetime", reason="the pool's lifetime limit is near", deadline=self.ends_at)


def sources_of_this_machine(environment: Mapping[str, str] = os.environ) -> list[NoticeSource]:
    """The sources that exist here: EC2's metadata always (it finds out by itself), the others where configured."""
    sources: list[NoticeSource] = [Ec2MetadataNotices()]
    if path := environment.get(Variable.STOP_FILE):
        sources.append(StopFile(Path(path)))
    if ends_at := environment.get(Variable.MACHINE_ENDS_AT):
        sources.append(MachineLifetime(float(ends_at)))
    return sources
