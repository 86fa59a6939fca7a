"""The fast ways to multiply give the same products, and the choice between them is kept."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crucible.errors import ConfigError
from crucible.training.cpu import gemm, mkl_shim
from crucible.training.cpu.linear import onednn_linear

x86_linux = pytest.mark.skipif(
    not (sys.platform == "linux" and platform.machine() == "x86_64"), reason="the shim is for x86-64 Linux"
)


@x86_linux
def test_shim_is_a_library_that_says_yes() -> None:
    code = "from crucible.training import mkl_shim; mkl_shim.load(); import ctypes;"
    code += "print(ctypes.CDLL(None).mkl_serv_intel_cpu_true())"  # as torch's library will look it up
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@x86_linux
def test_probe_compares_onemkl_with_and_without_the_shim() -> None:
    measured = gemm._probe()
    assert measured["mkl"] > 0
    assert measured["shim"] > 0
    assert measured["gain"] > 0  # a wrong product or a crash would leave 0


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


@pytest.fixture
def amd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose gains are what a test says; where the answer is kept."""
    monkeypatch.setenv("CRUCIBLE_HOME", str(tmp_path))
    monkeypatch.setattr(gemm, "_cpu_info", lambda: {"vendor_id": "AuthenticAMD", "model name": "Test", "flags": "a b"})
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(mkl_shim, "load", lambda: None)
    return tmp_path / "gemm" / "measured.json"


def test_answer_is_measured_once_per_machine(amd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([{"mkl": 80.0, "shim": 90.0, "gain": 1.125}])
    monkeypatch.setattr(gemm, "_probe", lambda: next(answers))
    first, second = gemm.choose("auto"), gemm.choose("auto")
    assert first == second
    assert (first.backend, first.reason) == ("shim", "measured: 1.12 times as fast (80 and 90 GFLOPS per core)")
    assert json.loads(amd.read_text())["gain"] == 1.125


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        ({"mkl": 80.0, "shim": 82.0, "gain": 1.03}, "oneMKL's fast path is 1.03 times as fast"),
        ({"gain": 0.0}, "onednn"),
    ],
)
def test_torch_stays_as_it_is_where_the_shim_gains_nothing(
    amd: Path, monkeypatch: pytest.MonkeyPatch, measured: dict[str, float], said: str
) -> None:
    amd.parent.mkdir()
    amd.write_text("{}")  # nothing that could be understood
    monkeypatch.setattr(gemm, "_probe", lambda: measured)
    assert gemm.choose("auto").backend == "mkl"
    assert said in gemm.choose("auto").reason


def test_nothing_is_measured_on_intel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "_cpu_info", lambda: {"vendor_id": "GenuineIntel"})
    monkeypatch.setattr(gemm, "_probe", lambda: pytest.fail("measured"))
    assert gemm.choose("auto").backend == "mkl"
