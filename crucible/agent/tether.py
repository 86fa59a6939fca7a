"""Lets the workload die with the agent: `python -S -E tether.py AGENT_PID COMMAND…`.

Asks the kernel to kill this process when its parent dies, then becomes COMMAND, which keeps that arrangement. Without
it, a workload whose agent was killed would train on for nobody, and hold the GPU against the next attempt. Only Linux
has this; elsewhere the workload is started as it is.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(sys.argv[1]):  # the agent died before the arrangement was made
            sys.exit(1)
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        print(f"cannot start {sys.argv[2]!r}: {error.strerror}", file=sys.stderr)
        sys.exit(127)
