"""Where local state lives."""

from __future__ import annotations

import os
from pathlib import Path


def crucible_home() -> Path:
    """The folder of local state: `$CRUCIBLE_HOME`, or `~/.crucible`."""
    return Path(os.environ.get("CRUCIBLE_HOME") or "~/.crucible").expanduser().absolute()
