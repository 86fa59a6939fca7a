"""Prefect's engine, loaded before there is a flow run for it: `python -m crucible.pools.local.engine`.

The worker keeps one such process ahead (`crucible.pools.local.prewarmed`)
and tells it on its standard input, in one line of
JSON, what a new process would have got: environment and working directory. Only Prefect is loaded, so whatever has
changed in the project since is seen. When the worker goes, so does this.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys


def main() -> None:
    """Load, wait for the flow run, and be its engine."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C that is meant for the worker ends this without a traceback
    import prefect._internal.metrics
    import prefect.engine
    import prefect.flow_engine

    line = sys.stdin.buffer.readline()
    if not line:
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    told = json.loads(line)
    os.environ.clear()
    os.environ.update(told["environment"])
    os.chdir(told["folder"])
    sys.path[0] = told["folder"]  # as `python -m` has it
    sys.argv = [prefect.engine.__file__]
    runpy.run_path(prefect.engine.__file__, run_name="__main__")


if __name__ == "__main__":
    main()
