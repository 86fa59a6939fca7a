"""Where the weights to start from are, and the shape they fix: what a flow knows of them without torch.

A supervisor lives as long as its job, and with torch it would hold twice the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crucible.config import NOT_IN_DIGEST
from crucible.errors import ConfigError

EMBEDDING, POSITIONS = "transformer.wte.weight", "transformer.wpe.weight"


@dataclass(frozen=True)
class Source:
    """`init_from`, taken apart."""

    place: str
    """A path, `job:…`, `hf:…` or `weights:DIGEST`."""
    resume: bool
    """Whether to go on with the optimizer and the step of a nanoGPT checkpoint."""

    @classmethod
    def parse(cls, text: str) -> Source:
        """Raises ConfigError where no place is named."""
        resume, place = text.startswith("resume:"), text.removeprefix("resume:")
        if not place:
            raise ConfigError(f"init_from = {text!r} names no checkpoint; write resume:OUT_DIR/ckpt.pt")
        if place in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"):
            place = f"hf:openai-community/{place}"
        return cls(place, resume)


@dataclass(frozen=True)
class Shape:
    """What of a model's configuration its weights fix."""

    n_layer: int
    n_head: int | None
    """None: the file holds tensors only, which do not say."""
    n_embd: int
    block_size: int
    bias: bool

    @classmethod
    def of(cls, weights: Mapping[str, Any], n_head: int | None, source: str) -> Shape:
        """Read from the tensors, by name. Raises ConfigError when they are not those of a GPT-2."""
        try:
            return cls(
                n_layer=1 + max(int(name.split(".")[2]) for name in weights if name.startswith("transformer.h.")),
                n_head=n_head,
                n_embd=weights[EMBEDDING].shape[1],
                block_size=weights[POSITIONS].shape[0],
                bias="transformer.ln_f.bias" in weights,
            )
        except (KeyError, ValueError, IndexError):
            raise ConfigError(f"init_from: {source} does not hold the weights of a GPT-2") from None


def settled(recorded: Mapping[str, Any], resume: bool) -> dict[str, Any]:
    """Of a configuration on record: what it took from the weights it started from, which may be gone by now."""
    names = recorded.keys() - NOT_IN_DIGEST if resume else Shape.__annotations__
    return {name: recorded[name] for name in names}
