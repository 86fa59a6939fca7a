from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS_OF_A_STEP = """
import resource, statistics, sys
from pathlib import Path
from crucible.config import TrainConfig
from crucible.training.data import Dataset
from crucible.training.trainer import Trainer

trainer = Trainer(TrainConfig.preset("cpu-small", threads=1, fast_gemm="off"), Dataset(Path(sys.argv[1])))
before, faults = 0, []
for _ in range(15):
    trainer.train_step()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    faults.append(after - before)
    before = after
print(statistics.median(faults[-11:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told what to keep")
def test_a_step_takes_no_memory_from_the_kernel_that_an_earlier_one_had(data_folder: Path) -> None:
    command = [sys.executable, "-c", FAULTS_OF_A_STEP, str(data_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100, "thousands when everything is given back and asked for again"
