"""Generate texts from a model, one token at a time, several texts at once.

Shape suffixes: B texts, T tokens so far, V vocabulary.
"""

# ruff: noqa: N803, N806 (the suffixes are worth their capitals)

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
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
    seeds: Sequence[int] = (1337,),
) -> list[list[int]]:
    """For each seed the prompt and `max_new_tokens` more token ids; `temperature` 0 always takes the likeliest.

    One pass through the model per token serves all texts, which for a small model takes hardly longer than for one.
    Each text has its own generator, so a seed always gives the same text, and training is not affected. Raises
    ConfigError for an empty prompt, ids outside the vocabulary, or a negative temperature.
    """
    if not prompt_ids:
        raise ConfigError("prompt_ids = [] is empty; give at least one token to continue from")
    if min(prompt_ids) < 0 or max(prompt_ids) >= model.vocab_size:
        raise ConfigError(f"prompt_ids must lie in 0..{model.vocab_size - 1}, the model's vocabulary")
    if temperature < 0:
        raise ConfigError(f"temperature = {temperature} is negative; use 0 (always the likeliest) or more")
    device = next(model.parameters()).device
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    training = model.training
    model.eval()
    tokens_BT = torch.tensor([list(prompt_ids)] * len(generators), device=device)
    for _ in range(max_new_tokens if generators else 0):
        logits_BV = model.next_logits(tokens_BT[:, -model.config.block_size :]).float().cpu()
        chosen_B1 = _choose(logits_BV, temperature, top_k, generators)
        tokens_BT = torch.cat([tokens_BT, chosen_B1.to(device)], dim=1)
    model.train(training)
    return [[int(token) for token in row] for row in tokens_BT.tolist()]


def _choose(logits_BV: Tensor, temperature: float, top_k: int | None, generators: Sequence[torch.Generator]) -> Tensor:
    """The next token of each row."""
    if temperature == 0:
        return logits_BV.argmax(dim=-1, keepdim=True)
    logits_BV = logits_BV / temperature
    if top_k is not None and top_k < logits_BV.shape[-1]:
        least_B1 = logits_BV.topk(top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    odds_BV = functional.softmax(logits_BV, dim=-1)
    chosen = [torch.multinomial(odds, 1, generator=own) for odds, own in zip(odds_BV, generators, strict=True)]
    return torch.stack(chosen)
