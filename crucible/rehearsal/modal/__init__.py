"""Modal on a laptop: a local control plane for the unmodified `modal` SDK that really executes sandboxes.

Start with `FakeModal`. What it does not do: build images (a sandbox sees this machine's files and the Python that runs
the stand-in), limit the network, execute commands in a running sandbox, snapshots, Functions. A call of the SDK that it
does not know is refused, and is listed by `FakeModal.unknown_calls`.
"""

from crucible.rehearsal.modal.cloud import SandboxView
from crucible.rehearsal.modal.fake import FakeModal

__all__ = ["FakeModal", "SandboxView"]
