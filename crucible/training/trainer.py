"""The training loop, and what happens between two steps: evaluate, report, save, stop.

Read `Trainer.run` first. Nothing that happens at a step boundary changes the mathematics of the steps.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crucible.config import TrainConfig
from crucible.errors import CheckpointError, ConfigError, TrainingError
from crucible.training.clock import CheckpointClock
from crucible.training.cpu.linear import use_onednn
from crucible.training.cpu.replicas import Replicas
from crucible.training.cpu.team import Team, team_size
from crucible.training.data import TRAIN_STREAM, Dataset, SplitName
from crucible.training.device import choose_device, choose_precision, may_compile
from crucible.training.evaluate import EvaluationStopped, estimate_loss, full_loss
from crucible.training.folders import MODEL, OPTIMIZER, RNG, STATE, prune, safetensors_header
from crucible.training.model import GPT
from crucible.training.optimizer import FlatAdamW, learning_rate
from crucible.training.processes import Processes
from crucible.training.progress import Metrics, Progress
from crucible.training.saver import Saver, SaveReport, TensorFile
from crucible.training.state import (
    SCHEMA_VERSION,
    capture_rng,
    environment,
    load_rng,
    load_tensors,
    read_state,
    require_same_run,
)

__all__ = ["Result", "Trainer"]


@dataclass(frozen=True)
class Result:
    """How a run ended; the losses only if it reached its last step (or the step it was asked to pause at)."""

    step: int
    complete: bool
    tokens_per_second: float
    weights_sha256: str
    train_loss: float | None = None
    val_loss: float | None = None


class Trainer:
    """One training on this machine. Raises ConfigError, DataError or CheckpointError before the first step."""

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        *,
        gemm: str = "mkl",
        processes: Processes | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.config, self.dataset, self.say = config, dataset, say
        self.processes = processes or Processes()
        dataset.require_block_size(config.block_size)
        if config.gradient_accumulation_steps % self.processes.count:
            raise ConfigError(
                f"gradient_accumulation_steps = {config.gradient_accumulation_steps} is not a multiple of the "
                f"{self.processes.count} processes; use {self.processes.count}"
            )
        self.micro_steps = config.gradient_accumulation_steps // self.processes.count
        self.tokens_per_step = config.gradient_accumulation_steps * config.batch_size * config.block_size

        self.device = choose_device(config, self.processes.local_rank)
        precision = choose_precision(config, self.device, say)
        compiled = may_compile(config, say)
        self.autocast = partial(torch.autocast, self.device.type, dtype=precision, enabled=precision != torch.float32)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)

        torch.manual_seed(config.seed)
        np.random.seed(config.seed % 2**32)
        random.seed(config.seed)
        self.model = GPT(config, dataset.vocab_size).to(self.device)  # drawn on the CPU: equal on every device
        if self.processes.rank:
            torch.manual_seed(config.seed + self.processes.rank)  # dropout differs between processes
        alone = self.device.type != "cpu" or compiled or self.scaler.is_enabled()
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.team = Team(1 if alone else team_size(config, parameters))
        self.optimizer = FlatAdamW(self.model, config, self.team)
        if gemm == "onednn":
            if self.device.type == "cpu" and precision == torch.float32 and not compiled:
                use_onednn(self.model)
            else:
                gemm = "mkl"
        forward = torch.compile(self.model) if compiled else self.model
        self.replicas = Replicas(self.model, forward, self.optimizer, self.autocast, self.scaler)
        name = str(precision).removeprefix("torch.")
        self.environment = environment(self.device, name, compiled, gemm, self.processes.count, self.team.count)

        self.step = 0
        self.best: dict[str, float] | None = None
        self.losses: dict[str, float] = {}  # of exactly this step, if they are known
        self.estimated_val_loss: float | None = None  # likewise; what the best step is chosen by
        self.full_val_loss: float | None = None  # of this step over the whole split, which is known at the end only
        self._loss_sum = torch.zeros((), device=self.device)
        self._norm_sum = torch.zeros((), device=self.device)
        self._summed = 0

    # One step

    def train_step(self) -> None:
        """One optimizer step, the (self.step + 1)th."""
        optimizer, config = self.optimizer, self.config
        optimizer.rate = learning_rate(config, self.step)
        self._loss_sum += self.replicas.compute_gradients(self._batch, self.micro_steps, config.batch_size)
        self.processes.average(optimizer.gradients)
        self.scaler.unscale_(optimizer)  # type: ignore[arg-type]
        norm = optimizer.clip(config.grad_clip)
        self.scaler.step(optimizer)  # type: ignore[arg-type]
        self.scaler.update()
        if not self.scaler.is_enabled():  # with a scaler, an infinite norm now and then is its way to find the scale
            self._norm_sum += norm
        self._summed += 1
        self.step += 1
        self.losses, self.estimated_val_loss = {}, None

    def _batch(self, micro_step: int, rows: range) -> tuple[Tensor, Tensor]:
        size = self.config.batch_size
        first = (self.processes.rank * self.micro_steps + micro_step) * size
        window = self.dataset.train.batch(
            self.config.seed,
            TRAIN_STREAM,
            self.step,
            slice(first + rows.start, first + rows.stop),
            self.config.gradient_accumulation_steps * size,
            self.config.block_size,
        )
        if self.device.type == "cuda":
            window = window.pin_memory().to(self.device, non_blocking=True)
        else:
            window = window.to(self.device)
        return window[:, :-1], window[:, 1:]

    # The loop

    def run(
        self,
        checkpoints: Path,
        *,
        metrics: Metrics,
        lock: int | None = None,
        stop: Callable[[], bool] = lambda: False,
        stop_at_step: int | None = None,
        keep: int | None = None,
    ) -> Result:
        """Train to `max_iters`, or until `stop` or `stop_at_step`; the state of the last step is saved in any case.

        `lock`: what `lock_folder` gave for the folder. `keep`: how many checkpoints to leave in it; None leaves all,
        for whoever carries them away.
        """
        last = min(self.config.max_iters, stop_at_step or self.config.max_iters)
        self._clock = CheckpointClock(self.config.checkpoint_interval_seconds)
        self._metrics, self._keep, self._resumed_step = metrics, keep, self.step
        self._progress = Progress(self.step, last, self.tokens_per_step, self.say)
        self.model.train()
        with ExitStack() as stack:
            self._saver: Saver | None = None
            if self.processes.first:
                self._saver = stack.enter_context(closing(Saver(checkpoints, self.tensor_files(), lock, self.say)))
            while True:
                improved = False
                if self.step < last and self.step % self.config.eval_interval == 0 and self.step > self._resumed_step:
                    improved = self._evaluate()
                self._collect_save()
                stopping, due = self.processes.any(stop(), improved or self._checkpoint_due())
                if stopping or self.step >= last:
                    break
                if due and self.step > self._resumed_step:
                    self._save()
                self.train_step()
                if self.step % self.config.log_interval == 0 or self.step == last:
                    self._report()
            return self._finish(self.step >= last, stop)

    def _finish(self, reached: bool, stop: Callable[[], bool]) -> Result:
        if reached and self.processes.first:
            reached = self._evaluate_all(stop)
        if self.step > self._resumed_step or self.step == 0:
            self._save(wait=True)
        return Result(
            step=self.step,
            complete=reached and self.step >= self.config.max_iters,
            tokens_per_second=self._progress.tokens_per_second,
            weights_sha256=self.weights_sha256(),
            **self.losses,
        )

    def _evaluate_all(self, stop: Callable[[], bool]) -> bool:
        """The final losses, in float32 and over every token of the validation split; False if told to stop first."""
        try:
            train_loss = estimate_loss(self.model, self.dataset, "train", self.config.eval_iters)
            val_loss = full_loss(self.model, self.dataset, "val", stop=stop)
            self._compare(self._estimate("val"))
        except EvaluationStopped:
            return False
        self.losses = {"train_loss": train_loss, "val_loss": val_loss}
        self.full_val_loss = val_loss
        self._metrics.write(step=self.step, val_loss=val_loss, train_loss_estimate=train_loss)
        return True

    def _evaluate(self) -> bool:
        """Estimate both losses; returns whether the validation loss is the best so far."""
        if not self.processes.first:
            return False
        with self._progress.aside():
            train_loss, val_loss = self._estimate("train"), self._estimate("val")
        self.losses = {"val_loss": val_loss}
        self._metrics.write(step=self.step, val_loss=val_loss, train_loss_estimate=train_loss)
        self.say(f"step {self.step}: train loss {train_loss:.4f}, val loss {val_loss:.4f}")
        return self._compare(val_loss)

    def _estimate(self, split: SplitName) -> float:
        return estimate_loss(self.model, self.dataset, split, self.config.eval_iters, self.autocast())

    def _compare(self, estimated_val_loss: float) -> bool:
        """Whether this step is the best so far."""
        self.estimated_val_loss = estimated_val_loss
        if self.best is not None and not estimated_val_loss < self.best["val_loss"]:
            return False
        self.best = {"step": self.step, "val_loss": estimated_val_loss}
        return True

    def _report(self) -> None:
        mean_loss, mean_norm = self.mean_since_last_call()
        if self.processes.first:
            figures = self._progress.reached(self.step, mean_loss)
            self._metrics.write(
                step=self.step,
                train_loss=mean_loss,
                learning_rate=learning_rate(self.config, self.step - 1),
                gradient_norm=mean_norm,
                max_iters=self.config.max_iters,
                **figures,
            )

    def mean_since_last_call(self) -> tuple[float, float]:
        """Mean loss and gradient norm since the last call. Raises TrainingError if one is no number any more."""
        sums = torch.stack([self._loss_sum, self._norm_sum])
        self.processes.average(sums)
        loss, norm = (sums / max(self._summed, 1)).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"the loss is no longer a number at step {self.step} (loss {loss}, gradient norm {norm}); nothing was "
                f"saved since it was; lower learning_rate = {self.config.learning_rate}, or use dtype = 'float32' if "
                f"it is {self.environment['precision']}"
            )
        self._loss_sum.zero_()
        self._norm_sum.zero_()
        self._summed = 0
        return loss, norm

    # Saving and resuming

    def resume(self, folder: Path) -> None:
        """Take up the exact state of a checkpoint folder; says so where the bits may differ from here on."""
        state = read_state(folder)
        require_same_run(state, self.config, self.dataset.digest, folder)
        load_tensors(folder, self.optimizer)
        load_rng(folder, self.processes.rank, self.device)
        self.optimizer.updates = state["updates"]
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.best = state["step"], state["best"]
        self.losses, self.estimated_val_loss = {}, None
        before, now = state["environment"], self.environment
        changed = [f"{name} {before.get(name)} -> {now.get(name)}" for name in now if before.get(name) != now.get(name)]
        self.say(f"resumed at step {self.step} from {folder}")
        if changed:
            self.say(f"exact in state but not in bits, since this is another environment: {', '.join(changed)}")

    def tensor_files(self) -> dict[str, TensorFile]:
        """The flat tensors of the state and how they are named in the checkpoint's files."""
        shapes = {name: tuple(parameter.shape) for name, parameter in self.optimizer.parameters.items()}
        moments = {f"{moment}.{name}": shape for moment in ("exp_avg", "exp_avg_sq") for name, shape in shapes.items()}
        return {
            MODEL: ([self.optimizer.weights], safetensors_header(shapes)),
            OPTIMIZER: ([self.optimizer.first_moment, self.optimizer.second_moment], safetensors_header(moments)),
        }

    def weights_sha256(self) -> str:
        """The sha256 that `model.safetensors` has in a checkpoint of this moment."""
        (weights,), header = self.tensor_files()[MODEL]
        digest = hashlib.sha256(header)
        digest.update(weights.detach().cpu().numpy().data)
        return digest.hexdigest()

    def _save(self, *, wait: bool = False) -> None:
        """Begin to save the state of this step, or with `wait` return only when it is durable."""
        began = time.perf_counter()
        if self._summed:
            self.mean_since_last_call()
        generators = self.processes.gather(capture_rng(self.device))
        self._clock.saved()
        if self._saver is None:
            return
        self._collect_save(wait=True)
        if self._saver.saved_step == self.step:
            return
        small = {
            RNG: _json({"schema_version": SCHEMA_VERSION, "ranks": generators}),
            STATE: _json(self._state(), indent=1),
        }
        if wait:
            self._saved(self._saver.save_now(self.step, small, began))
            return
        try:
            report = self._saver.save(self.step, small, began)
        except CheckpointError as error:
            self._save_failed(error)
            return
        self._progress.add_aside(time.perf_counter() - began)
        if report is not None:
            self._saved(report)

    def _collect_save(self, *, wait: bool = False) -> None:
        if self._saver is None or not self._saver.busy:
            return
        try:
            report = self._saver.poll(wait=wait)
        except CheckpointError as error:
            self._save_failed(error)
            return
        if report is not None:
            self._saved(report)

    def _saved(self, report: SaveReport) -> None:
        assert self._saver is not None
        self._clock.measured(report.stall_seconds, report.write_seconds)
        self._metrics.write(
            step=report.step,
            checkpoint_stall_seconds=report.stall_seconds,
            checkpoint_write_seconds=report.write_seconds,
            checkpoint_bytes=report.bytes,
        )
        if self._keep is not None:
            prune(self._saver.parent, self._keep, int(self.best["step"]) if self.best else None)

    def _save_failed(self, error: CheckpointError) -> None:
        """A full disk may have room again later; but without any checkpoint, going on would be a gamble."""
        assert self._saver is not None
        safe = self._saver.saved_step or self._resumed_step
        if not safe:
            raise error
        self.say(f"{error}; training goes on and tries again, the last checkpoint is that of step {safe}")

    def _checkpoint_due(self) -> bool:
        return self._saver is not None and not self._saver.busy and self._clock.due()

    def _state(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "step": self.step,
            **self.losses,
            "estimated_val_loss": self.estimated_val_loss,
            "full_val_loss": self.full_val_loss,
            "best": self.best,
            "updates": self.optimizer.updates,
            "scaler": self.scaler.state_dict() or None,
            "config": self.config.model_dump(mode="json"),
            "config_digest": self.config.digest(),
            "dataset_digest": self.dataset.digest,
            "vocab_size": self.dataset.vocab_size,
            "environment": self.environment,
            "saved_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }


def _json(content: Mapping[str, Any], indent: int | None = None) -> bytes:
    return (json.dumps(content, indent=indent) + "\n").encode()
