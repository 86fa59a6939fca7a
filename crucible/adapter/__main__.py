"""Run a foreign script as a workload: `python -P -m crucible.adapter --script script.json`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from crucible.adapter.adapter import Adapter
from crucible.contract import Variable
from crucible.errors import ConfigError, CrucibleError
from crucible.script_config import ScriptConfig


def main(arguments: list[str] | None = None) -> int:
    """The exit code for the agent; 2 for a mistake of the person who configured it."""
    parser = argparse.ArgumentParser("python -m crucible.adapter", description=__doc__)
    parser.add_argument("--script", type=Path, required=True, help="a JSON file: the script's configuration")
    given = parser.parse_args(arguments)
    try:
        script = ScriptConfig.model_validate_json(given.script.read_text(encoding="utf-8"))
        for name in (Variable.CHECKPOINT_DIR, Variable.METRICS_FILE):
            if name not in os.environ:
                raise ConfigError(f"{name} is not set; the agent sets it, see docs/workload-contract.md")
        adapter = Adapter(script, os.environ, Path.cwd())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, adapter.request_stop)
        return adapter.run()
    except CrucibleError as error:
        print(error, flush=True)
        return 2


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # a thread may still wait for what the script left running
