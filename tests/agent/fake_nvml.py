"""A stand-in for `pynvml` with cards that a test breaks: functions and constants of the same names."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

GIB = 2**30


class NVMLError(Exception):
    """What the library raises for everything that it cannot answer."""


@dataclass
class FakeCard:
    """A card in good order."""

    name: str | bytes = b"NVIDIA H100 80GB HBM3"
    uuid: str = "GPU-11111111"
    total: int = 80 * GIB
    used: int = 1 * GIB
    uncorrected: int | None = 0
    retired: list[int] | None = field(default_factory=list)
    pending: int | None = 0
    rows: tuple[int, int, int, int] | None = (0, 0, 0, 0)
    reasons: int = 0x4
    """A power cap, which is no fault."""
    utilisation: int = 97
    power: int = 650_000
    temperature: int = 61
    clock: int = 1980


@dataclass
class FakeNvml:
    """Pass it to `Nvml` in place of the module. None in a card stands for what it does not support."""

    cards: list[FakeCard] = field(default_factory=lambda: [FakeCard()])
    cuda: int = 12080
    driver: str = "570.86.15"

    NVMLError = NVMLError
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0
    NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR = 1
    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1
    nvmlClocksEventReasonHwSlowdown = 0x8  # noqa: N815
    nvmlClocksEventReasonSwThermalSlowdown = 0x20  # noqa: N815
    nvmlClocksEventReasonHwThermalSlowdown = 0x40  # noqa: N815
    nvmlClocksEventReasonHwPowerBrakeSlowdown = 0x80  # noqa: N815

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> FakeCard:  # noqa: N802
        return self.cards[number]

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return self.driver

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        return self.cuda

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlDeviceGetUUID": lambda card: card.uuid,
            "nvmlDeviceGetName": lambda card: card.name,
            "nvmlDeviceGetMemoryInfo": lambda card: SimpleNamespace(total=card.total, used=card.used),
            "nvmlDeviceGetTotalEccErrors": lambda card, _kind, _counter: card.uncorrected,
            "nvmlDeviceGetRetiredPages": lambda card, _cause: card.retired,
            "nvmlDeviceGetRetiredPagesPendingStatus": lambda card: card.pending,
            "nvmlDeviceGetRemappedRows": lambda card: card.rows,
            "nvmlDeviceGetCurrentClocksEventReasons": lambda card: card.reasons,
            "nvmlDeviceGetUtilizationRates": lambda card: SimpleNamespace(gpu=card.utilisation, memory=50),
            "nvmlDeviceGetPowerUsage": lambda card: card.power,
            "nvmlDeviceGetTemperature": lambda card, _sensor: card.temperature,
            "nvmlDeviceGetClockInfo": lambda card, _kind: card.clock,
        }
        if name not in answers:
            raise AttributeError(name)

        def answer(*arguments: Any) -> Any:
            found = answers[name](*arguments)
            if found is None:
                raise NVMLError(f"{name}: not supported")
            return found

        return answer
