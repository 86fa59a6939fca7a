"""Threads that train on rows of their own learn what one thread learns."""

from __future__ import annotations

import pytest
import torch

from crucible.config import TrainConfig
from crucible.training.cpu.team import Team, team_size
from crucible.training.data import Dataset
from crucible.training.trainer import Trainer
from tests.training.conftest import TINY

SMOOTH = TINY.with_overrides({"dropout": 0.0})


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [4, 5, 7])
def test_threads_with_rows_of_their_own_learn_like_one(dataset: Dataset, rows: int, bias: bool) -> None:
    config = SMOOTH.with_overrides({"batch_size": rows, "gradient_accumulation_steps": 2, "bias": bias})
    one = Trainer(config, dataset)
    several = Trainer(config.with_overrides({"threads": 3}), dataset)
    assert several.team.count == (2 if rows == 4 else 3)
    for _ in range(12):
        one.train_step()
        several.train_step()
        assert several.mean_since_last_call() == pytest.approx(one.mean_since_last_call(), abs=1e-5)
    assert torch.allclose(several.optimizer.weights, one.optimizer.weights, atol=1e-4)
    assert several.optimizer.updates == 12


def test_their_model_is_one(dataset: Dataset) -> None:
    """What a checkpoint brings, or an evaluation reads, is what every thread computes with."""
    trainer = Trainer(SMOOTH.with_overrides({"threads": 2}), dataset)
    trainer.optimizer.weights.zero_()
    for forward in trainer.replicas.forwards:
        assert isinstance(forward, torch.nn.Module)
        assert all(not parameter.any() for parameter in forward.parameters())


@pytest.mark.parametrize(
    ("threads", "changes", "size"),
    [
        pytest.param(1, {}, 1, id="one thread"),
        pytest.param(2, {"batch_size": 12}, 2, id="six rows each"),
        pytest.param(8, {"batch_size": 12}, 6, id="two rows each: further threads would have nothing to do"),
        pytest.param(16, {"batch_size": 12}, 1, id="fewer rows than threads"),
        pytest.param(2, {"batch_size": 12, "dropout": 0.1}, 1, id="one generator for all"),
    ],
)
def test_team_size(threads: int, changes: dict[str, object], size: int) -> None:
    torch.set_num_threads(threads)
    assert team_size(SMOOTH.with_overrides(changes), parameters=800_000) == size


def test_a_large_model_has_no_room_for_gradients_of_every_thread() -> None:
    torch.set_num_threads(8)
    large = TrainConfig.preset("gpt2-124m")
    assert team_size(large.with_overrides({"dropout": 0.0}), parameters=124_000_000) == 1


def test_an_error_of_any_thread_is_raised_when_all_have_ended() -> None:
    torch.set_num_threads(2)
    ended = []

    def work(number: int) -> int:
        if number == 1:
            raise ArithmeticError("of the other thread")
        ended.append((number, torch.get_num_threads()))
        return number

    with pytest.raises(ArithmeticError, match="of the other thread"):
        Team(2).each(work)
    assert ended == [(0, 1)]
    assert torch.get_num_threads() == 2
