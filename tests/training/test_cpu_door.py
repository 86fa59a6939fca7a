"""What only CPUs need is not even imported where a GPU computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# A GPU cannot be had everywhere: `meta` tensors stand for its, which is enough to make everything a step uses.
WITHOUT_A_CPU = """
import contextlib
import sys
from pathlib import Path
import torch
from crucible.config import TrainConfig
from crucible.training import trainer
from crucible.training.data import Dataset
from crucible.training.hardware import may_compute_on_cpu
import crucible.training.__main__

trainer.choose_device = lambda config, rank: torch.device("meta")
trainer.choose_precision = lambda config, device, log: torch.float32
config = TrainConfig.preset("cpu-small", device="cuda", compile=False)
assert not may_compute_on_cpu(config.device)
made = trainer.Trainer(config, Dataset(Path(sys.argv[1])))
made.autocast = contextlib.nullcontext  # which knows no "meta"
loss = made._compute_gradients()
made.optimizer.clip(1.0)
assert loss.device.type == made.optimizer.weights.device.type == "meta"
print([name for name in sys.modules if name.startswith("crucible.training.cpu")])
"""


def test_a_gpu_imports_none_of_it(data_folder: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_A_CPU, str(data_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
