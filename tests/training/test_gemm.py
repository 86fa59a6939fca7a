"""The fast ways to multiply give the same products, and the choice between them is kept."""

from __future__ import annotations

import ctypes
import json
import platform
import sys
from pathlib import Path

import pytest
import torch

from crucible.errors import ConfigError
from crucible.training import gemm, mkl_shim
from crucible.training.linear import onednn_linear

x86_linux = pytest.mark.skipif(
    not (sys.platform == "linux" and platform.machine() == "x86_64"), reason="the shim is for x86-64 Linux"
)


@x86_linux
def test_shim_is_a_library_that_says_yes(tmp_path: Path) -> None:
    mkl_shim.load(tmp_path / "new folder")
    library = ctypes.CDLL(str(tmp_path / "new folder" / "mkl_shim.so"))
    assert library.mkl_serv_intel_cpu_true() == 1


@x86_linux
def test_probe_measures_with_the_shim_in_place(tmp_path: Path) -> None:
    measured = gemm._probe(tmp_path)
    assert measured["mkl"] > 0  # a wrong product would be left out


@pytest.mark.parametrize("shape", [(5, 7, 24), (6, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_onednn_linear_is_linear(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    x, weight, b = torch.randn(shape), torch.randn(40, 24), torch.randn(40) if bias else None
    gradient = torch.randn(*shape[:-1], 40)
    results = []
    for linear in (torch.nn.functional.linear, onednn_linear):
        inputs = [tensor.clone().requires_grad_() for tensor in (x, weight, b) if tensor is not None]
        y = linear(*inputs)
        y.backward(gradient)
        results.append([y.detach(), *(tensor.grad for tensor in inputs)])
    for plain, fast in zip(*results, strict=True):
        assert torch.allclose(plain, fast, atol=1e-5)


def test_choice_follows_the_checkpoint_and_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gemm.choose("off", previous="onednn").backend == "mkl"
    assert gemm.choose("onednn").backend == "onednn"
    assert gemm.choose("auto", previous="onednn").backend == "onednn"
    assert gemm.choose("auto", device="cuda").backend == "mkl"
    with pytest.raises(ConfigError, match="fast_gemm = 'shim'"):
        gemm.choose("shim")  # torch is already here, or this is no x86-64 Linux


def test_answer_is_measured_once_per_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRUCIBLE_HOME", str(tmp_path))
    monkeypatch.setattr(gemm, "_cpu_info", lambda: {"vendor_id": "AuthenticAMD", "model name": "Test", "flags": "a b"})
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    asked: list[object] = []

    def probe(shim_folder: Path | None = None) -> dict[str, float]:
        asked.append(shim_folder)
        return {"mkl": 110.0} if shim_folder else {"mkl": 100.0, "onednn": 150.0}

    monkeypatch.setattr(gemm, "_probe", probe)
    first, second = gemm.choose("auto"), gemm.choose("auto")
    assert first == second
    assert first.backend == "onednn"  # the shim's gain of a tenth is not worth other bits
    assert len(asked) == 2
    kept = json.loads((tmp_path / "gemm" / "measured.json").read_text())
    assert kept["gflops_per_core"] == {"mkl": 100.0, "onednn": 150.0, "shim": 110.0}


def test_nothing_is_measured_on_intel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "_cpu_info", lambda: {"vendor_id": "GenuineIntel"})
    monkeypatch.setattr(gemm, "_probe", lambda folder=None: pytest.fail("measured"))
    assert gemm.choose("auto").backend == "mkl"
