"""Which code multiplies float32 matrices on this CPU, decided before torch is imported.

Two thirds of a small training step are matrix products. torch's own way (`mkl`) takes a slow path on AMD processors.
There are two ways around it:

- `shim`: oneMKL's fast path, opened by `mkl_shim`; measured once per machine and torch version, and the answer is kept
  under CRUCIBLE_HOME so that every attempt on a machine decides alike;
- `onednn`: torch's other library, called by `onednn`, where the config asks for it.

They compute the same sums in another order, so the last bits differ: the choice is written into every checkpoint, and
a resumed run takes that of its checkpoint. Nothing is measured on Intel processors, where oneMKL is already fast.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, cast

from crucible.errors import ConfigError
from crucible.training.cpu import mkl_shim
from crucible.workload.environment import cpu_info, cpu_model
from crucible.workload.folders import STATE

__all__ = ["Backend", "Gemm", "choose_gemm"]

Backend = Literal["mkl", "onednn", "shim"]

# On a noisy Zen 3 either way against itself measured 0.88 to 1.03, and the shim against torch as it is 1.08 to 1.27.
_WORTH = 1.05


@dataclass(frozen=True)
class Gemm:
    """The choice, and the reason for it as the log gives it."""

    backend: Backend
    reason: str


def choose_gemm(fast_gemm: str, resume_from: Path | None = None) -> Gemm:
    """Decide, and load the shim if it is the choice; call it once, before torch is imported.

    `fast_gemm` is the config's. A run that resumes takes the choice of its checkpoint, if that was made on this kind of
    processor. Raises ConfigError if `fast_gemm` asks for the shim where it cannot work.
    """
    if fast_gemm == "off":
        return Gemm("mkl", "fast_gemm is off")
    if fast_gemm == "onednn":
        return Gemm("onednn", "asked for by fast_gemm")
    if fast_gemm == "shim":
        _load_or_refuse()
        return Gemm("shim", "asked for by fast_gemm")
    previous = _previous(resume_from)
    if previous == "shim":
        try:
            _load_or_refuse()
        except ConfigError as error:  # the trainer logs what this changes
            return Gemm("mkl", f"the checkpoint's shim does not work here: {error}")
    if previous is not None:
        return Gemm(previous, "as in the checkpoint")
    if not _may_help():
        return Gemm("mkl", "oneMKL is fast on this machine, or not used")
    return _measured()


def _previous(resume_from: Path | None) -> Backend | None:
    """How the checkpoint's matrices were multiplied, if that was on this kind of processor."""
    if resume_from is None:
        return None
    try:
        made_on = json.loads((resume_from / STATE).read_text(encoding="utf-8"))["environment"]
        return cast(Backend, made_on["gemm"]) if cpu_model() in made_on["hardware"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # the trainer verifies the folder and reports what is wrong with it


def _measured() -> Gemm:
    answer = Path(os.environ.get("CRUCIBLE_HOME") or Path.home() / ".crucible") / "gemm" / "measured.json"
    machine = {"cpu": cpu_model(), "flags": len(cpu_info().get("flags", "")), "torch": metadata.version("torch")}
    known = _read(answer)
    if known.get("machine") != machine or not isinstance(known.get("gain"), float):
        known = {"machine": machine} | _probe()
        _write(answer, known)
    if not known["gain"]:
        return Gemm("mkl", "oneMKL cannot be measured here; fast_gemm = 'onednn' may be faster")
    figures = f"{known['gain']:.2f} times as fast ({known['mkl']:.0f} and {known['shim']:.0f} GFLOPS per core)"
    if known["gain"] < _WORTH:
        return Gemm("mkl", f"measured: oneMKL's fast path is {figures}")
    try:
        mkl_shim.load()
    except OSError as error:
        return Gemm("mkl", f"the shim does not load here ({error}); fast_gemm = 'onednn' may be faster")
    return Gemm("shim", f"measured: {figures}")


def _probe() -> dict[str, float]:
    """What `gemm_probe` measures, in processes of its own; a gain of 0 if it fails there."""
    command = [sys.executable, "-m", "crucible.training.cpu.gemm_probe"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=True)
        return cast(dict[str, float], json.loads(done.stdout.splitlines()[-1]))
    except (subprocess.SubprocessError, OSError, ValueError, IndexError):
        return {"gain": 0.0}


def _may_help() -> bool:
    vendor = cpu_info().get("vendor_id", "")
    return sys.platform == "linux" and platform.machine() == "x86_64" and vendor not in ("", "GenuineIntel")


def _load_or_refuse() -> None:
    if not (sys.platform == "linux" and platform.machine() == "x86_64"):
        raise ConfigError("fast_gemm = 'shim' works on x86-64 Linux only; use fast_gemm = 'auto'")
    if "torch" in sys.modules:
        raise ConfigError("fast_gemm = 'shim' must come before torch is imported; use python -m crucible.training")
    try:
        mkl_shim.load()
        mkl_shim.require_use_by_torch()
    except OSError as error:
        raise ConfigError(
            f"fast_gemm = 'shim' cannot be loaded here ({error}); use fast_gemm = 'onednn' or 'off'"
        ) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    """Keep the answer for the next attempt; where nothing can be kept, the next one measures again."""
    temporary = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError:
        with suppress(OSError):  # a folder that cannot be looked into refuses this as well
            temporary.unlink(missing_ok=True)
