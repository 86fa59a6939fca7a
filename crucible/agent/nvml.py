"""What NVML, NVIDIA's management library, knows of this machine's GPUs: read without torch and without using a GPU.

It comes with the driver; `nvidia-ml-py` (the extra `gpu`) is its Python side. What a card does not support is None.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")

_SLOWDOWNS = {
    "HwSlowdown": "slowed down by its hardware",
    "SwThermalSlowdown": "slowed down by its driver because it is hot",
    "HwThermalSlowdown": "slowed down by its hardware because it is hot",
    "HwPowerBrakeSlowdown": "slowed down because its power supply asks for it",
}
"""Reasons for lower clocks that a machine in good order does not have; a power cap is none of them."""


@dataclass(frozen=True)
class Card:
    """One GPU at one moment."""

    number: int
    name: str
    driver: str
    cuda: int | None
    """The newest major version of CUDA that the driver supports."""
    memory_bytes: int
    used_bytes: int
    uncorrected_errors: int | None
    """Since the driver was loaded."""
    retired_pages: int | None
    """For errors that could not be corrected (cards before A100)."""
    retirement_pending: bool | None
    remapping_failed: bool | None
    """Of memory rows (A100 and later)."""
    slowdowns: tuple[str, ...]
    temperature: int | None


@dataclass(frozen=True)
class Nvml:
    """An initialised library."""

    library: ModuleType | Any

    @classmethod
    def load(cls) -> Nvml | None:
        """None where there is no NVIDIA driver, or `nvidia-ml-py` is not installed."""
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return None
        return cls(pynvml)

    def handles(self, visible: str | None) -> dict[int, Any]:
        """By number, the GPUs that `visible` (as CUDA_VISIBLE_DEVICES) leaves a process; None: all of them."""
        library, found = self.library, {}
        for number in range(self._read(library.nvmlDeviceGetCount) or 0):
            handle = self._read(library.nvmlDeviceGetHandleByIndex, number)
            uuid = self._read(library.nvmlDeviceGetUUID, handle) or ""
            if handle is not None and (visible is None or _is_named(number, uuid, visible)):
                found[number] = handle
        return found

    def cards(self, visible: str | None = None) -> list[Card]:
        """The GPUs as they are now."""
        return [self._card(number, handle) for number, handle in self.handles(visible).items()]

    def _card(self, number: int, handle: Any) -> Card:
        library, read = self.library, self._read
        memory = read(library.nvmlDeviceGetMemoryInfo, handle)
        cuda = read(library.nvmlSystemGetCudaDriverVersion_v2)
        uncorrected = library.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
        cause = library.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR
        retired = read(library.nvmlDeviceGetRetiredPages, handle, cause)
        rows = read(library.nvmlDeviceGetRemappedRows, handle)  # correctable, uncorrectable, pending, failed
        pending = read(library.nvmlDeviceGetRetiredPagesPendingStatus, handle)
        return Card(
            number=number,
            name=_text(read(library.nvmlDeviceGetName, handle)),
            driver=_text(read(library.nvmlSystemGetDriverVersion)),
            cuda=cuda // 1000 if cuda else None,
            memory_bytes=int(memory.total) if memory else 0,
            used_bytes=int(memory.used) if memory else 0,
            uncorrected_errors=read(
                library.nvmlDeviceGetTotalEccErrors, handle, uncorrected, library.NVML_VOLATILE_ECC
            ),
            retired_pages=None if retired is None else len(retired),
            retirement_pending=None if pending is None else bool(pending),
            remapping_failed=None if rows is None else bool(rows[3]),
            slowdowns=self.slowdowns(handle),
            temperature=read(library.nvmlDeviceGetTemperature, handle, library.NVML_TEMPERATURE_GPU),
        )

    def slowdowns(self, handle: Any) -> tuple[str, ...]:
        """Why the card's clocks are lower than they should be."""
        library = self.library
        reasons = self._read(library.nvmlDeviceGetCurrentClocksEventReasons, handle) or 0
        return tuple(
            words for name, words in _SLOWDOWNS.items() if reasons & getattr(library, f"nvmlClocksEventReason{name}", 0)
        )

    def sample(self, visible: str | None = None) -> dict[str, float]:
        """How busy the GPUs are; several are summed up in one number each."""
        library, read = self.library, self._read
        rows: list[Mapping[str, float | None]] = []
        for handle in self.handles(visible).values():
            busy = read(library.nvmlDeviceGetUtilizationRates, handle)
            memory = read(library.nvmlDeviceGetMemoryInfo, handle)
            power = read(library.nvmlDeviceGetPowerUsage, handle)
            rows.append(
                {
                    "gpu_utilisation_percent": busy.gpu if busy else None,
                    "gpu_memory_gib": memory.used / 2**30 if memory else None,
                    "gpu_power_watts": power / 1000 if power is not None else None,
                    "gpu_temperature_celsius": read(
                        library.nvmlDeviceGetTemperature, handle, library.NVML_TEMPERATURE_GPU
                    ),
                    "gpu_clock_mhz": read(library.nvmlDeviceGetClockInfo, handle, library.NVML_CLOCK_SM),
                    "gpu_slowed_down": float(bool(self.slowdowns(handle))),
                }
            )
        together: dict[str, Callable[[list[float]], float]] = {
            "gpu_utilisation_percent": lambda values: sum(values) / len(values),
            "gpu_memory_gib": max,
            "gpu_power_watts": sum,
            "gpu_temperature_celsius": max,
            "gpu_clock_mhz": min,
            "gpu_slowed_down": max,
        }
        found: dict[str, float] = {}
        for name, combine in together.items():
            if values := [float(value) for row in rows if (value := row[name]) is not None]:
                found[name] = round(combine(values), 2)
        return found

    def _read(self, function: Callable[..., T], *arguments: Any) -> T | None:
        """None for what this card or driver does not support."""
        with suppress(self.library.NVMLError):
            return function(*arguments)
        return None


def visible_gpus(environment: Mapping[str, str] = os.environ) -> str | None:
    """CUDA_VISIBLE_DEVICES, None where it is not set."""
    return environment.get("CUDA_VISIBLE_DEVICES")


def _is_named(number: int, uuid: str, visible: str) -> bool:
    """By number or by the beginning of its UUID; what stands behind -1 does not count."""
    for name in (part.strip() for part in visible.split(",")):
        if name == "-1":
            return False
        if name == str(number) or (name.startswith(("GPU-", "MIG-")) and uuid.startswith(name)):
            return True
    return False


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")
