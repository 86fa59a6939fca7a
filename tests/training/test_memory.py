"""How much of a step is in memory at a time changes neither its rows nor its loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from crucible.config import TrainConfig
from crucible.errors import TrainingError
from crucible.training import cross_entropy
from crucible.training.cross_entropy import chunked_cross_entropy
from crucible.training.data import Dataset
from crucible.training.device import may_chunk_loss
from crucible.training.evaluate import estimate_loss
from crucible.training.micro_batch import largest_divisor, recorded_environment, rows_that_fit
from crucible.training.prefetch import Prefetch, Rows
from crucible.training.trainer import Trainer
from tests.training.conftest import TINY, Train

SMOOTH = TINY.with_overrides({"dropout": 0.0, "batch_size": 6, "gradient_accumulation_steps": 2})


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def with_gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return loss.detach(), *torch.autograd.grad(loss * 3.0, inputs)


@pytest.fixture
def hidden() -> tuple[Tensor, Tensor, Tensor]:
    """1,000 tokens (a number that no chunk divides), 32 wide, 512 entries."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1000, 32, generator=generator, requires_grad=True)
    weight = (0.3 * torch.randn(512, 32, generator=generator)).requires_grad_()
    return x, weight, torch.randint(512, (1000,), generator=generator)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_chunked_loss_is_the_loss(
    hidden: tuple[Tensor, Tensor, Tensor], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "_LEAST_TOKENS", 96)
    x, weight, targets = hidden
    function: Callable[..., Tensor] = chunked_cross_entropy
    if compiled:  # traced as on a GPU, without the minutes that a C++ compiler takes
        function = torch.compile(chunked_cross_entropy, backend="aot_eager", fullgraph=True)
    wanted = with_gradients(functional.cross_entropy(x @ weight.t(), targets), x, weight)
    found = with_gradients(function(x, weight, targets), x, weight)
    assert [relative(a, b) < 1e-6 for a, b in zip(found, wanted, strict=True)] == [True] * 3


