"""The model is nanoGPT's: how it starts, how it learns, and what comes out of a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from torch.optim.adamw import adamw

from benchmarks.plain_loop import PlainLoop
from crucible.config import TrainConfig
from crucible.errors import CheckpointError, ConfigError
from crucible.training.data import Dataset
from crucible.training.evaluate import full_loss
from crucible.training.generate import generate
from crucible.training.model import GPT, load_model, padded_vocabulary
from crucible.training.optimizer import FlatAdamW, _is_as_known, learning_rate
from crucible.training.trainer import Trainer
from tests.training.conftest import TINY, VOCABULARY, Train, write_dataset


def test_initial_weights_are_gpt2s() -> None:
    torch.manual_seed(0)
    model = GPT(TrainConfig(n_layer=8, n_embd=256, n_head=4, block_size=128, bias=True), 500)
    for name, parameter in model.named_parameters():
        if name.endswith("c_proj.weight"):
            assert parameter.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.03), name
        elif parameter.dim() >= 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.03), name
            assert abs(parameter.mean().item()) < 1e-3, name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert (parameter == 1).all(), name
    assert model.lm_head.weight is model.transformer.wte.weight
    untrained = model(torch.randint(500, (4, 128)), torch.randint(500, (4, 128)))
    assert untrained.item() == pytest.approx(math.log(500), abs=0.1)


def test_parameters_are_counted_as_in_gpt2_small() -> None:
    with torch.device("meta"):
        model = GPT(TrainConfig.preset("gpt2-124m").with_overrides({"bias": True}), 50257)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted - (50304 - 50257) * 768 == 124_439_808  # OpenAI's GPT-2 small


def test_a_token_does_not_see_what_follows_it() -> None:
    model = GPT(TINY, VOCABULARY).eval()
    tokens = torch.randint(VOCABULARY, (1, 16))
    changed = tokens.clone()
    changed[0, 9] = (changed[0, 9] + 1) % VOCABULARY
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.equal(before[:, 9:], after[:, 9:])


@pytest.mark.parametrize("gemm", ["mkl", "onednn"])
@pytest.mark.parametrize("bias", [False, True])
def test_learns_like_the_plain_loop(tmp_path: Path, gemm: str, bias: bool) -> None:
    data = write_dataset(tmp_path, shards=1)
    config = TINY.with_overrides({"dropout": 0.0, "bias": bias})
    plain = PlainLoop(config, data / "train-00000.bin", VOCABULARY)
    trainer = Trainer(config, Dataset(data), gemm=gemm)
    for _ in range(25):
        loss = plain.step()
        trainer.train_step()
        assert trainer.means.read(trainer.step)[0] == pytest.approx(loss, abs=5e-4)
    assert loss < math.log(VOCABULARY) - 0.2


def test_accumulated_micro_batches_give_the_step_of_one_large_batch(dataset: Dataset) -> None:
    config = TINY.with_overrides({"dropout": 0.0})
    large = Trainer(config.with_overrides({"batch_size": 8}), dataset)
    small = Trainer(config.with_overrides({"batch_size": 2, "gradient_accumulation_steps": 4}), dataset)
    for _ in range(5):
        large.train_step()
        small.train_step()
    assert torch.allclose(large.optimizer.weights, small.optimizer.weights, atol=1e-5)


def test_weight_decay_spares_vectors() -> None:
    config = TINY.with_overrides({"learning_rate": 0.1, "weight_decay": 0.5, "bias": True})
    model = GPT(config, VOCABULARY)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = FlatAdamW(model, config)
    optimizer.step()  # no gradients: only decay acts
    for name, parameter in model.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.5) if parameter.dim() >= 2 else before[name]
        assert torch.allclose(parameter, expected), name


def test_a_step_that_overflows_is_skipped_and_not_counted() -> None:
    optimizer = FlatAdamW(GPT(TINY, VOCABULARY), TINY)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = optimizer.weights.clone()
    outcomes = []
    for gradient in (math.inf, 1.0):
        scaler.scale(torch.zeros(()))
        optimizer.gradients.fill_(gradient)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        outcomes.append((optimizer.updates, torch.equal(optimizer.weights, before), scaler.get_scale()))
    assert outcomes == [(0, True, 2.0), (1, False, 2.0)]
    assert optimizer.gradients[0].item() == 0.5, "unscaled in place, as clipping needs it"


def test_without_torchs_function_its_optimizer_makes_the_same_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained() -> FlatAdamW:
        torch.manual_seed(0)
        optimizer = FlatAdamW(GPT(TINY, VOCABULARY), TINY)
        for _ in range(3):
            optimizer.gradients.normal_()
            optimizer.step()
        return optimizer

    known = trained()
    monkeypatch.setattr("crucible.training.optimizer.ADAMW_IS_AS_KNOWN", False)
    other = trained()
    assert torch.equal(known.weights, other.weights)
    assert torch.equal(known.second_moment, other.second_moment)
    assert other.updates == 3


def test_another_signature_of_torchs_function_is_noticed() -> None:
    def renamed(params: object, grads: object, moments: object, *, fused: bool) -> None: ...

    assert _is_as_known(adamw)
    assert not _is_as_known(renamed)


def test_gradients_are_clipped_to_one_norm() -> None:
    optimizer = FlatAdamW(GPT(TINY, VOCABULARY), TINY)
    optimizer.gradients.fill_(1.0)
    norm = optimizer.clip(0.5)
    assert norm.item() == pytest.approx(math.sqrt(optimizer.gradients.numel()))
    assert optimizer.gradients.norm().item() == pytest.approx(0.5, rel=1e-4)
    assert optimizer.clip(0.0).item() == pytest.approx(0.5, rel=1e-4)
    assert optimizer.gradients.norm().item() == pytest.approx(0.5, rel=1e-4)


def test_schedule_warms_up_and_decays() -> None:
    config = TrainConfig(learning_rate=1e-3, min_lr=1e-4, warmup_iters=100, lr_decay_iters=1100, max_iters=2000)
    assert learning_rate(config, 0) == pytest.approx(1e-3 / 101)
    assert learning_rate(config, 100) == pytest.approx(1e-3)
    assert learning_rate(config, 600) == pytest.approx((1e-3 + 1e-4) / 2)
    assert learning_rate(config, 1100) == pytest.approx(1e-4)
    assert learning_rate(config, 1999) == 1e-4
    assert learning_rate(config.with_overrides({"decay_lr": "false"}), 0) == 1e-3


def test_large_vocabularies_are_padded_and_small_ones_are_not() -> None:
    assert (padded_vocabulary(65), padded_vocabulary(50257)) == (65, 50304)
    model = GPT(TINY, 1030)
    assert model.transformer.wte.weight.shape == (1088, 16)
    assert model(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, 1030)


def test_full_loss_reads_every_token_once(dataset: Dataset) -> None:
    model = GPT(TINY, VOCABULARY).eval()
    tokens = torch.from_numpy(dataset.val.read(0, dataset.val.tokens))
    losses = []
    for start in range(0, len(tokens) - 1, 16):
        window = tokens[start : start + 17]
        losses.append(functional.cross_entropy(model(window[None, :-1])[0], window[1:], reduction="none"))
    expected = torch.cat(losses)
    assert len(expected) == dataset.val.tokens - 1
    assert full_loss(model, dataset, "val") == pytest.approx(expected.mean().item(), abs=1e-5)


def test_checkpoint_gives_the_model_back(tmp_path: Path, train: Train) -> None:
    trainer, _ = train(tmp_path, until=8)
    folder = tmp_path / "step-00000008"
    model, config = load_model(folder)
    tokens = torch.randint(VOCABULARY, (2, 16))
    assert config == TINY
    assert torch.equal(model(tokens), trainer.model.eval()(tokens))
    assert model.lm_head.weight is model.transformer.wte.weight
    (folder / "rng.json").unlink()
    with pytest.raises(CheckpointError, match=r"rng.json is missing"):
        load_model(folder)


def test_generated_text_depends_on_the_seed_alone(train: Train, tmp_path: Path) -> None:
    trainer, _ = train(tmp_path, TINY.with_overrides({"max_iters": 5}))
    state = torch.get_rng_state()
    (first,) = generate(trainer.model, [1, 2], 30, seeds=[1])
    assert torch.equal(state, torch.get_rng_state())
    assert [first] == generate(trainer.model, [1, 2], 30, seeds=[1])
    assert first[:2] == [1, 2]
    assert len(first) == 32
    beside = generate(trainer.model, [1, 2], 30, seeds=[2, 1])
    assert beside[0] != first
    assert beside[1] == first
    greedy = generate(trainer.model, [3], 5, temperature=0)
    assert greedy == generate(trainer.model, [3], 5, top_k=1, seeds=[5])
    assert generate(trainer.model, [3], 5, seeds=[]) == []
    with pytest.raises(ConfigError, match="vocabulary"):
        generate(trainer.model, [VOCABULARY], 1)
