"""A flow run on a machine that may not reach the Prefect server: `python -m tasks.unconnected`.

With a server it is an ordinary flow run. Without one, an attempt goes on all the same: what it needs to know is in
CRUCIBLE_ATTEMPT_OF, its records are in the store, and whoever supervises the job reads them there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from types import FrameType
from typing import Any

import httpx
from prefect.exceptions import TerminationSignal

from crucible.contract import EXIT_SAVED
from crucible.errors import CrucibleError
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, Heartbeat
from crucible.pools.common.unconnected import ATTEMPT_OF
from crucible.store import Store, default_store_uri
from tasks.storage import open_store
from tasks.training import train_attempt

FLOW_RUN_ID = "PREFECT__FLOW_RUN_ID"
LOOKS = 4
LOOK_SECONDS, PAUSE_SECONDS = 5.0, 5.0


class Printing:
    """Shows an attempt in what its batch job prints."""

    def log(self, line: str) -> None:
        print(line, flush=True)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        return

    def heartbeat(self, heartbeat: Heartbeat) -> None:
        return

    def event(self, kind: str, message: str, **details: Any) -> None:
        print(f"{kind}: {message}", flush=True)


def main() -> int:
    """Become the flow run's engine; without a server, run the attempt to its end. The exit code says how it ended."""
    given = os.environ.get(ATTEMPT_OF)
    if given is None or server_answers(os.environ.get("PREFECT_API_URL", "")):
        os.execv(sys.executable, [sys.executable, "-m", "prefect.engine"])
    attempt = json.loads(given)
    print("No Prefect server is in reach: the attempt goes on with its records in the store alone", flush=True)
    os.environ.pop(FLOW_RUN_ID, None)  # there is no server to report it to
    signal.signal(signal.SIGTERM, _raise_termination)
    try:
        job = Job.open(_store(str(attempt["store"])), str(attempt["job"]))
        outcome = train_attempt(job, int(attempt["attempt"]), Printing())
    except CrucibleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{outcome.end_reason.value}: {outcome.message}", flush=True)
    if outcome.end_reason in (EndReason.COMPLETED, EndReason.PAUSED):
        return 0
    return 1 if outcome.end_reason is EndReason.FAILED else EXIT_SAVED


def server_answers(api_url: str, looks: int = LOOKS, pause_seconds: float = PAUSE_SECONDS) -> bool:
    """Whether the Prefect server answers, within some looks: a tunnel or a busy server takes its time."""
    for look in range(looks):
        if look:
            time.sleep(pause_seconds)
        try:
            if not httpx.get(f"{api_url.rstrip('/')}/health", timeout=LOOK_SECONDS).is_server_error:
                return True
        except (httpx.HTTPError, httpx.InvalidURL):
            continue
    return False


def _store(reference: str) -> Store:
    """The job's store; the block `default` lives on the server, and CRUCIBLE_STORE says the same."""
    return open_store(default_store_uri() if reference == "default" else reference)


def _raise_termination(number: int, frame: FrameType | None) -> None:
    raise TerminationSignal(signal=number)


if __name__ == "__main__":
    sys.exit(main())
