from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

PAGES_OF_FIVE_STEPS = """
import resource, sys
from pathlib import Path
from crucible.config import TrainConfig
from crucible.training.data import Dataset
from crucible.training.trainer import Trainer

trainer = Trainer(TrainConfig.preset("cpu-small", threads=1, fast_gemm="off"), Dataset(Path(sys.argv[1])))
faults = []
for _ in range(10):
    trainer.train_step()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[-6])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told what to keep")
def test_a_step_takes_no_memory_from_the_kernel_that_an_earlier_one_had(data_folder: Path) -> None:
    command = [sys.executable, "-c", PAGES_OF_FIVE_STEPS, str(data_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 500, "thousands a step when everything is given back and asked for again"
