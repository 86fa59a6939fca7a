"""Keeps the restarter running: `python -m crucible.supervision.watchdog`.

`crucible.supervision.restarter` does the work in a process of its own. Should that die, of memory or of a bug, this
one, which needs neither libraries nor memory, starts it again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

RESTARTER = "crucible.supervision.restarter"
PAUSE_SECONDS = 5.0
GUARD = Path(__file__).parents[1] / "agent" / "parent_death_guard.py"
"""The restarter ends with this process, however that ends."""


def main() -> None:
    """Start the restarter again and again."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        command = [sys.executable, "-S", "-E", str(GUARD), str(os.getpid()), sys.executable, "-m", RESTARTER]
        # A session of its own: the guard kills its whole process group.
        code = subprocess.run(command, check=False, start_new_session=True).returncode
        print(f"the restarter ended with exit code {code}; starting it again", flush=True)
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main()
