"""First process of a container: `python -m crucible.agent.entrypoint -- COMMAND…`.

A container's first process gets the SIGTERM of `docker stop`, of ECS, of Modal's preemption (SIGINT there). Were that
Prefect's own runner, it would report the run as finished or to be rescheduled before anything is saved. So this
process stands in front: it writes the stop request to a file that the agent watches, lets the command go on until it
has saved and left by itself, and exits with its code. It also reaps orphans, as a first process must.

`CRUCIBLE_STOP_GRACE_SECONDS` is how long the pool waits between its signal and SIGKILL (default 30, as ECS's and
Docker's own defaults are at most); the agent plans its last save by it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

from crucible.contract import DEFAULT_STOP_GRACE_SECONDS, StopReason, Variable
from crucible.loopback import bypass_proxies


def main(arguments: list[str]) -> int:
    """Run the command after `--` and return its exit code; 2 for misuse, 127 when it cannot be started."""
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    if not command:
        print("usage: python -m crucible.agent.entrypoint -- COMMAND [ARGUMENT …]", file=sys.stderr)
        return 2
    given = os.environ.get(Variable.STOP_GRACE_SECONDS) or str(DEFAULT_STOP_GRACE_SECONDS)
    try:
        grace_seconds = float(given)
    except ValueError:
        print(f"{Variable.STOP_GRACE_SECONDS} is {given!r}; it must be a number of seconds", file=sys.stderr)
        return 2
    stop_file = Path(os.environ.get(Variable.STOP_FILE) or Path(tempfile.mkdtemp(prefix="crucible-"), "stop.json"))
    stop_file.unlink(missing_ok=True)

    def request_stop(number: int, _frame: FrameType | None) -> None:
        reason = f"the container was asked to stop ({signal.Signals(number).name})"
        try:
            StopReason("container", reason, time.time() + grace_seconds).write(stop_file)
        except OSError:  # a full disk: that the file is there means stop, whatever is in it
            with suppress(OSError):
                stop_file.touch()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, request_stop)
    # A session of its own: a terminal's or a pool's signal to the whole group must reach this process alone.
    environment = {**os.environ, Variable.STOP_FILE: str(stop_file)}
    bypass_proxies(environment)  # Docker gives containers the proxies of its own configuration
    try:
        child = subprocess.Popen(command, env=environment, start_new_session=True)
    except OSError as error:
        print(f"cannot start {command[0]!r}: {error.strerror}", file=sys.stderr)
        return 127
    code = _reap_until(child.pid)
    return code if code >= 0 else 128 - code


def _reap_until(child: int) -> int:
    """Wait for children, orphans that became ours included, until `child` has ended; its exit code, negative for a
    signal."""
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
