"""Weights to start from: what `init_from` names, read into this model's names and layout.

    Hugging Face GPT-2     a folder with config.json and .safetensors files, or such a file alone
    nanoGPT                ckpt.pt, or the out_dir that holds it; read with `weights_only=True`, so nothing in it runs
    Crucible               a checkpoint folder of the trainer

The shape is read from the tensors, so that a checkpoint cannot contradict itself. Shapes: R rows of the embedding
(the checkpoint's vocabulary), D n_embd.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from crucible.config import TrainConfig
from crucible.errors import ConfigError
from crucible.training.initial_source import EMBEDDING, POSITIONS, Shape
from crucible.training.model import padded_vocabulary
from crucible.training.optimizer import FlatAdamW


@dataclass(frozen=True)
class OptimizerState:
    """Where a training had got to: what `resume:` goes on with."""

    step: int
    updates: int
    """How many updates AdamW has made."""
    best_val_loss: float | None
    first_moment: Mapping[str, Tensor]
    second_moment: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The training's own settings, as far as they have a field here; not those of its machine."""


@dataclass(frozen=True)
class Initial:
    """A checkpoint to start from."""

    source: str
    """As a message names it."""
    shape: Shape
    weights: Mapping[str, Tensor]
    """float32, by this model's names and in its layout; the head is the embedding."""
    optimizer: OptimizerState | None = None
    """Only for `resume:`."""
    remarks: Sequence[str] = ()
    """How this model will differ from the one that was read."""

    @property
    def rows(self) -> int:
        """R: the tokens that the embedding has."""
        return self.weights[EMBEDDING].shape[0]

    def settings(self, base: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a configuration: those `stated`, else the checkpoint's, else those of `base`.

        Raises ConfigError naming every stated value that contradicts the checkpoint, both values and the fix.
        """
        wrong = [problem for name in Shape.__annotations__ if (problem := self._contradiction(name, stated))]
        if wrong:
            raise ConfigError("; ".join(wrong))
        shape = {name: getattr(self.shape, name) for name in Shape.__annotations__}
        resumed = self.optimizer.settings if self.optimizer else {}
        return {**base, **resumed, **{name: value for name, value in shape.items() if value is not None}, **stated}

    def light(self) -> Initial:
        """The same without the numbers: enough for every check, and small."""
        weights = {name: t if name.endswith("bias") else t.to("meta") for name, t in self.weights.items()}
        return replace(self, weights=weights, optimizer=None)

    def _contradiction(self, name: str, stated: Mapping[str, Any]) -> str | None:
        mine, given = getattr(self.shape, name), stated.get(name)
        if name == "n_head" and mine is None:
            usual = max(1, self.shape.n_embd // 64)
            return None if given else f"n_head: {self.source} does not say it; set it (GPT-2 would have {usual})"
        if given is None:
            return None
        kind = TrainConfig.model_fields[name].annotation
        try:
            value = TypeAdapter(Any if kind is None else kind).validate_python(given)
        except ValidationError:
            return None  # the configuration itself refuses it, with its own message
        if value == mine or (name == "bias" and mine and not value and self._biases_are_zero()):
            return None
        if name == "block_size":
            return (
                None
                if value < mine
                else f"block_size = {value}, but {self.source} has {mine} positions; lower it to at most {mine}"
            )
        return f"{name} = {value}, but {self.source} has {mine}; leave it out, or set {name} = {mine}"

    def _biases_are_zero(self) -> bool:
        return not any(bool(tensor.any()) for name, tensor in self.weights.items() if name.endswith("bias"))

    def require_vocabulary(self, vocab_size: int) -> None:
        """Raise ConfigError unless the embedding has a row for each of the dataset's tokens, and no tokens more."""
        if not vocab_size <= self.rows <= padded_vocabulary(vocab_size):
            fix = "tokenizer: gpt2" if self.rows in (50257, 50304) else "tokenizer: file and tokenizer_file"
            raise ConfigError(
                f"init_from: {self.source} has {self.rows:,} tokens, the dataset {vocab_size:,}; prepare the dataset "
                f"with the checkpoint's tokenizer ({fix})"
            )

    def require_steps_left(self, config: TrainConfig) -> None:
        """Raise ConfigError when a resumed training has already made all its steps."""
        if self.optimizer and self.optimizer.step >= config.max_iters:
            raise ConfigError(
                f"max_iters = {config.max_iters}, but {self.source} has made {self.optimizer.step} steps; raise "
                f"max_iters, or leave out resume: to start at step 0 with its weights"
            )

    @torch.no_grad()
    def copy_into(self, optimizer: FlatAdamW, vocab_size: int) -> None:
        """Put weights, and with `resume:` the optimizer's state, where the trainer computes with them.

        Positions beyond block_size are cut off. Raises ConfigError where a tensor does not fit.
        """
        self.require_vocabulary(vocab_size)
        self._copy(optimizer, optimizer.weights, self.weights)
        if self.rows < padded_vocabulary(vocab_size):
            # Rows that stand for no token still take part in the softmax. The mean of the others has the mean logit,
            # so by Jensen's inequality a row takes at most 1/R of the probability: 0.001 nats in all for GPT-2. Zeros
            # would not do: GPT-2's own logits are near -35.
            embedding = dict(optimizer.named(optimizer.weights))[EMBEDDING]
            embedding[self.rows :] = embedding[: self.rows].mean(dim=0)
        if self.optimizer:
            self._copy(optimizer, optimizer.first_moment, self.optimizer.first_moment)
            self._copy(optimizer, optimizer.second_moment, self.optimizer.second_moment)
            optimizer.updates = self.optimizer.updates

    def _copy(self, optimizer: FlatAdamW, flat: Tensor, tensors: Mapping[str, Tensor]) -> None:
        for name, target in optimizer.named(flat):
            source = tensors.get(name)
            if source is None:
                raise ConfigError(f"init_from: {self.source} has no {name}")
            if name == POSITIONS:
                source = source[: target.shape[0]]
            elif name == EMBEDDING:
                target = target[: source.shape[0]]
            if source.shape != target.shape:
                raise ConfigError(
                    f"init_from: {name} of {self.source} has the shape {tuple(source.shape)}, not {tuple(target.shape)}"
                )
            target.copy_(source)
