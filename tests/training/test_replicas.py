"""Data-parallel replicas learn what one thread learns."""

from __future__ import annotations

import pytest
import torch

from crucible.config import TrainConfig
from crucible.training.cpu.replicas import replica_count
from crucible.training.cpu.threads import Threads
from crucible.training.data import Dataset
from crucible.training.model import GPT
from crucible.training.trainer import Trainer
from tests.training.conftest import TINY, VOCABULARY

SMOOTH = TINY.with_overrides({"dropout": 0.0})
MODEL = GPT(SMOOTH, VOCABULARY)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [4, 5, 7])
def test_replicas_learn_like_one_model(dataset: Dataset, rows: int, bias: bool) -> None:
    config = SMOOTH.with_overrides({"batch_size": rows, "gradient_accumulation_steps": 2, "bias": bias})
    one = Trainer(config, dataset)
    several = Trainer(config.with_overrides({"threads": 3}), dataset)
    assert one.replicas is None
    assert several.replicas is not None
    assert several.replicas.count == (2 if rows == 4 else 3)
    for _ in range(12):
        one.train_step()
        several.train_step()
        assert several.means.read(0) == pytest.approx(one.means.read(0), abs=1e-5)
    assert torch.allclose(several.optimizer.weights, one.optimizer.weights, atol=1e-4)
    assert several.optimizer.updates == 12


def test_their_model_is_one(dataset: Dataset) -> None:
    """What a checkpoint restores, or an evaluation reads, is what every thread computes with."""
    trainer = Trainer(SMOOTH.with_overrides({"threads": 2}), dataset)
    trainer.optimizer.weights.zero_()
    assert trainer.replicas is not None
    assert len(trainer.replicas.models) == 2
    for model in trainer.replicas.models:
        assert all(not parameter.any() for parameter in model.parameters())


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
def test_replica_count(threads: int, changes: dict[str, object], size: int) -> None:
    torch.set_num_threads(threads)
    assert replica_count(SMOOTH.with_overrides(changes), MODEL) == size


def test_a_large_model_has_no_room_for_gradients_of_every_thread() -> None:
    torch.set_num_threads(8)
    large = TrainConfig.preset("gpt2-124m", dropout=0.0)
    with torch.device("meta"):
        model = GPT(large, 50257)
    assert replica_count(large, model) == 1


def test_an_error_of_any_thread_is_raised_when_all_have_ended() -> None:
    torch.set_num_threads(2)
    ended = []

    def work(number: int) -> int:
        if number == 1:
            raise ArithmeticError("of the other thread")
        ended.append((number, torch.get_num_threads()))
        return number

    with pytest.raises(ArithmeticError, match="of the other thread"):
        Threads(2).each(work)
    assert ended == [(0, 1)]
    assert torch.get_num_threads() == 2
