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
from crucible.training.cpu import choose_gemm, gemm, mkl_shim, onednn
from crucible.training.cpu.onednn import onednn_linear
from crucible.workload import environment

x86_linux = pytest.mark.skipif(
    not (sys.platform == "linux" and platform.machine() == "x86_64"), reason="the shim is for x86-64 Linux"
)


@x86_linux
def test_shim_is_a_library_that_says_yes() -> None:
    code = "from crucible.training.cpu import mkl_shim; mkl_shim.load(); import ctypes;"
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


def checkpoint(folder: Path, kernels: str, hardware: str) -> Path:
    (folder / "state.json").write_text(json.dumps({"environment": {"gemm": kernels, "hardware": hardware}}))
    return folder


def test_choice_follows_the_config_and_then_the_checkpoint(amd: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "onednn", "Test (AVX2)")
    assert choose_gemm("off", folder).backend == "mkl"
    assert choose_gemm("onednn").backend == "onednn"
    assert choose_gemm("auto", folder) == gemm.Gemm("onednn", "as in the checkpoint")
    with pytest.raises(ConfigError, match="fast_gemm = 'shim'"):
        choose_gemm("shim")  # torch is already here
    choice = choose_gemm("auto", checkpoint(tmp_path, "shim", "Test (AVX2)"))
    assert choice.backend == "mkl"
    assert "the checkpoint's shim does not work here" in choice.reason


def test_a_checkpoint_of_another_processor_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "cpu_info", lambda: {"vendor_id": "GenuineIntel"})
    assert choose_gemm("auto", checkpoint(tmp_path, "onednn", "Another")).backend == "mkl"


def test_onednn_is_left_alone_where_its_operator_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    model = torch.nn.Sequential(torch.nn.Linear(3, 4))

    def renamed(*arguments: object) -> torch.Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    for multiply in (renamed, lambda x, weight, bias: x @ weight.t()):
        monkeypatch.setattr(onednn, "_multiply", multiply)
        assert not onednn.use_onednn(model, said.append)
    assert isinstance(model[0], torch.nn.Linear)
    assert "(it gives a wrong product): oneMKL multiplies" in said[1]
    assert "has no attribute '_linear_pointwise'" in said[0]


@x86_linux
def test_torch_uses_the_function_that_the_shim_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    mkl_shim.require_use_by_torch()
    monkeypatch.setattr(mkl_shim, "SYMBOL", b"mkl_serv_of_another_version")
    with pytest.raises(OSError, match="has no mkl_serv_of_another_version"):
        mkl_shim.require_use_by_torch()


@pytest.fixture
def amd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose gains are what a test says; where the answer is kept."""
    monkeypatch.setenv("CRUCIBLE_HOME", str(tmp_path))
    info = {"vendor_id": "AuthenticAMD", "model name": "Test", "flags": "a b"}
    monkeypatch.setattr(environment, "cpu_info", lambda: info)
    monkeypatch.setattr(gemm, "cpu_info", lambda: info)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(mkl_shim, "load", lambda: None)
    return tmp_path / "gemm" / "measured.json"


def test_answer_is_measured_once_per_machine(amd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([{"mkl": 80.0, "shim": 90.0, "gain": 1.125}])
    monkeypatch.setattr(gemm, "_probe", lambda: next(answers))
    first, second = choose_gemm("auto"), choose_gemm("auto")
    assert first == second
    assert (first.backend, first.reason) == ("shim", "measured: 1.12 times as fast (80 and 90 GFLOPS per core)")
    assert json.loads(amd.read_text())["gain"] == 1.125


@pytest.mark.parametrize(
    ("measured", "logged"),
    [
        ({"mkl": 80.0, "shim": 82.0, "gain": 1.03}, "oneMKL's fast path is 1.03 times as fast"),
        ({"gain": 0.0}, "onednn"),
    ],
)
def test_torch_stays_as_it_is_where_the_shim_gains_nothing(
    amd: Path, monkeypatch: pytest.MonkeyPatch, measured: dict[str, float], logged: str
) -> None:
    amd.parent.mkdir()
    amd.write_text("{}")  # nothing that could be understood
    monkeypatch.setattr(gemm, "_probe", lambda: measured)
    assert choose_gemm("auto").backend == "mkl"
    assert logged in choose_gemm("auto").reason


def test_nothing_is_measured_on_intel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "cpu_info", lambda: {"vendor_id": "GenuineIntel"})
    monkeypatch.setattr(gemm, "_probe", lambda: pytest.fail("measured"))
    assert choose_gemm("auto").backend == "mkl"


def test_a_home_that_nothing_can_be_kept_in_is_no_error() -> None:
    gemm._write(Path("/dev/null/.crucible/gemm/measured.json"), {"gain": 1.0})
