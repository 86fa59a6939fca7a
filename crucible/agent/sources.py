"""Where notices come from on this machine: the container's stop signal, its cloud's metadata, its lifetime."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from crucible.agent.notices import Notice, NoticeSource
from crucible.agent.notices_azure import AzureMetadataNotices
from crucible.agent.notices_ec2 import Ec2MetadataNotices
from crucible.agent.notices_gcp import GcpMetadataNotices
from crucible.contract import DEFAULT_STOP_GRACE_SECONDS, StopReason, Variable
from crucible.jobs.records import EndReason

LIFETIME_MARGIN_SECONDS = 120.0
EXPLANATION_SECONDS = 3.0
FIRMWARE = Path("/sys/class/dmi/id")
GCP_PRODUCT = "Google Compute Engine"
AZURE_CHASSIS = "7783-7084-3265-9085-8269-3286-77"
"""What the firmware of these clouds' machines says, as cloud-init knows them; on others nothing is asked over the
network."""
PERSON = "person"
"""The source of stop requests after which there is to be no further attempt."""


class StopFile:
    """The stop request that a container's entrypoint writes when it gets SIGTERM or SIGINT.

    A file that is there but damaged still means stop: nobody writes it for another reason.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def poll(self) -> Notice | None:
        try:
            request = StopReason.read(self.path)
            end_reason = EndReason.CANCELLED if request.source == PERSON else EndReason.INTERRUPTED
            return Notice(request.source, request.reason, request.deadline, end_reason=end_reason)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            try:
                deadline = self.path.stat().st_mtime + DEFAULT_STOP_GRACE_SECONDS
            except OSError:
                return None
            return Notice("container", f"the container was asked to stop; the stop file is damaged: {error}", deadline)

    def wait(self, seconds: float) -> Notice | None:
        """The notice, as soon as it is there; None if it does not come within so many seconds."""
        deadline = time.monotonic() + seconds
        while (notice := self.poll()) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return notice


class MachineLifetime:
    """The hour at which the pool takes the machine away: stop early enough to save."""

    def __init__(self, ends_at: float, margin_seconds: float = LIFETIME_MARGIN_SECONDS) -> None:
        self.ends_at, self.margin_seconds = ends_at, margin_seconds

    def poll(self) -> Notice | None:
        if time.time() < self.ends_at - self.margin_seconds:
            return None
        return Notice(source="lifetime", reason="the pool's lifetime limit is near", deadline=self.ends_at)


def sources_of_this_machine(
    environment: Mapping[str, str] = os.environ, firmware: Path = FIRMWARE
) -> list[NoticeSource]:
    """The sources that exist here: EC2's metadata always (it finds out by itself), those of Google Cloud and Azure on
    their machines, the others where configured."""
    sources: list[NoticeSource] = [Ec2MetadataNotices()]
    if environment.get("GCE_METADATA_HOST") or _says(firmware / "product_name", GCP_PRODUCT):
        sources.append(GcpMetadataNotices())
    if _says(firmware / "chassis_asset_tag", AZURE_CHASSIS):
        sources.append(AzureMetadataNotices())
    if path := environment.get(Variable.STOP_FILE):
        sources.append(StopFile(Path(path)))
    if ends_at := environment.get(Variable.MACHINE_ENDS_AT):
        margin = environment.get(Variable.LIFETIME_MARGIN_SECONDS) or LIFETIME_MARGIN_SECONDS
        sources.append(MachineLifetime(float(ends_at), float(margin)))
    return sources


def _says(file: Path, words: str) -> bool:
    try:
        return file.read_text(errors="replace").strip() == words
    except OSError:
        return False


def why_signalled(environment: Mapping[str, str] = os.environ) -> Notice | None:
    """Why the processes of this machine were signalled, where that is not known yet.

    Slurm signals all of a job's processes at once, the workload among them, which may have saved and left before the
    batch script has learned why and written the stop file.
    """
    if "SLURM_JOB_ID" not in environment or not (path := environment.get(Variable.STOP_FILE)):
        return None
    return StopFile(Path(path)).wait(EXPLANATION_SECONDS)
