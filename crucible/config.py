"""The vocabulary of a training run: nanoGPT's own key names, documented and checked where they are declared.

One model serves the command line, the YAML presets, the job records and the Prefect form, so they all say the same.
The defaults are those of the `cpu-small` preset: a run that finishes on a laptop.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import ConfigDict, Field, field_validator, model_validator

from crucible.errors import ConfigError
from crucible.nanogpt_config import NANOGPT_DEFAULTS, NANOGPT_HINTS, read_nanogpt_config
from crucible.settings import Settings, invalid

__all__ = ["NOT_IN_DIGEST", "ConfigDraft", "TrainConfig", "preset_names"]

NOT_IN_DIGEST = frozenset(
    {
        # Watching and saving never touch the mathematics of a run (the trainer's tests hold it to that).
        "log_interval",
        "eval_interval",
        "eval_iters",
        "checkpoint_interval_seconds",
        "keep_checkpoints",
        # Where and how fast it runs. These may change the last bits of a sum, never what is computed; a job that moves
        # to another machine must still resume. The checkpoint's environment record holds what was really used.
        "device",
        "compile",
        "threads",
        "fast_gemm",
        "exact",
        "micro_batch",
        "chunked_loss",
    }
)
"""Fields that `TrainConfig.digest` leaves out; every other field decides which weights come out."""


_MOST_SEQUENCES = 65536


class TrainConfig(Settings):
    """Everything that describes a training run except its data."""

    model_config = ConfigDict(title="Training configuration")
    hints: ClassVar[Mapping[str, str]] = NANOGPT_HINTS

    # Model
    n_layer: int = Field(4, ge=1, le=256, description="Number of transformer blocks.")
    n_head: int = Field(4, ge=1, le=256, description="Attention heads per block; must divide n_embd.")
    n_embd: int = Field(128, ge=1, le=65536, description="Width of the residual stream.")
    block_size: int = Field(64, ge=1, le=1_048_576, description="Context length in tokens.")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout probability; 0 is good for pretraining.")
    bias: bool = Field(False, description="Bias terms in Linear and LayerNorm, as GPT-2 has; off is a bit better.")

    # Start
    init_from: str | None = Field(
        None,
        max_length=4096,
        description="Weights to start from instead of random ones: a Hugging Face GPT-2 folder, a .safetensors file, "
        "nanoGPT's ckpt.pt, job:NAME[@STEP|@best], or hf:ORG/NAME (also gpt2, gpt2-medium, gpt2-large, gpt2-xl). "
        "resume:PATH goes on where nanoGPT's ckpt.pt stopped, with its optimizer and step. The model's shape comes "
        "from the checkpoint. Empty: random weights.",
    )

    # Batches
    batch_size: int = Field(12, ge=1, le=_MOST_SEQUENCES, description="Sequences per micro-batch and process.")
    gradient_accumulation_steps: int = Field(
        1, ge=1, le=65536, description="Micro-batches per step over all processes; a multiple of their number."
    )

    # Optimizer and schedule
    max_iters: int = Field(2000, ge=1, le=100_000_000, description="Optimizer steps in all.")
    learning_rate: float = Field(1e-3, gt=0.0, le=10.0, description="Highest learning rate, reached after warm-up.")
    decay_lr: bool = Field(True, description="Cosine decay to min_lr with linear warm-up; off: constant rate.")
    warmup_iters: int = Field(100, ge=0, le=100_000_000, description="Steps of linear warm-up; at most max_iters.")
    lr_decay_iters: int | None = Field(
        None, ge=1, le=100_000_000, description="Step at which the rate has decayed to min_lr; empty: max_iters."
    )
    min_lr: float = Field(1e-4, ge=0.0, le=10.0, description="Lowest learning rate; at most learning_rate.")
    weight_decay: float = Field(0.1, ge=0.0, le=10.0, description="AdamW decay of the matrices; vectors have none.")
    beta1: float = Field(0.9, ge=0.0, lt=1.0, description="AdamW decay of the first moment.")
    beta2: float = Field(0.99, ge=0.0, lt=1.0, description="AdamW decay of the second moment.")
    grad_clip: float = Field(1.0, ge=0.0, le=1e9, description="Largest gradient norm; 0: no clipping.")
    seed: int = Field(1337, ge=0, lt=2**63, description="Decides initial weights, batches and dropout.")

    # Watching
    eval_interval: int = Field(250, ge=1, le=100_000_000, description="Steps between loss estimates on both splits.")
    eval_iters: int = Field(20, ge=1, le=1_000_000, description="Batches per estimate; the last one reads all of val.")
    log_interval: int = Field(10, ge=1, le=100_000_000, description="Steps between lines of progress and metrics.")

    # Machine
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: cuda, else mps, else cpu.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Autocast precision; auto: on cuda bfloat16 (float16 on cards without it), else float32."
    )
    compile: bool = Field(False, description="torch.compile; pays on GPUs and long runs, costs up to a minute first.")
    threads: int | None = Field(None, ge=1, le=4096, description="CPU threads; empty: all cores this process may use.")
    fast_gemm: Literal["auto", "shim", "onednn", "off"] = Field(
        "auto", description="Float32 products on AMD CPUs: auto measures once whether oneMKL's fast path (shim) pays."
    )
    exact: Literal["auto", "required", "off"] = Field(
        "auto",
        description="On cuda: auto takes deterministic kernels and reports if one is missing; required refuses to "
        "train then; off takes the fastest kernels. On a CPU a run is always exact.",
    )
    micro_batch: Annotated[int, Field(ge=1, le=_MOST_SEQUENCES)] | Literal["auto"] = Field(
        "auto",
        description="Sequences computed at a time, which does not change what is trained; auto: as many as fit a GPU, "
        "fewer when its memory runs out; on a CPU batch_size.",
    )
    chunked_loss: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Compute the loss without keeping the logits, which saves memory and time with a large vocabulary; "
        "auto: on cuda.",
    )

    # Checkpoints
    checkpoint_interval_seconds: float | None = Field(
        None, gt=0.0, le=31_622_400.0, description="Seconds between checkpoints; empty: adapted to their measured cost."
    )
    keep_checkpoints: int = Field(
        3, ge=1, le=100_000, description="How many of the newest checkpoints are kept, besides the best one."
    )

    @field_validator("micro_batch", mode="before")
    @classmethod
    def _auto_or_a_number(cls, value: Any) -> Any:
        """One message instead of one for each type that it may have."""
        text = str(value).strip()
        if text != "auto" and not (text.isdecimal() and 1 <= int(text) <= _MOST_SEQUENCES):
            raise invalid(
                f"micro_batch = {value!r} must be 'auto' or a number of sequences from 1 to {_MOST_SEQUENCES}"
            )
        return text if text == "auto" else int(text)

    @field_validator("init_from", mode="before")
    @classmethod
    def _read_nanogpts_init_from(cls, value: Any) -> Any:
        if value == "resume":
            raise invalid("'resume' does not name a checkpoint; write resume:OUT_DIR/ckpt.pt")
        return None if value in ("", "scratch") else value

    @model_validator(mode="after")
    def _check_fields_together(self) -> Self:
        if self.n_embd % self.n_head:
            below = self.n_embd - self.n_embd % self.n_head
            choices = f"{below} or {below + self.n_head}" if below else str(self.n_head)
            raise invalid(f"n_embd = {self.n_embd} is not a multiple of n_head = {self.n_head}; use {choices}")
        if self.decay_lr and self.warmup_iters > self.max_iters:  # without decay there is no warm-up either
            raise invalid(
                f"warmup_iters = {self.warmup_iters} is more than max_iters = {self.max_iters}; "
                f"lower it to at most {self.max_iters}"
            )
        if self.decay_lr and self.min_lr > self.learning_rate:
            raise invalid(
                f"min_lr = {self.min_lr} is above learning_rate = {self.learning_rate}; lower it to at most "
                f"{self.learning_rate} or set decay_lr = false"
            )
        if self.decay_lr and self.lr_decay_iters is not None and self.lr_decay_iters < self.warmup_iters:
            raise invalid(
                f"lr_decay_iters = {self.lr_decay_iters} is less than warmup_iters = {self.warmup_iters}; "
                f"leave it empty to mean max_iters = {self.max_iters}"
            )
        return self

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> TrainConfig:
        """The shipped preset `name` (see `preset_names`), with fields replaced by `overrides`."""
        return ConfigDraft.preset(name, overrides).config(f"preset {name}")

    @classmethod
    def from_file(cls, path: str | Path) -> TrainConfig:
        """Read a file of settings (see `ConfigDraft.from_file`); whatever it leaves out has its default."""
        return ConfigDraft.from_file(path).config()

    def with_overrides(self, overrides: Mapping[str, Any]) -> TrainConfig:
        """A copy with some fields replaced; strings, as from a command line, are parsed (`none` empties a field)."""
        return ConfigDraft(self.model_dump(), {}).with_overrides(overrides).config()

    @property
    def decay_end(self) -> int:
        """The step at which the learning rate has reached min_lr."""
        return self.max_iters if self.lr_decay_iters is None else self.lr_decay_iters

    def processes_on(self, gpus: int, nodes: int = 1) -> int:
        """How many GPUs of each of so many machines train: the most that share a step evenly, 1 or more.

        One machine shares the micro-batches, as nanoGPT does, several share the rows.
        """
        shared = self.gradient_accumulation_steps if nodes == 1 else self.rows_per_step
        return max((n for n in range(1, max(gpus, 1) + 1) if shared % (nodes * n) == 0), default=1)

    @property
    def rows_per_step(self) -> int:
        """Sequences in a step: what nodes and processes share."""
        return self.gradient_accumulation_steps * self.batch_size

    def nodes_on(self, nodes: int) -> int:
        """How many of the machines train: the most that share a step's rows evenly, 1 or more."""
        return max(n for n in range(1, nodes + 1) if self.rows_per_step % n == 0)

    def require_nodes(self, least: int) -> None:
        """Raises `ConfigError` unless so many machines can share a step's rows evenly."""
        rows = self.rows_per_step
        if rows % least:
            fits = sorted({self.nodes_on(least), next((n for n in range(least, rows) if rows % n == 0), rows)})
            raise ConfigError(
                f"resources: nodes = {least}: the {rows} rows of a step (gradient_accumulation_steps = "
                f"{self.gradient_accumulation_steps} times batch_size = {self.batch_size}) cannot be divided among "
                f"{least} nodes; use {' or '.join(map(str, fits))}, which trains the same"
            )

    def multiples_near(self, processes: int) -> str:
        """The gradient_accumulation_steps below and above that this many processes share evenly: "36 or 42"."""
        below = self.gradient_accumulation_steps - self.gradient_accumulation_steps % processes
        return f"{below} or {below + processes}" if below else str(processes)

    def changes(self, now: TrainConfig) -> list[str]:
        """What makes `now` another training than this one: "n_layer 4 -> 6", for every field that decides weights.

        `max_iters` may change where `lr_decay_iters` is given: it then decides only when training stops.
        """
        old, new = ({**c.model_dump(), "lr_decay_iters": c.decay_end} for c in (self, now))
        names = [name for name in new if name not in NOT_IN_DIGEST | {"max_iters"} and old[name] != new[name]]
        return [f"{name} {old[name]} -> {new[name]}" for name in names]

    def digest(self) -> str:
        """sha256 over the canonical JSON of the fields that decide which weights come out (not `NOT_IN_DIGEST`)."""
        fields = self.model_dump(mode="json", exclude=set(NOT_IN_DIGEST))
        fields["lr_decay_iters"] = self.decay_end
        if self.init_from is None:  # digests from before there was this field stay valid
            del fields["init_from"]
        canonical = json.dumps({"schema_version": 1, **fields}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def preset_names() -> list[str]:
    """Names that `TrainConfig.preset` accepts, sorted."""
    folder = resources.files("crucible") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


@dataclass(frozen=True)
class ConfigDraft:
    """A configuration before its checks, which still knows what a person stated and what is a starting point.

    A checkpoint to start from takes its place between the two.
    """

    base: Mapping[str, Any]
    stated: Mapping[str, Any]
    source: str = ""
    """The file that messages name."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Keys of a file of nanoGPT that mean nothing here, and what takes the place of each."""

    @classmethod
    def preset(cls, name: str, stated: Mapping[str, Any]) -> ConfigDraft:
        """The shipped preset `name` as the starting point. Raises ConfigError when there is none of this name."""
        if name not in preset_names():
            raise ConfigError(f"preset = {name!r} does not exist; choose one of {', '.join(preset_names())}")
        text = (resources.files("crucible") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
        return cls(yaml.safe_load(text), stated)

    @classmethod
    def from_file(cls, path: str | Path) -> ConfigDraft:
        """Everything that a file states: YAML, JSON or a config/*.py of nanoGPT, which is read and not executed.

        Raises ConfigError naming what is wrong with it.
        """
        if Path(path).suffix == ".py":
            read = read_nanogpt_config(Path(path))
            return cls(NANOGPT_DEFAULTS, read.settings, str(path), read.left_out)
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise ConfigError(f"config file {path} cannot be read: {reason}") from None
        except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a 30th of February
            raise ConfigError(f"config file {path} is not valid YAML or JSON: {' '.join(str(error).split())}") from None
        if values is None:
            values = {}
        if not isinstance(values, dict):
            raise ConfigError(f"config file {path} must hold settings as `key: value`, not a {type(values).__name__}")
        return cls({}, values, str(path))

    def with_overrides(self, overrides: Mapping[str, Any]) -> ConfigDraft:
        """State some values more; of strings, as from a command line, `none` empties a field."""
        parsed = {
            key: None if isinstance(value, str) and value.lower() in ("none", "null", "") else value
            for key, value in overrides.items()
        }
        return replace(self, stated={**self.stated, **parsed})

    @property
    def remark(self) -> str:
        """One message about all keys that were left out; empty without any."""
        if not self.left_out:
            return ""
        return f"{self.source}: not used here: {'; '.join(f'{key}: {fix}' for key, fix in self.left_out.items())}"

    @property
    def init_from(self) -> str | None:
        """What is stated as weights to start from. Raises ConfigError when it is no text that could name any."""
        value = self.stated.get("init_from", self.base.get("init_from"))
        return TrainConfig.parse({"init_from": value}).init_from

    def config(self, source: str = "") -> TrainConfig:
        """The checked configuration. Raises ConfigError with one message, naming `source` or the file."""
        return TrainConfig.parse({**self.base, **self.stated}, source or self.source)
