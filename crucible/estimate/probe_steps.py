"""The part of a probe that runs in a separate process: a few steps of the real trainer, timed one by one.

    python -m crucible.estimate.probe_steps CONFIG.json DATASET_FOLDER STEPS WARM_UP

prints one line of JSON. Times are given twice, by the clock and in CPU seconds of this process: on a machine that is
shared, only the latter measure the work.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from crucible.config import TrainConfig
from crucible.training.hardware import may_compute_on_cpu

GPU_SECONDS = 20.0
"""Of steps on a GPU: with what torch.compile takes before them, a probe is done within a minute."""


def main(config_file: str, dataset_folder: str, steps: int, warm_up: int) -> None:
    config = TrainConfig.from_file(config_file)
    gemm = "mkl"
    if may_compute_on_cpu(config.device):
        from crucible.training import cpu

        gemm = cpu.choose_gemm(config.fast_gemm).backend  # before torch is imported
    import torch

    from crucible.training.data import Dataset
    from crucible.training.evaluate import estimate_loss
    from crucible.training.saver import Saver
    from crucible.training.state import tensor_files
    from crucible.training.trainer import Trainer

    trainer = Trainer(config, Dataset(Path(dataset_folder)), gemm=gemm)
    trainer.model.train()
    on_gpu = trainer.device.type == "cuda"

    def now() -> tuple[float, float]:
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    times: list[tuple[float, float]] = []
    for _ in range(warm_up + steps):
        began = now()
        trainer.train_step()
        ended = now()
        times.append((ended[0] - began[0], ended[1] - began[1]))
        if on_gpu and len(times) > 1 and sum(wall for wall, _ in times) > GPU_SECONDS:
            break
    timed = times[min(warm_up, len(times) - 1) :]

    began = now()
    batches = 2
    estimate_loss(trainer.model, trainer.dataset, "train", batches, trainer.autocast())
    ended = now()
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(Path(folder), tensor_files(trainer.optimizer), None, lambda line: None)
        saver.save(trainer.step, {}, time.perf_counter())
        saver.poll(wait=True)
        saver.close()
    print(
        json.dumps(
            {
                "seconds": [wall for wall, _ in timed],
                "cpu_seconds": [cpu for _, cpu in timed],
                "evaluation_seconds": (ended[0] - began[0]) / batches,
                "evaluation_cpu_seconds": (ended[1] - began[1]) / batches,
                "evaluation_batches": batches,
                "environment": trainer.environment,
                "threads": torch.get_num_threads(),
                "gpu_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