def test_under_autocast_its_products_are_in_16_bit_and_its_gradients_are_not(
    hidden: tuple[Tensor, Tensor, Tensor],
) -> None:
    x, weight, targets = hidden
    wanted = with_gradients(functional.cross_entropy(x @ weight.t(), targets), x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_cross_entropy(x, weight, targets)
    found = with_gradients(loss, x, weight)
    assert [part.dtype for part in found] == [torch.float32] * 3
    assert all(0 < relative(a, b) < 0.02 for a, b in zip(found, wanted, strict=True))


def test_a_training_with_the_chunked_loss_learns_the_same(dataset: Dataset) -> None:
    plain, chunked = (Trainer(SMOOTH.with_overrides({"chunked_loss": value}), dataset) for value in ("off", "on"))
    for _ in range(10):
        plain.train_step()
        chunked.train_step()
        assert chunked.means.read(0) == pytest.approx(plain.means.read(0), rel=1e-5)
    assert chunked.environment["chunked_loss"]
    assert "chunked_loss" not in plain.environment, "nothing changes on a CPU unless asked for"


def test_it_is_used_on_gpus_with_a_large_vocabulary_and_not_in_float16() -> None:
    auto = TrainConfig()
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert may_chunk_loss(auto, cuda, torch.bfloat16, 50257)
    assert not may_chunk_loss(auto, cuda, torch.bfloat16, 65)
    assert not may_chunk_loss(auto, cuda, torch.float16, 50257)
    assert not may_chunk_loss(auto, cpu, torch.float32, 50257)
    assert not may_chunk_loss(auto.with_overrides({"chunked_loss": "off"}), cuda, torch.bfloat16, 50257)


@pytest.mark.parametrize(("wanted", "used", "threads"), [(1, 1, 2), (3, 3, 2), (5, 4, 1), (100, 12, 2)])
def test_cutting_a_step_changes_neither_its_rows_nor_its_loss(
    dataset: Dataset, wanted: int, used: int, threads: int
) -> None:
    whole = Trainer(SMOOTH, dataset)
    cut = Trainer(SMOOTH.with_overrides({"micro_batch": wanted, "threads": threads}), dataset)
    assert (whole.micro_batch, cut.micro_batch) == (6, used)
    assert cut.environment["micro_batch"] == used
    assert "micro_batch" not in whole.environment, "as before: other bits only where asked for"
    rows = torch.cat([cut._batch(number, range(used))[0] for number in range(12 // used)])
    assert torch.equal(rows, torch.cat([whole._batch(number, range(6))[0] for number in range(2)]))
    for _ in range(5):
        whole.train_step()
        cut.train_step()
        assert cut.means.read(0) == pytest.approx(whole.means.read(0), rel=1e-5)
    assert SMOOTH.digest() == cut.config.digest()


class SmallMemory:
    """A model whose forward pass has room for so many rows."""

    def __init__(self, trainer: Trainer, most: int) -> None:
        self.forward, self.most, self.tried = trainer.forward, most, list[int]()

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self.tried.append(len(inputs))
        loss = self.forward(inputs, targets)  # dropout has drawn by then
        if len(inputs) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total …")
        return loss


def limited(dataset: Dataset, most: int, changes: dict[str, object]) -> tuple[Trainer, SmallMemory, list[str]]:
    logged: list[str] = []
    trainer = Trainer(TINY.with_overrides({"batch_size": 8, **changes}), dataset, log=logged.append)
    trainer.model.train()
    trainer.forward = memory = SmallMemory(trainer, most)  # type: ignore[assignment]
    return trainer, memory, logged


def test_out_of_memory_goes_on_with_half_the_rows_from_the_same_step(dataset: Dataset) -> None:
    trainer, memory, logged = limited(dataset, 2, {})
    before = torch.get_rng_state()
    trainer.train_step()
    trainer.train_step()
    assert memory.tried == [8, 4, *[2] * 8], "each size once"
    assert (trainer.micro_batch, trainer.environment["micro_batch"]) == (2, 2)
    assert len(logged) == 2
    assert "out of memory at step 1, with 8 rows of 16 tokens at a time (2.50 GiB more were needed)" in logged[0]

    small, _, _ = limited(dataset, 2, {"micro_batch": 2})
    torch.set_rng_state(before)
    small.train_step()
    small.train_step()
    assert torch.equal(trainer.optimizer.weights, small.optimizer.weights), "the same rows, and the same dropout"


def test_out_of_memory_names_what_to_change(dataset: Dataset) -> None:
    fixed, _, _ = limited(dataset, 4, {"micro_batch": 8})
    with pytest.raises(
        TrainingError, match=r"8 rows of 16 tokens .*set micro_batch = 4 or 'auto', which trains the same"
    ):
        fixed.train_step()
    hopeless, memory, _ = limited(dataset, 0, {})
    with pytest.raises(TrainingError, match=r"with 1 rows .*smaller model or block_size, or a GPU with more memory"):
        hopeless.train_step()
    assert memory.tried == [8, 4, 2, 1]


def test_a_resumed_run_takes_as_many_rows_at_a_time_as_before(train: Train, tmp_path: Path, dataset: Dataset) -> None:
    config = SMOOTH.with_overrides({"micro_batch": 3})
    train(tmp_path, config, until=4)
    (saved,) = tmp_path.glob("step-*")
    before = recorded_environment(saved)
    auto = SMOOTH.with_overrides({"micro_batch": "auto"})
    assert Trainer(auto, dataset, before=before).micro_batch == 3
    assert Trainer(auto, dataset, before={**before, "device": "cuda"}).micro_batch == 6, (
        "a GPU's number says nothing here"
    )
    assert recorded_environment(None) == recorded_environment(tmp_path / "missing") == {}


def test_as_many_rows_as_fit() -> None:
    def peak(rows: int) -> int:
        return 1000 + 100 * rows

    assert rows_that_fit(480, 1024, peak, 10_000) == 75  # 85 % of the memory, less 1,000, by 100 for each
    assert rows_that_fit(48, 1024, peak, 10_000) == 48
    assert rows_that_fit(480, 1024, peak, 1_000) == 1
    assert rows_that_fit(1, 1024, peak, 10_000) == 1

    def full(rows: int) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert rows_that_fit(480, 1024, full, 10_000) == 4
    assert [largest_divisor(480, most) for most in (1000, 480, 75, 7, 0)] == [480, 480, 60, 6, 1]


def test_an_estimate_of_the_loss_may_be_cut(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Trainer(SMOOTH, dataset).model
    whole = estimate_loss(model, dataset, "val", 2)
    monkeypatch.setattr("crucible.training.evaluate._rows_at_once", lambda *_: 2)
    assert estimate_loss(model, dataset, "val", 2) == pytest.approx(whole, rel=1e-6)


def test_prefetched_rows_are_those_asked_for(dataset: Dataset) -> None:
    trainer = Trainer(SMOOTH, dataset)
    gathered: list[Rows] = []

    def gather(rows: Rows) -> Tensor:
        gathered.append(rows)
        return trainer._gather(rows)

    prefetch = Prefetch(torch.device("cpu"), gather)
    plan = [Rows(0, 0, 6), Rows(0, 6, 6), Rows(1, 0, 6)]
    for now, following in itertools.pairwise(plan):
        assert torch.equal(prefetch.take(now, following), trainer._gather(now))
    other = Rows(1, 0, 3)  # after an out-of-memory: what was brought ahead is dropped
    assert torch.equal(prefetch.take(other, plan[0]), trainer._gather(other))
    prefetch.close()
    assert gathered[:4] == [*plan, other]


def test_the_trainer_asks_for_the_rows_that_follow(dataset: Dataset) -> None:
    plain, ahead = Trainer(SMOOTH, dataset), Trainer(SMOOTH, dataset)
    ahead._prefetch = Prefetch(ahead.device, ahead._gather)
    for _ in range(3):
        plain.train_step()
        ahead.train_step()
    assert torch.equal(plain.optimizer.weights, ahead.optimizer.weights)
    assert ahead._prefetch._next is not None
    assert ahead._prefetch._next[0] == Rows(3, 0, 6)
    ahead._prefetch.close()
