"""Where and how precisely to compute, decided from the config and what the machine has."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from crucible.config import TrainConfig
from crucible.container import usable_cpus
from crucible.errors import ConfigError

__all__ = ["choose_device", "choose_precision", "inexact_reason", "may_chunk_loss", "may_compile"]

_SMALL_VOCABULARY = 4096
"""Up to here the logits take less memory than the activations of a layer or two."""


def choose_device(config: TrainConfig, local_rank: int) -> torch.device:
    """The device, made deterministic where torch has to be asked for it. Raises ConfigError if it is not there."""
    has_mps = torch.backends.mps.is_available()
    kind = config.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if kind == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"device = 'cuda' asks for GPU number {local_rank}, but torch sees {torch.cuda.device_count()} GPUs; "
                f"use device = 'auto' or fewer processes"
            )
        _keep_compiled_kernels()  # before anything imports the compiler, as the next line does
        if config.exact != "off":
            _take_deterministic_kernels()
        torch.set_float32_matmul_precision("high")  # TF32, as nanoGPT allows
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    if kind == "mps" and not has_mps:
        raise ConfigError("device = 'mps' is not available on this machine; use device = 'auto'")
    if kind == "cpu" and config.threads is not None:
        torch.set_num_threads(config.threads)
    elif kind == "cpu" and usable_cpus() < torch.get_num_threads():  # torch does not know a container's CPU time
        torch.set_num_threads(usable_cpus())
    return torch.device(kind)


def _take_deterministic_kernels() -> None:
    """Exact resume needs kernels that add in the same order every time, cuBLAS and attention's backward included."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # torch.compile measures variants of a kernel and takes the fastest, which may be another one after a restart. With
    # this it has no choice that changes the bits. Read when the compiler is imported, which the next call does.
    os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")
    # Without warn_only: with it, flash attention takes its non-deterministic backward and warns.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # What is left is flash attention, and plain products where it does not work (float32).
    torch.backends.cuda.enable_flash_sdp(True)
    torch.backends.cuda.enable_math_sdp(True)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def _keep_compiled_kernels() -> None:
    """Keep what torch.compile makes for this machine: torch's own folder, in /tmp, does not outlive a restart of it.

    The compiler reads these when it is imported.
    """
    home = Path(os.environ.get("CRUCIBLE_HOME") or Path.home() / ".crucible")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(home / "compiled"))
    # The graphs of `cross_entropy`'s autograd function, too, which torch would trace and compile at every start. Their
    # key holds forward and backward, so another version of the function is compiled anew.
    os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE_ALLOW_CUSTOM_AUTOGRAD", "1")


def inexact_reason(exact: str, try_step: Callable[[], object], log: Callable[[str], None]) -> str | None:
    """Why a step is not deterministic on this GPU; None if every kernel of it is.

    `exact` is the config's, `try_step` computes one step's gradients. Logs the reason. Raises ConfigError if `exact` is
    `required` and a kernel is not deterministic.
    """
    if exact == "off":
        reason = "exact = off, so the fastest kernels are used"
        log(f"not exact: {reason}; a resumed run is exact in state but not in bits")
        return reason
    try:
        try_step()
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        if exact == "required":
            raise ConfigError(f"exact = 'required' is not possible here: {reason}; use exact = 'auto'") from None
        torch.use_deterministic_algorithms(True, warn_only=True)
        log(f"not exact: {reason}; a resumed run is exact in state but not in bits")
        return reason
    return None


def choose_precision(config: TrainConfig, device: torch.device, log: Callable[[str], None]) -> torch.dtype:
    """The dtype of autocast; float32 means none. Raises ConfigError for what the device cannot do."""
    if config.dtype == "auto":
        if device.type != "cuda":
            return torch.float32
        # Cards before Ampere only emulate bfloat16, slowly.
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if config.dtype == "float16" and device.type == "mps":
        raise ConfigError("dtype = 'float16' needs a gradient scaler, which mps lacks; use 'bfloat16' or 'float32'")
    if config.dtype != "float32" and device.type == "cpu":
        log(f"dtype = {config.dtype} on a CPU is fast only with AVX512-BF16 or AMX, and very slow without")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[config.dtype]


def may_compile(config: TrainConfig, log: Callable[[str], None]) -> bool:
    """Whether to compile: asked for, and there is a compiler, which torch.compile calls on every kind of device."""
    if not config.compile:
        return False
    if any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++", "gcc", "cc")):
        return True
    log("compile = true needs a C++ compiler (g++ or clang++), which is not installed: training continues uncompiled")
    return False


def may_chunk_loss(config: TrainConfig, device: torch.device, precision: torch.dtype, vocab_size: int) -> bool:
    """Whether to compute the loss without keeping the logits: `auto` means on a GPU with a large vocabulary.

    Never in float16, in which its sums may overflow.
    """
    if precision == torch.float16 or config.chunked_loss == "off":
        return False
    return config.chunked_loss == "on" or (device.type == "cuda" and vocab_size > _SMALL_VOCABULARY)
