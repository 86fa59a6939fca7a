"""A probe: a few steps of the real trainer in a separate process, to measure the speed of this machine.

Three steps warm up, the median of the next ten counts: a single hiccup makes a mean wrong by a factor of two. On a GPU
it takes fewer of them where they are long, so that a probe is done within a minute. On a shared machine, wall time
depends on the other users; the CPU seconds of the same steps are steady there, so both are kept.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from crucible.errors import CrucibleError
from crucible.estimate.needs import Needs
from crucible.estimate.speed import Speed

WARM_UP_STEPS = 3
STEPS = 10
_TOKENS = 1 << 16
_FACTOR = 1.15  # 8 of 10 probes of this length are right to within this factor


@dataclass(frozen=True)
class Probe:
    """Medians over the probe's steps."""

    steps: int
    seconds_per_step: float
    cpu_seconds_per_step: float
    evaluation_seconds: float
    """Per batch of a loss estimate."""
    evaluation_cpu_seconds: float
    fixed_cpu_seconds: float
    """Of the whole process, what was neither a step nor a loss estimate: starting, one save, ending."""
    gpu_memory_gib: float | None
    hardware: str

    def speed(self, cpu_seconds: bool = False) -> Speed:
        """As a speed by the clock, or in CPU seconds."""
        step = self.cpu_seconds_per_step if cpu_seconds else self.seconds_per_step
        evaluation = self.evaluation_cpu_seconds if cpu_seconds else self.evaluation_seconds
        unit = " in CPU seconds" if cpu_seconds else ""
        return Speed(
            step,
            step / _FACTOR,
            step * _FACTOR,
            "probe",
            f"median of {self.steps} steps just now{unit}",
            evaluation_share=evaluation / step,
        )


class ProbeError(CrucibleError):
    """The probe's steps failed; the message is the trainer's own."""


def probe(needs: Needs, dataset: Path | None = None, steps: int = STEPS, timeout_seconds: float = 900.0) -> Probe:
    """Run the probe on this machine; without a dataset, on random tokens of the same vocabulary (equally fast).

    Raises:
        ProbeError: the trainer refused or failed, or took longer than `timeout_seconds`.
    """
    with tempfile.TemporaryDirectory(prefix="crucible-probe-") as folder:
        config = Path(folder, "config.json")
        config.write_text(needs.config.model_dump_json(), encoding="utf-8")
        data = dataset or _random_dataset(Path(folder, "data"), needs)
        command = [sys.executable, "-m", "crucible.estimate.probe_steps"]
        command += [str(config), str(data), str(steps), str(WARM_UP_STEPS)]
        environment = {**os.environ, **({"OMP_NUM_THREADS": str(needs.config.threads)} if needs.config.threads else {})}
        before = _cpu_seconds_of_children()
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout_seconds, env=environment, check=False
            )
        except subprocess.TimeoutExpired:
            raise ProbeError(f"the probe was not done after {timeout_seconds:g} s; estimate without --probe") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        problem = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ProbeError(f"the probe failed: {problem}")
    return _Measured.model_validate_json(lines[-1]).probe(_cpu_seconds_of_children() - before)


def _cpu_seconds_of_children() -> float:
    """Of every process this one has started and waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class _Measured(BaseModel):
    """The line that `probe_steps` prints. Lists have one entry per step; evaluation times are per batch."""

    model_config = ConfigDict(extra="ignore")

    seconds: list[float]
    cpu_seconds: list[float]
    evaluation_seconds: float
    evaluation_cpu_seconds: float
    evaluation_batches: int
    environment: dict[str, Any]
    gpu_memory_gib: float | None

    def probe(self, process_cpu_seconds: float) -> Probe:
        cpu_seconds = statistics.median(self.cpu_seconds)
        steps = len(self.seconds)
        counted = (WARM_UP_STEPS + steps) * cpu_seconds + self.evaluation_batches * self.evaluation_cpu_seconds
        return Probe(
            steps=steps,
            seconds_per_step=statistics.median(self.seconds),
            cpu_seconds_per_step=cpu_seconds,
            evaluation_seconds=self.evaluation_seconds,
            evaluation_cpu_seconds=self.evaluation_cpu_seconds,
            fixed_cpu_seconds=max(0.0, process_cpu_seconds - counted),
            gpu_memory_gib=self.gpu_memory_gib,
            hardware=str(self.environment.get("hardware", "")),
        )


def _random_dataset(folder: Path, needs: Needs) -> Path:
    """A dataset folder of random tokens."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    dtype = "uint16" if needs.vocab_size <= 1 << 16 else "uint32"
    tokens = max(_TOKENS, 2 * needs.config.block_size)
    splits = {}
    for split in ("train", "val"):
        file = f"{split}-00000.bin"
        rng.integers(0, needs.vocab_size, tokens).astype(np.dtype(dtype).newbyteorder("<")).tofile(folder / file)
        splits[split] = {"tokens": tokens, "bytes": tokens, "shards": [{"file": file, "tokens": tokens, "sha256": ""}]}
    meta = {"schema_version": 1, "digest": "random", "source": {"kind": "random"}, "dtype": dtype, "splits": splits}
    meta |= {"tokenizer": {"kind": "none", "file": "", "sha256": ""}, "vocab_size": needs.vocab_size}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return folder
