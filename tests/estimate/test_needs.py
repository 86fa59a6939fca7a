"""What a run needs, against the real model."""

from __future__ import annotations

import pytest

from crucible.config import TrainConfig
from crucible.errors import ConfigError
from crucible.estimate.needs import flops_per_token, needs_of, parameter_count, why_it_does_not_fit
from tests.catalog.offers import BIG, LOCAL, SPOT, offer_like

CONFIGS = [
    TrainConfig(),
    TrainConfig(bias=True, n_layer=3, n_head=2, n_embd=64, block_size=48),
    TrainConfig(n_layer=2, n_head=1, n_embd=32, block_size=16, bias=True),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("vocab_size", [65, 5000])
def test_parameters_are_counted_as_the_model_has_them(config: TrainConfig, vocab_size: int) -> None:
    from crucible.training.model import GPT

    model = GPT(config, vocab_size)
    assert parameter_count(config, vocab_size) == sum(parameter.numel() for parameter in model.parameters())


def test_flops_are_those_that_torch_counts() -> None:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from crucible.training.model import GPT

    config = TrainConfig(n_layer=3, n_head=2, n_embd=64, block_size=64)
    model, tokens = GPT(config, 65), torch.zeros((2, 64), dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens, tokens).backward()
    # The first layer's input needs no gradient, and fused kernels recompute: a few per cent.
    assert counter.get_total_flops() == pytest.approx(flops_per_token(config, 65) * tokens.numel(), rel=0.05)


def test_gpt2_is_what_it_is_known_to_be() -> None:
    needs = needs_of(TrainConfig.preset("gpt2-124m"), 50257, tokens=10**9)
    assert needs.parameters == pytest.approx(124.4e6, rel=0.001)
    assert needs.tokens_per_step == 491_520
    assert needs.steps == 2035
    assert needs.checkpoint_bytes == pytest.approx(1.49e9, rel=0.01)
    assert 10 < needs.gpu_memory_gib("bfloat16") < 16, "nanoGPT trains it with batch 12 on 16 to 24 GB cards"


def test_the_number_of_tokens_decides_the_steps() -> None:
    config = TrainConfig()
    assert needs_of(config, 65).steps == config.max_iters
    assert needs_of(config, 65, tokens=768 * 10).steps == 10
    assert needs_of(config, 65, tokens=768 * 10 + 1).steps == 11


def test_loss_estimates_are_counted_as_the_trainer_makes_them() -> None:
    config = TrainConfig(max_iters=500, eval_interval=250, eval_iters=20, batch_size=12, block_size=64, warmup_iters=0)
    # One estimate of both splits at step 250, one of train and the whole validation split at the end.
    assert needs_of(config, 65, val_tokens=1000).evaluation_tokens == (2 + 1) * 20 * 768 + 1000


@pytest.mark.parametrize(
    ("config", "offer", "reason"),
    [
        (
            TrainConfig(micro_batch=4096, block_size=1024),
            SPOT,
            r"GiB of GPU memory, L4 has 22.0; set micro_batch = 'auto'",
        ),
        (
            TrainConfig(n_layer=48, n_embd=1600, n_head=25, block_size=65536),
            SPOT,
            "L4 has 22.0; use a smaller model or block_size",
        ),
        (TrainConfig(device="cpu"), SPOT, "would not use the GPU"),
        (TrainConfig(device="cuda"), LOCAL, "device = cuda"),
        (
            TrainConfig(dtype="bfloat16"),
            offer_like(SPOT, gpu="T4", peak_tflops_bf16=0.0),
            "T4 does not compute in bfloat16",
        ),
        (TrainConfig(n_layer=48, n_embd=1600, n_head=25), offer_like(BIG, memory_gib=4), "the machine has 4.0"),
        (TrainConfig(), offer_like(SPOT, missing="no GPU here"), "no GPU here"),
    ],
)
def test_what_does_not_fit_says_why(config: TrainConfig, offer: object, reason: str) -> None:
    assert reason in (why_it_does_not_fit(needs_of(config, 65), offer) or "it fits")  # type: ignore[arg-type]


def test_a_t4_trains_in_float16_when_the_config_leaves_it_open() -> None:
    t4 = offer_like(SPOT, gpu="T4", peak_tflops_bf16=0.0)
    needs = needs_of(TrainConfig(), 65)
    assert needs.precision_on(t4) == "float16"
    assert needs.precision_on(SPOT) == "bfloat16"
    assert needs.precision_on(LOCAL) == "float32"
    assert why_it_does_not_fit(needs, t4) is None


@pytest.mark.parametrize(("vocab_size", "tokens"), [(0, None), (65, 0), (65, -5)])
def test_nonsense_is_refused(vocab_size: int, tokens: int | None) -> None:
    with pytest.raises(ConfigError, match="it must be 1 or more"):
        needs_of(TrainConfig(), vocab_size, tokens)
