"""Prefect's engine, loaded before there is a flow run for it: `python -m crucible.pools.local.engine`.

The worker keeps one such process (`crucible.pools.local.prewarmed`). When a flow run begins, it sends the environment
and the working folder of the run, as one line of JSON, to the process's standard input. Only Prefect is loaded, so the
flow run sees every change made to the project since. The process ends with its worker.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import signal
import sys


def main() -> None:
    """Load, wait for the flow run, and be its engine."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C meant for the worker ends this without a traceback
    import prefect.engine
    import prefect.flow_engine

    with contextlib.suppress(ImportError):  # loaded by the engine too, where this version has it
        importlib.import_module("prefect._internal.metrics")
    line = sys.stdin.buffer.readline()
    if not line:
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    orders = json.loads(line)
    os.environ.clear()
    os.environ.update(orders["environment"])
    os.chdir(orders["folder"])
    sys.path[0] = orders["folder"]  # as `python -m` has it
    sys.argv = [prefect.engine.__file__]
    runpy.run_path(prefect.engine.__file__, run_name="__main__")


if __name__ == "__main__":
    main()
