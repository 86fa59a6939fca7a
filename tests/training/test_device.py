from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from crucible.errors import ConfigError
from crucible.training.data import Dataset
from crucible.training.device import choose_device, inexact_reason
from crucible.training.trainer import Trainer
from tests.training.conftest import TINY

FAULTS_OF_A_STEP = """
import resource, statistics, sys
from pathlib import Path
from crucible.config import TrainConfig
from crucible.training.data import Dataset
from crucible.training.trainer import Trainer

trainer = Trainer(TrainConfig.preset("cpu-small", threads=1, fast_gemm="off"), Dataset(Path(sys.argv[1])))
before, faults = 0, []
for _ in range(15):
    trainer.train_step()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    faults.append(after - before)
    before = after
print(statistics.median(faults[-11:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told what to keep")
def test_a_step_takes_no_memory_from_the_kernel_that_an_earlier_one_had(data_folder: Path) -> None:
    command = [sys.executable, "-c", FAULTS_OF_A_STEP, str(data_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100, "thousands when everything is given back and asked for again"


def not_deterministic() -> torch.Tensor:
    return torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))  # one of torch's that has no other way


@pytest.fixture
def strict() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("strict")
def test_a_kernel_that_is_not_deterministic_is_reported_or_refused() -> None:
    logged: list[str] = []
    assert inexact_reason("auto", lambda: torch.ones(3).sum(), logged.append) is None
    assert not logged
    with pytest.raises(ConfigError, match="exact = 'required' is not possible here: put_ does not have a determ"):
        inexact_reason("required", not_deterministic, logged.append)
    reason = inexact_reason("auto", not_deterministic, logged.append)
    assert reason is not None
    assert reason.startswith("put_ does not have a deterministic")
    assert logged[-1].startswith("not exact: put_ does not have a deterministic implementation")
    with pytest.warns(UserWarning, match="put_"):
        not_deterministic()  # training continues
    assert inexact_reason("off", lambda: pytest.fail("tried"), logged.append) is not None
    assert logged[-1].startswith("not exact: exact = off")


@pytest.mark.usefixtures("strict")
def test_another_error_is_not_taken_for_it() -> None:
    with pytest.raises(RuntimeError, match="must match"):
        inexact_reason("auto", lambda: torch.ones(3) + torch.ones(4), lambda line: None)


def test_trying_a_step_leaves_no_trace(dataset: Dataset) -> None:
    plain, tried = Trainer(TINY, dataset), Trainer(TINY, dataset)
    for trainer in (plain, tried):
        trainer.model.train()
        torch.manual_seed(0)
        if trainer is tried:
            trainer._try_step()
        trainer.train_step()
    assert torch.equal(plain.optimizer.weights, tried.optimizer.weights)


def test_the_compiler_is_set_up_before_anything_imports_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """torch.use_deterministic_algorithms imports it, and it reads these variables once."""
    seen: dict[str, str | None] = {}
    names = ["TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_AUTOGRAD_CACHE_ALLOW_CUSTOM_AUTOGRAD"]
    names += ["TORCHINDUCTOR_DETERMINISTIC", "CUBLAS_WORKSPACE_CONFIG"]
    for name in names:
        monkeypatch.setenv(name, "")  # to be restored
        monkeypatch.delenv(name)
    monkeypatch.setenv("CRUCIBLE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda rank: None)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)  # type: ignore[attr-defined]
    monkeypatch.setattr(
        torch, "use_deterministic_algorithms", lambda mode: seen.update({name: os.environ.get(name) for name in names})
    )
    choose_device(TINY.with_overrides({"device": "cuda"}), 0)
    assert list(seen.values()) == [str(tmp_path / "compiled"), "1", "1", ":4096:8"]
