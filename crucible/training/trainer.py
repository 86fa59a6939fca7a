"""The training loop, and what happens between two steps: evaluate, report, save, stop.

Read `Trainer.run`, then `Trainer.train_step`. Nothing that happens between two steps changes the mathematics of them.
"""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crucible.config import TrainConfig
from crucible.errors import TrainingError
from crucible.training.checkpointing import Checkpointer
from crucible.training.data import TRAIN_STREAM, Dataset
from crucible.training.device import choose_device, choose_precision, inexact_reason, may_chunk_loss, may_compile
from crucible.training.evaluate import EvaluationStopped
from crucible.training.initial import Initial
from crucible.training.losses import Losses
from crucible.training.micro_batch import MOST_TOKENS, largest_divisor, out_of_memory, rows_that_fit
from crucible.training.model import GPT
from crucible.training.optimizer import ADAMW_IS_AS_KNOWN, FlatAdamW, learning_rate
from crucible.training.prefetch import Prefetch, Rows
from crucible.training.processes import Processes
from crucible.training.progress import Means, Progress
from crucible.training.saver import Saver
from crucible.training.state import (
    environment,
    json_files,
    load_rng,
    load_tensors,
    read_state,
    require_same_run,
    tensor_files,
    weights_sha256,
)
from crucible.workload.clock import CheckpointClock
from crucible.workload.environment import changes
from crucible.workload.metrics import Metrics
from crucible.workload.rng import capture_rng, restore_rng

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
        before: Mapping[str, Any] | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`gemm`: what `cpu.choose_gemm` has chosen. `before`: the environment record of what is to be resumed."""
        self.config, self.dataset, self.log = config, dataset, log
        self.processes = processes or Processes()
        dataset.require_block_size(config.block_size)
        self.rows = self.processes.share(config)
        """Of each step, in this process."""
        self.tokens_per_step = config.gradient_accumulation_steps * config.batch_size * config.block_size

        self.device = choose_device(config, self.processes.local_rank)
        precision = choose_precision(config, self.device, log)
        compiled = may_compile(config, log)
        self.autocast = partial(torch.autocast, self.device.type, dtype=precision, enabled=precision != torch.float32)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)
        self.environment = environment(self.device, precision, compiled, self.processes.count)

        torch.manual_seed(config.seed)
        np.random.seed(config.seed % 2**32)
        random.seed(config.seed)
        self.model = GPT(config, dataset.vocab_size).to(self.device)  # drawn on the CPU: equal on every device
        self.model.chunked_loss = may_chunk_loss(config, self.device, precision, dataset.vocab_size)
        if self.processes.rank:
            torch.manual_seed(config.seed + self.processes.rank)  # dropout differs between processes
        if self.device.type == "cpu":
            from crucible.training import cpu  # a GPU needs none of it

            self.optimizer, self.replicas, kernels = cpu.accelerate(
                self.model, config, gemm, log, precision=precision, compiled=compiled
            )
            self.environment |= kernels
        else:
            self.optimizer, self.replicas = FlatAdamW(self.model, config), None
        if not ADAMW_IS_AS_KNOWN:
            log(f"torch {torch.__version__} has another AdamW function than this version knows; its optimizer is used")
        # A GPU's kernels are compiled for the sizes that there are; there is one size of micro-batch.
        dynamic = False if self.device.type == "cuda" else None
        self.forward = torch.compile(self.model, dynamic=dynamic) if compiled else self.model

        self.step = 0
        self._look_first = False
        self.losses = Losses(self.model, dataset, config, self.autocast)
        self._prefetch = Prefetch(self.device, self._gather) if self.device.type == "cuda" else None
        self.micro_batch = self._choose_micro_batch(before or {})
        if self.device.type == "cuda" or config.micro_batch != "auto" or self.model.chunked_loss:
            self.environment |= {"micro_batch": self.micro_batch, "chunked_loss": self.model.chunked_loss}
        if self.device.type == "cuda":
            reason = inexact_reason(config.exact, self._try_step, log)
            self.environment |= {"exact": reason is None} | ({"not_exact_because": reason} if reason else {})
        advice = f"lower learning_rate = {config.learning_rate}, or use dtype = 'float32' if it is {precision}"
        self.means = Means(self.device, self.processes, advice.replace("torch.", ""))

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
        first = self.step
        self._metrics, self._stop = metrics, stop
        self._progress = Progress(first, last, self.tokens_per_step, self.log)
        self.model.train()
        with ExitStack() as stack:
            self._checkpointer: Checkpointer | None = None
            if self.processes.first:
                saver = stack.enter_context(closing(Saver(checkpoints, tensor_files(self.optimizer), lock, self.log)))
                clock = CheckpointClock(self.config.checkpoint_interval_seconds, self.log)
                self._checkpointer = Checkpointer(saver, clock, metrics, self.losses, self.log, keep, first)
            while True:
                if self._evaluation_due(last):
                    self._evaluate(self.losses.estimate)
                stopping, due = self.processes.any(stop(), self._save_due())
                if stopping or self.step >= last:
                    break
                if due and self.step > first:
                    self._save()
                self.train_step()
                if self.step % self.config.log_interval == 0 or self.step == last:
                    self._report()
            reached = self.step >= last and self._evaluate(self.losses.measure)
            if self.step > first or self.step == 0:
                self._save(wait=True)
        return Result(
            step=self.step,
            complete=reached and self.step >= self.config.max_iters,
            tokens_per_second=self._progress.tokens_per_second,
            weights_sha256=weights_sha256(self.optimizer),
            **self.losses.known,
        )

    def train_step(self) -> None:
        """One optimizer step, the (self.step + 1)th."""
        optimizer = self.optimizer
        optimizer.rate = learning_rate(self.config, self.step)
        loss = self._compute_gradients()
        self.processes.average(optimizer.gradients)
        self.scaler.unscale_(optimizer)  # type: ignore[arg-type]
        norm = optimizer.clip(self.config.grad_clip)
        self.scaler.step(optimizer)  # type: ignore[arg-type]
        self.scaler.update()
        # With a scaler, an infinite norm now and then is its way to find the scale.
        self.means.add(loss, None if self.scaler.is_enabled() else norm)
        self.step += 1
        self.losses.step_made()

    def _try_step(self) -> None:
        """Compute the next step's gradients without leaving a trace."""
        generators = capture_rng(self.device)
        self._compute_gradients()
        restore_rng(generators, self.device)

    def _choose_micro_batch(self, before: Mapping[str, Any]) -> int:
        """How many rows to compute at a time: on the same kind of device as many as before, for the same bits."""
        config = self.config
        recorded = before.get("micro_batch") if before.get("device") == self.device.type else None
        wanted = (recorded or config.batch_size) if config.micro_batch == "auto" else config.micro_batch
        if config.micro_batch == "auto" and recorded is None and self.device.type == "cuda":
            limit = min(self.rows, max(config.batch_size, MOST_TOKENS // config.block_size))
            free, _ = torch.cuda.mem_get_info(self.device)
            free += torch.cuda.memory_reserved(self.device)
            wanted = rows_that_fit(limit, config.block_size, self._peak_bytes, free)
        size = int(min(self.processes.gather(largest_divisor(self.rows, wanted))))  # one GPU may have less room
        if config.micro_batch not in ("auto", size):
            self.log(f"micro_batch = {size}, since {self.rows} rows of a step cannot be cut evenly by {wanted}")
        return size

    def _peak_bytes(self, rows: int) -> int:
        """What computing so many rows took at most of the GPU's memory, uncompiled, with all that is in it already."""
        strict = torch.get_deterministic_debug_mode()
        torch.use_deterministic_algorithms(bool(strict), warn_only=True)  # whether it is exact is tried later
        generators = capture_rng(self.device)
        try:
            torch.cuda.reset_peak_memory_stats(self.device)
            window = self._gather(Rows(0, 0, min(rows, self.rows))).to(self.device)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                self._accumulate(self.model, [(window[:, :-1], window[:, 1:])], 1.0)
            return torch.cuda.max_memory_allocated(self.device)
        finally:
            restore_rng(generators, self.device)
            torch.set_deterministic_debug_mode(strict)

    def _compute_gradients(self) -> Tensor:
        """Leave the gradients of the mean loss over this process's rows in the optimizer, and return that loss.

        Raises TrainingError where a GPU's memory does not suffice.
        """
        # Dropout draws: those of an attempt that ran out of memory must not count.
        draws = self.config.dropout > 0
        generators = _torch_generators(self.device) if draws else []
        while True:
            try:
                return self._compute_rows()
            except torch.OutOfMemoryError as error:
                problem = out_of_memory(error, self.device)
            self._take_fewer_rows(problem)
            if draws:
                _restore_torch_generators(generators, self.device)

    def _take_fewer_rows(self, problem: str) -> None:
        """Go on with half the rows at a time; raises TrainingError where that is not allowed or not possible."""
        rows = self.micro_batch
        what = f"out of memory at step {self.step + 1}, with {rows} rows of {self.config.block_size} tokens at a time"
        if rows == 1:
            raise TrainingError(
                f"{what} ({problem}); use a smaller model or block_size, or a GPU with more memory, and look whether "
                f"another program holds memory (`crucible doctor`)"
            )
        fewer = largest_divisor(self.rows, rows // 2)
        if self.config.micro_batch != "auto":
            raise TrainingError(f"{what} ({problem}); set micro_batch = {fewer} or 'auto', which trains the same")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.micro_batch = self.environment["micro_batch"] = fewer
        self.log(f"{what} ({problem}): the step is computed again, and training continues, with {fewer} rows at a time")

    def _compute_rows(self) -> Tensor:
        count = self.rows // self.micro_batch
        if self.replicas is not None:
            return self.replicas.compute_gradients(self._accumulate, self._batch, count, self.micro_batch)
        self.optimizer.gradients.zero_()
        batches = (self._batch(micro_step, range(self.micro_batch)) for micro_step in range(count))
        return self._accumulate(self.forward, batches, 1 / count)

    def _accumulate(
        self, forward: Callable[[Tensor, Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], weight: float
    ) -> Tensor:
        """Add the gradients of `weight` times each batch's loss to the model's; returns the sum of these losses."""
        loss_sum = torch.zeros((), device=self.device)
        for inputs, targets in batches:
            with self.autocast():
                loss = forward(inputs, targets) * weight
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.detach()
        return loss_sum

    def _batch(self, micro_step: int, rows: range) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some rows of this process's micro-batch of this step."""
        wanted = Rows(self.step, micro_step * self.micro_batch + rows.start, len(rows))
        if self._prefetch is None:
            window = self._gather(wanted).to(self.device)
        else:
            after = wanted.first + wanted.length
            following = Rows(self.step, after, len(rows)) if after < self.rows else Rows(self.step + 1, 0, len(rows))
            window = self._prefetch.take(wanted, following)
        return window[:, :-1], window[:, 1:]

    def _gather(self, rows: Rows) -> Tensor:
        """Rows of this process's share of a step, with the token after each: (rows, block_size + 1) in memory."""
        first = self.processes.rank * self.rows + rows.first
        return self.dataset.train.batch(
            self.config.seed,
            TRAIN_STREAM,
            rows.step,
            slice(first, first + rows.length),
            self.config.gradient_accumulation_steps * self.config.batch_size,
            self.config.block_size,
        )

    def _evaluation_due(self, last: int) -> bool:
        """At every `eval_interval`, also in a run that was stopped during this evaluation and is resumed; and before
        the first step from weights that were given."""
        at_interval = self.step % self.config.eval_interval == 0 and 0 < self.step < last
        look_first, self._look_first = self._look_first, False
        return (at_interval or look_first) and self.losses.estimated_val_loss is None

    def _evaluate(self, measure: Callable[[int, Callable[[], bool]], tuple[float, float]]) -> bool:
        """Estimate or measure both losses; False if this was stopped before it was finished."""
        if self.processes.first:
            try:
                with self._progress.aside():
                    train_loss, val_loss = measure(self.step, self._stop)
            except EvaluationStopped:
                return False
            except torch.OutOfMemoryError as error:
                problem = out_of_memory(error, self.device)
                raise TrainingError(
                    f"out of memory while the losses of step {self.step} are measured: {problem}"
                ) from None
            self._metrics.write(step=self.step, val_loss=val_loss, train_loss_estimate=train_loss)
            self.log(f"step {self.step}: train loss {train_loss:.4f}, val loss {val_loss:.4f}")
        return True

    def _report(self) -> None:
        mean_loss, mean_norm = self.means.read(self.step)
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

    # Saving and resuming

    def _save_due(self) -> bool:
        return self._checkpointer is not None and self._checkpointer.due(self.step)

    def _save(self, *, wait: bool = False) -> None:
        """Begin to save the state of this step, or with `wait` return only when it is durable."""
        began = time.perf_counter()
        if self.means.steps:
            self.means.read(self.step)  # raises if the loss is no number
        generators = self.processes.gather(capture_rng(self.device))
        if self._checkpointer is None:
            return
        self._checkpointer.save(self.step, json_files(generators, self._state()), began, wait=wait)
        self._progress.add_aside(time.perf_counter() - began)

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            **self.losses.known,
            "estimated_val_loss": self.losses.estimated_val_loss,
            "full_val_loss": self.losses.full_val_loss,
            "best": self.losses.best,
            "updates": self.optimizer.updates,
            "scaler": self.scaler.state_dict() or None,
            "config": self.config.model_dump(mode="json"),
            "config_digest": self.config.digest(),
            "dataset_digest": self.dataset.digest,
            "vocab_size": self.dataset.vocab_size,
            "environment": self.environment,
        }

    def begin_from(self, initial: Initial) -> None:
        """Start with these weights and, for `resume:`, with the optimizer's state and at the step that they had."""
        initial.copy_into(self.optimizer, self.dataset.vocab_size)
        self._look_first = True
        for remark in initial.remarks:
            self.log(remark)
        if state := initial.optimizer:
            self.step = state.step
            if state.best_val_loss is not None:
                self.losses.best = {"step": state.step, "val_loss": state.best_val_loss}
        self.log(f"started from {initial.source}" + (f" at step {self.step}" if self.step else ""))

    def resume(self, folder: Path) -> None:
        """Restore the exact state of a checkpoint folder; logs where the bits may differ from here on."""
        state = read_state(folder)
        require_same_run(state, self.config, self.dataset.digest, folder)
        load_tensors(folder, self.optimizer)
        load_rng(folder, self.processes.rank, self.device)
        self.optimizer.updates = state["updates"]
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.losses.best, self.losses.estimated_val_loss = state["best"], state.get("estimated_val_loss")
        self.log(f"resumed at step {self.step} from {folder}")
        if changed := changes(state["environment"], self.environment):
            kind = "data" if [change.split()[0] for change in changed] == ["processes"] else "state"
            self.log(f"exact in {kind} but not in bits, since this is another environment: {', '.join(changed)}")


def _torch_generators(device: torch.device) -> list[Tensor]:
    """The states that dropout draws from: cheap enough to be taken before every step."""
    own = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *own]


def _restore_torch_generators(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
