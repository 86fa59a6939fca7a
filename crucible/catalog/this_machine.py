"""This machine's hardware: the facts behind the offers `local` and `docker-gpu`, measured for each estimate."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from crucible.catalog.offers import Offer
from crucible.container import total_memory_bytes, usable_cpus

_SIDE = 384  # of the matrices multiplied to measure the CPUs: bound by arithmetic, done in milliseconds
_CPU_GB_PER_SECOND = 10.0  # assumed: about what one core streams


def with_own_machine(offers: Iterable[Offer]) -> list[Offer]:
    """The offers with `local` and `docker-gpu` filled in; `missing` names what this machine lacks."""
    offers = list(offers)
    return [_described(offer, offers) if offer.own_machine else offer for offer in offers]


def cpu_name() -> str:
    """The processor's model name, for keys under which speeds are remembered."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    import platform

    return platform.processor() or platform.machine()


@cache
def cpu_flops() -> float:
    """Multiply-add rate of this machine's CPUs in float32 FLOP/s, the best of a few products within 50 ms."""
    import numpy as np  # imported here: attempts import this module and never measure

    rng = np.random.default_rng(0)
    left, right = rng.random((2, _SIDE, _SIDE), dtype=np.float32)
    best, until = float("inf"), time.perf_counter() + 0.05
    while time.perf_counter() < until:
        began = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - began)
    return 2 * _SIDE**3 / best


@cache
def nvidia_gpus() -> tuple[tuple[str, float], ...]:
    """Name and memory in GiB of each NVIDIA GPU that `nvidia-smi` reports; empty without one."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    query = [command, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        lines = [line.rsplit(",", 1) for line in answer.splitlines() if "," in line]
        return tuple((name.strip(), float(memory) / 1024) for name, memory in lines)
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def _described(offer: Offer, offers: list[Offer]) -> Offer:
    memory = total_memory_bytes() / 2**30
    if offer.pool == "local":
        return dataclasses.replace(
            offer,
            vcpus=usable_cpus(),
            memory_gib=memory,
            hardware=_slug(f"{cpu_name()} {usable_cpus()} cpus"),
            peak_tflops_fp32=cpu_flops() / 1e12,
            memory_gb_per_second=_CPU_GB_PER_SECOND,
        )
    gpus = nvidia_gpus()
    if not gpus:
        return dataclasses.replace(offer, missing="no NVIDIA GPU on this machine (nvidia-smi finds none)")
    name, gpu_memory = gpus[0]
    twin = _same_gpu(name, gpu_memory, offers)
    described = dataclasses.replace(
        offer,
        gpu=name,
        gpus=len(gpus),
        gpu_memory_gib=gpu_memory,
        vcpus=usable_cpus(),
        memory_gib=memory,
        hardware=_slug(name),
    )
    if twin is None:
        return described  # no peak known: its speed has to come from history or a probe
    specs = {field: getattr(twin, field) for field in ("peak_tflops_fp32", "peak_tflops_fp16", "peak_tflops_bf16")}
    return dataclasses.replace(described, memory_gb_per_second=twin.memory_gb_per_second, **specs)


def _slug(text: str) -> str:
    return "-".join("".join(mark if mark.isalnum() else " " for mark in text.lower()).split())


def _same_gpu(name: str, memory_gib: float, offers: list[Offer]) -> Offer | None:
    """The catalog's row for a GPU as nvidia-smi names it: "NVIDIA A100-SXM4-40GB" is the row of A100-40GB."""
    words = name.upper().replace("-", " ").split()
    known = [offer for offer in offers if offer.gpu and offer.gpu_memory_gib and offer.gpu.split("-")[0] in words]
    return min(known, key=lambda offer: abs((offer.gpu_memory_gib or 0) - memory_gib), default=None)
