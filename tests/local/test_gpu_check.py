"""What doctor says of this machine's GPUs."""

from __future__ import annotations

import pytest

from crucible.agent.nvml import Nvml
from crucible.doctor import checks
from tests.agent.fake_nvml import FakeCard, FakeNvml


def test_doctor_shows_what_an_attempt_would_find(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml: Nvml | None = None
    monkeypatch.setattr(Nvml, "load", classmethod(lambda cls: nvml))
    monkeypatch.setattr(checks, "torch_cuda_version", lambda: 12)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if checks.gpu().found == "no NVIDIA GPU":
        assert checks.gpu().ready

    nvml = Nvml(FakeNvml())
    check = checks.gpu()
    assert (check.ready, check.fix) == (True, "")
    assert check.found == "NVIDIA H100 80GB HBM3, driver 570.86.15, 1.0 of 80.0 GiB used, 61 °C"

    nvml = Nvml(FakeNvml([FakeCard(reasons=0x40)]))
    check = checks.gpu()
    assert not check.ready
    assert "slowed down by its hardware because it is hot" in check.found
    assert "nvidia-smi" in check.fix

    nvml = Nvml(FakeNvml())
    monkeypatch.setattr(checks, "torch_cuda_version", lambda: None)
    assert "the installed torch cannot use" in checks.gpu().found
