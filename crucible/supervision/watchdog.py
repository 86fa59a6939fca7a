"""Keeps the restarter running: `python -m crucible.supervision.watchdog [MODULE]`.

`crucible.supervision.restarter`, or the module that is named, does the work in a process of its own. Should that die,
of memory or of a bug, this one, which needs neither libraries nor memory, starts it again.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from crucible.parent_death_guard import guarded

RESTARTER = "crucible.supervision.restarter"
PAUSE_SECONDS = 5.0


def main() -> None:
    """Start the restarter again and again."""
    module = sys.argv[1] if len(sys.argv) > 1 else RESTARTER
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        command = guarded([sys.executable, "-m", module])  # it ends with this process, however that ends
        # A session of its own: the guard kills its whole process group.
        code = subprocess.run(command, check=False, start_new_session=True).returncode
        print(f"{module} ended with exit code {code}; starting it again", flush=True)
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main()
