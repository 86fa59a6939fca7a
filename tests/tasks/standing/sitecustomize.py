"""Lets the trainer of the second node stand still at a step. Python imports this at its start where its folder is on
PYTHONPATH, so a test can stop Crucible's own trainer on a pool that starts it as for every user.

`TEST_DEATH` names a file with the step. Whoever gets there removes the file and goes no further, so that the first node
cannot either: both have trained exactly so many steps when a test sees that the file is gone, and kills the node.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

DEATH = "TEST_DEATH"
STANDING = Path(__file__).parent


def stand_at_death() -> None:
    """Change the trainer of this process, if it is the second node's and the file is there."""
    file = Path(os.environ.get(DEATH, ""))
    if os.environ.get("RANK") != "1" or not file.is_file():
        return
    from crucible.training.trainer import Trainer

    step, whole = int(file.read_text()), Trainer.train_step

    def train_step(self: Trainer) -> None:
        if self.step == step:
            file.unlink()
            threading.Event().wait()
        whole(self)

    Trainer.train_step = train_step  # type: ignore[method-assign]


if sys.orig_argv[1:3] == ["-m", "crucible.training"]:
    stand_at_death()
