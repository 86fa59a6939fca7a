"""Prints the step in a checkpoint file: `python -m crucible.adapter.read_step FILE`; exit code 1 if none is found.

A process of its own, since the file is a stranger's: it is loaded with `weights_only`, which executes nothing, and
mapped rather than read. Exit code 1 as well without torch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

KEYS = ("iter_num", "step", "global_step", "iteration", "epoch")


def main(path: str) -> int:
    """Exit code 0 when a step was found and printed."""
    try:
        import torch

        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # noqa: BLE001 - whatever it is, the step is not known
        print(error, file=sys.stderr)
        return 1
    if isinstance(content, Mapping):
        for key in KEYS:
            value = content.get(key)
            if isinstance(value, torch.Tensor) and value.numel() == 1:
                value = value.item()
            if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
                print(int(value))
                return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
