"""`python -m crucible.trackers`: one tracker's process. `crucible.trackers.process` starts it and reads what it prints.

The first line on stdin is the request. The end of stdin means: send what is left, then leave.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence

from crucible.jobs.job import Job
from crucible.store import Store, store_of_block
from crucible.sweeps.sweep import Sweep
from crucible.trackers.follow import Follower
from crucible.trackers.process import TrackerRequest

FILE_POLL_SECONDS, OTHER_POLL_SECONDS = 3.0, 15.0
"""Between two looks: often where reading is free."""


def main() -> int:
    """Follow until stdin ends; exit code 0 if the tracker has everything."""
    request = TrackerRequest.model_validate_json(sys.stdin.readline())
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what the libraries print is not for the log of the flow run
    over = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait_for_the_end, name="stdin", daemon=True).start()
    store = store_of_block(request.store)
    follower = Follower(
        request.tracker,
        lambda: _jobs(store, request),
        lambda line: print(line, file=lines),
        finish_at_once=bool(request.sweep),
        poll_seconds=FILE_POLL_SECONDS if store.uri.startswith("file:") else OTHER_POLL_SECONDS,
    )
    complete = follower.follow(over)
    lines.flush()
    os._exit(0 if complete else 1)  # a library's threads must not keep the process


def _jobs(store: Store, request: TrackerRequest) -> Sequence[Job]:
    if request.sweep:
        return [Job(store, trial.job_id) for trial in Sweep(store, request.sweep).read_trial_records()]
    job = Job(store, request.job)
    return [job] if job.store.exists("job.json") else []


if __name__ == "__main__":
    sys.exit(main())
