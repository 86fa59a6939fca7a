"""Why a flow run on a pool came to nothing, and the state of one that waits: what supervisors know of workers.

Apart from the workers themselves, which load half of Prefect: each supervisor would load that too.
"""

from __future__ import annotations

from typing import ClassVar

from crucible.errors import CrucibleError

QUEUED = "Queued"
"""Name of the state, of type PENDING, of a run that waits in its pool's own queue; its turn comes."""


class PoolFailure(CrucibleError):
    """Why a flow run on a pool came to nothing. `state_name` names its state, which is of the type CRASHED.

    It never says whether the work was saved: only the attempt's own record does.
    """

    state_name: ClassVar[str] = "Crashed"
    cancels: ClassVar[bool] = False
    """Whether a person wanted this end: the run is then cancelled."""


class NothingRuns(PoolFailure):
    """The pool knows nothing that runs, or ran, for the flow run."""
