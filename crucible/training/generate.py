"""Text from a model: one token after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from crucible.errors import ConfigError
from crucible.training.model import GPT

__all__ = ["generate"]


@torch.inference_mode()
def generate(
    model: GPT,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.8,
    top_k: int | None = 200,
    seed: int = 1337,
) -> list[int]:
    """The prompt and `max_new_tokens` more token ids; `temperature` 0 always takes the likeliest.

    Uses a generator of its own, so the same seed gives the same text and training is not touched. Raises ConfigError
    for an empty prompt, ids outside the vocabulary, or a negative temperature.
    """
    if not prompt_ids:
        raise ConfigError("prompt_ids = [] is empty; give at least one token to continue from")
    if min(prompt_ids) < 0 or max(prompt_ids) >= model.vocab_size:
        raise ConfigError(f"prompt_ids must lie in 0..{model.vocab_size - 1}, the model's vocabulary")
    if temperature < 0:
        raise ConfigError(f"temperature = {temperature} is negative; use 0 (always the likeliest) or more")
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    training = model.training
    model.eval()
    tokens = torch.tensor([list(prompt_ids)], device=device)
    for _ in range(max_new_tokens):
        logits = model(tokens[:, -model.config.block_size :])[:, -1].float().cpu()
        if temperature == 0:
            chosen = logits.argmax(dim=-1, keepdim=True)
        else:
            logits = logits / temperature
            if top_k is not None and top_k < logits.shape[-1]:
                least = logits.topk(top_k).values[:, -1:]
                logits = logits.masked_fill(logits < least, -torch.inf)
            chosen = torch.multinomial(functional.softmax(logits, dim=-1), 1, generator=generator)
        tokens = torch.cat([tokens, chosen.to(device)], dim=1)
    model.train(training)
    return [int(token) for token in tokens[0].tolist()]
