"""What a training run needs, computed from its configuration: parameters, FLOPs, memory, bytes.

The counts are those of `crucible.training`'s model (the tests compare them), without importing torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from crucible.catalog.offers import Offer, Precision
from crucible.config import TrainConfig
from crucible.errors import ConfigError

GIB = 2**30
_CUDA_CONTEXT_GIB = 0.8


@dataclass(frozen=True)
class Needs:
    """A run's work and memory. FLOPs count a multiply-add as two."""

    config: TrainConfig
    vocab_size: int
    parameters: int
    flops_per_token: float
    """Forward and backward pass."""
    tokens_per_step: int
    steps: int
    evaluation_tokens: int
    """Tokens of all loss estimates together; forward pass only."""
    checkpoint_bytes: int
    dataset_bytes: int | None
    """None when the dataset is not known yet."""
    inferred: tuple[str, ...] = ()
    """Values that were not given, and where they come from."""

    @property
    def checkpoint_interval_seconds(self) -> float | None:
        """As set in the configuration; None: chosen automatically."""
        return self.config.checkpoint_interval_seconds

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step

    @property
    def flops(self) -> float:
        """FLOPs of the whole run."""
        return self.flops_per_token * (self.tokens + self.evaluation_tokens / 3)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        names = ("parameters", "flops_per_token", "flops", "tokens", "steps", "vocab_size")
        return {
            **{name: getattr(self, name) for name in names},
            "gpu_memory_gib": self.gpu_memory_gib("bfloat16"),
            "checkpoint_bytes": self.checkpoint_bytes,
            "dataset_bytes": self.dataset_bytes,
            "inferred": list(self.inferred),
        }

    def precision_on(self, offer: Offer) -> Precision:
        """The autocast precision that `dtype: auto` gets on that hardware."""
        if self.config.dtype != "auto":
            return self.config.dtype
        if not offer.gpus:
            return "float32"
        return "float16" if offer.peak_flops("bfloat16") == 0 else "bfloat16"

    def gpu_memory_gib(self, precision: Precision, rows: int | None = None) -> float:
        """Memory one GPU needs for so many rows at a time: state in float32, activations, logits, CUDA itself.

        `rows`: None means as many as the configuration says, which is `batch_size` for `micro_batch: auto`.

        State: weights, gradients and AdamW's two moments, 16 bytes per parameter, plus a cast copy under autocast.
        Activations per layer: 34 B T D bytes in 16 bit (Korthikanti et al. 2022, "Reducing Activation Recomputation in
        Large Transformer Models", eq. 2 without the attention matrices, which the fused kernel does not keep).
        """
        config, half = self.config, precision != "float32"
        if rows is None:
            rows = config.batch_size if config.micro_batch == "auto" else config.micro_batch
        tokens = rows * config.block_size
        state = self.parameters * (16 + (2 if half else 0))
        activations = config.n_layer * tokens * config.n_embd * 34 * (1 if half else 2)
        logits = tokens * self.vocab_size * (10 if half else 8)
        return (state + activations + logits) / GIB + _CUDA_CONTEXT_GIB

    def host_memory_gib(self, offer: Offer) -> float:
        """Memory the machine itself must have: the process, a checkpoint's snapshot, and on CPUs the model as well."""
        snapshot = self.checkpoint_bytes / GIB
        return 1.5 + snapshot + (0 if offer.gpus else self.gpu_memory_gib("float32") - _CUDA_CONTEXT_GIB)


def needs_of(
    config: TrainConfig,
    vocab_size: int,
    tokens: int | None = None,
    dataset_bytes: int | None = None,
    val_tokens: int = 0,
    inferred: tuple[str, ...] = (),
) -> Needs:
    """Count what `config` needs. `tokens` replaces the number of steps by as many as train on that many tokens.

    `val_tokens`: size of the validation split, which is read once at the end.

    Raises:
        ConfigError: a vocabulary or number of tokens below 1.
    """
    if vocab_size < 1:
        raise ConfigError(f"vocab_size is {vocab_size}: it must be 1 or more")
    if tokens is not None and tokens < 1:
        raise ConfigError(f"tokens is {tokens}: it must be 1 or more")
    tokens_per_step = config.batch_size * config.gradient_accumulation_steps * config.block_size
    steps = config.max_iters if tokens is None else math.ceil(tokens / tokens_per_step)
    evaluations = (steps - 1) // config.eval_interval
    batch_tokens = config.batch_size * config.block_size
    parameters = parameter_count(config, vocab_size)
    return Needs(
        config=config,
        vocab_size=vocab_size,
        parameters=parameters,
        flops_per_token=flops_per_token(config, vocab_size),
        tokens_per_step=tokens_per_step,
        steps=steps,
        evaluation_tokens=(evaluations * 2 + 1) * config.eval_iters * batch_tokens + val_tokens,
        checkpoint_bytes=12 * parameters + 100_000,  # weights and two moments in float32, plus RNG state and metadata
        dataset_bytes=dataset_bytes,
        inferred=inferred,
    )


def parameter_count(config: TrainConfig, vocab_size: int) -> int:
    """Parameters of the model, tied embedding counted once, with the embedding's padding rows."""
    width, layers = config.n_embd, config.n_layer
    matrices = 12 * width * width
    norms_and_biases = 2 * width + (11 * width if config.bias else 0)  # biases: 2 norms, 3 + 1 attention, 4 + 1 MLP
    last_norm = width * (2 if config.bias else 1)
    return layers * (matrices + norms_and_biases) + last_norm + config.block_size * width + _padded(vocab_size) * width


def flops_per_token(config: TrainConfig, vocab_size: int) -> float:
    """Forward and backward FLOPs per token: 6 N + 12 L T D.

    N are the parameters in matrix products (the output head included, the embedding look-up not); the second term is
    attention over the whole context, as PaLM (Chowdhery et al. 2022, appendix B) and nanoGPT count it.
    """
    width, layers = config.n_embd, config.n_layer
    in_products = 12 * layers * width * width + _padded(vocab_size) * width
    return 6.0 * in_products + 12.0 * layers * config.block_size * width


def why_it_does_not_fit(needs: Needs, offer: Offer) -> str | None:
    """The first reason why this run does not fit on this offer, as a message, or None."""
    if offer.missing:
        return offer.missing
    if offer.gpus == 0 and needs.config.device == "cuda":
        return "device = cuda, and this machine's offer is its CPUs"
    if offer.gpus:
        if needs.config.device in ("cpu", "mps"):
            return f"device = {needs.config.device}: the run would not use the GPU"
        precision = needs.precision_on(offer)
        if offer.peak_flops(precision) == 0:
            return f"{offer.gpu} does not compute in {precision}"
        auto = needs.config.micro_batch == "auto"
        wanted = needs.gpu_memory_gib(precision, 1 if auto else None)  # it takes fewer rows at a time where it must
        if offer.gpu_memory_gib is not None and wanted > offer.gpu_memory_gib:
            fix = "use a smaller model or block_size" if auto else "set micro_batch = 'auto'"
            return f"needs {wanted:.1f} GiB of GPU memory, {offer.gpu} has {offer.gpu_memory_gib:.1f}; {fix}"
    wanted = needs.host_memory_gib(offer)
    if offer.memory_gib is not None and wanted > offer.memory_gib:
        return f"needs {wanted:.1f} GiB of memory, the machine has {offer.memory_gib:.1f}"
    return None


def _padded(vocab_size: int) -> int:
    """As `crucible.training.model.padded_vocabulary`, which cannot be imported without torch."""
    return vocab_size if vocab_size <= 1024 else math.ceil(vocab_size / 64) * 64
