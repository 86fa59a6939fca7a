"""On a GPU, a run that is killed and started again gives the bits of one that nothing disturbed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import KILLED
from benchmarks.killed_run import train
from crucible.training.data import Dataset
from crucible.training.trainer import Trainer

CONFIG = KILLED.with_overrides({"eval_interval": 100, "eval_iters": 2})


@pytest.mark.parametrize("rows", [8, 48])
def test_killed_twice_it_ends_with_the_weights_of_undisturbed_runs(rows: int, data: Path, tmp_path: Path) -> None:
    config = CONFIG.with_overrides({"batch_size": rows})
    undisturbed = [train(config, data, tmp_path / name)["weights_sha256"] for name in ("first", "second")]
    killed = train(config, data, tmp_path / "killed", kill_at=[100, 200])["weights_sha256"]
    assert [*undisturbed, killed] == [killed] * 3


def weights_after(steps: int, trainer: Trainer) -> str:
    for _ in range(steps):
        trainer.train_step()
    return hashlib.sha256(trainer.optimizer.weights.cpu().numpy().data).hexdigest()


def test_a_kernel_that_adds_in_any_order_is_noticed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`index_add` without determinism adds with atomics: with equal hashes here, the test above shows nothing."""
    config = CONFIG.with_overrides({"batch_size": 8, "compile": False, "exact": "off"})
    forward = torch.nn.Embedding.forward

    def with_atomics(self: torch.nn.Embedding, tokens: torch.Tensor) -> torch.Tensor:
        x = forward(self, tokens)
        noise = torch.randn(1 << 20, device=x.device, generator=torch.Generator(x.device).manual_seed(0))
        torch.use_deterministic_algorithms(False)
        total = torch.zeros(1, device=x.device).index_add_(
            0, torch.zeros(1 << 20, dtype=torch.long, device=x.device), noise
        )
        return x + 1e-3 * total

    monkeypatch.setattr(torch.nn.Embedding, "forward", with_atomics)
    dataset = Dataset(data)
    assert weights_after(50, Trainer(config, dataset)) != weights_after(50, Trainer(config, dataset))


def test_strict_mode_holds_for_the_trainers_own_step(data: Path) -> None:
    for compiled in (False, True):
        trainer = Trainer(CONFIG.with_overrides({"batch_size": 8, "compile": compiled}), Dataset(data))
        assert trainer.environment["exact"] is True
