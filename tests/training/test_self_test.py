"""The self-test passes a card that computes rightly and fast, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from crucible.contract import EXIT_UNFIT
from crucible.errors import MachineUnfit
from crucible.training import __main__ as program
from crucible.training.self_test import Card, peak_tflops, self_test


def card(multiply: object = torch.matmul, name: str = "NVIDIA nothing known") -> Card:
    return Card(name, multiply, lambda: None, torch.device("cpu"), torch.bfloat16, side=64, large=64)  # type: ignore[arg-type]


def test_a_card_in_good_order() -> None:
    assert self_test(card(), (0.0, 0.0)) > 0


def test_one_wrong_bit_is_enough() -> None:
    calls = 0

    def sometimes_wrong(a: Tensor, b: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        product = a @ b
        if calls == 9:
            product[3, 5] += 2
        return product

    with pytest.raises(MachineUnfit, match=r"multiplies wrongly: 1 of 65,536 products differ"):
        self_test(card(sometimes_wrong), (0.0, 0.0))


def test_a_card_that_crawls() -> None:
    with pytest.raises(MachineUnfit, match=r"H100 80GB HBM3 is too slow: .*its peak is 989"):
        self_test(card(name="NVIDIA H100 80GB HBM3"), (0.0, 0.0))


def test_peaks_by_the_names_that_drivers_give() -> None:
    assert peak_tflops("NVIDIA A100-SXM4-40GB") == 312
    assert peak_tflops("Tesla T4") == 65
    assert peak_tflops("NVIDIA L40S") == 362
    assert peak_tflops("NVIDIA GeForce RTX 4090") is None


def test_the_program_ends_with_its_own_exit_code(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unfit(*_: object) -> None:
        raise MachineUnfit("NVIDIA H100 multiplies wrongly")

    monkeypatch.setattr("crucible.training.self_test.require_fit_gpu", unfit)
    arguments = ["--preset", "debug", "--data", str(data_folder), "--out", str(tmp_path), "--set", "fast_gemm=off"]
    assert program.main(arguments) == EXIT_UNFIT
    assert capsys.readouterr().err.splitlines()[-1] == "error: NVIDIA H100 multiplies wrongly"
