"""What your own script needs: read from its imports and device calls, and from what you state.

The script is parsed, never run. Its length cannot be read from it: you state the hours on one machine type
(`--hours 3 --measured-on g5.xlarge`), and other machines are compared by their peaks.
"""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible.catalog.offers import Offer, Precision
from crucible.errors import ConfigError
from crucible.estimate.speed import Speed

_FRAMEWORKS = (
    "torch",
    "jax",
    "tensorflow",
    "lightning",
    "pytorch_lightning",
    "transformers",
    "accelerate",
    "deepspeed",
)
_DISTRIBUTED = ("torch.distributed", "accelerate", "deepspeed", "horovod")
_STATE_SHARE = 0.25  # of the stated GPU memory, for the size of a checkpoint that is not stated
_UNKNOWN_SPEED_FACTOR = 2.0


@dataclass(frozen=True)
class ScriptFacts:
    """What the source shows; `inferred` names the line that each fact comes from."""

    uses_gpu: bool
    distributed: bool
    frameworks: tuple[str, ...]
    precision: Precision
    inferred: tuple[str, ...]


@dataclass(frozen=True)
class ScriptNeeds:
    """A script's run as the estimate sees it: one long step, as long as stated for `measured_on`."""

    facts: ScriptFacts
    hours: float
    measured_on: Offer
    gpu_memory_gib: float | None = None
    checkpoint_bytes: int = 0
    dataset_bytes: int | None = None
    inferred: tuple[str, ...] = ()
    steps: int = 1
    tokens_per_step: int = 1
    evaluation_tokens: int = 0
    checkpoint_interval_seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "hours": self.hours,
            "measured_on": self.measured_on.instance,
            "gpu_memory_gib": self.gpu_memory_gib,
            "uses_gpu": self.facts.uses_gpu,
            "distributed": self.facts.distributed,
            "frameworks": list(self.facts.frameworks),
            "precision": self.facts.precision,
            "inferred": list(self.inferred),
        }

    def why_it_does_not_fit(self, offer: Offer) -> str | None:
        """The first reason why the script does not fit on this offer, as a message, or None."""
        if offer.missing:
            return offer.missing
        if self.facts.uses_gpu and not offer.gpus:
            return "the script calls for a GPU"
        wanted = self.gpu_memory_gib
        if wanted is not None and offer.gpus and offer.gpu_memory_gib is not None and wanted > offer.gpu_memory_gib:
            return f"needs {wanted:.1f} GiB of GPU memory, {offer.gpu} has {offer.gpu_memory_gib:.1f}"
        return None

    def speed_on(self, offer: Offer) -> Speed | None:
        """The stated hours, scaled by the peaks; one GPU counts unless the script is distributed."""
        seconds = self.hours * 3600
        if offer.gpu == self.measured_on.gpu and self._count(offer) == self._count(self.measured_on):
            return Speed.within(seconds, 1.2, "history", f"{self.hours:g} h on {self.measured_on.instance}, as stated")
        here, there = self._rate(offer), self._rate(self.measured_on)
        if not here or not there:
            return None
        detail = f"{self.hours:g} h on {self.measured_on.instance}, as stated, scaled by peak {self.facts.precision}"
        return Speed.within(seconds * there / here, _UNKNOWN_SPEED_FACTOR, "peak", detail)

    def _count(self, offer: Offer) -> int:
        return offer.gpus if self.facts.distributed else min(offer.gpus, 1)

    def _rate(self, offer: Offer) -> float | None:
        peak = offer.peak_flops(self.facts.precision)
        if peak == 0:  # T4 has no bfloat16: such scripts fall back
            peak = offer.peak_flops("float16")
        return None if peak is None else peak * max(1, self._count(offer))


def read_script(script: Path) -> ScriptFacts:
    """Parse a Python script.

    Raises:
        ConfigError: the file cannot be read or is not Python.
    """
    try:
        tree = ast.parse(script.read_text(encoding="utf-8-sig"))
        reader = _Reader()
        reader.visit(tree)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"script {script} cannot be read: {error}") from error
    except SyntaxError as error:
        raise ConfigError(f"script {script} line {error.lineno} is not valid Python: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # NUL bytes; nested too deeply for the parser
        raise ConfigError(f"script {script} cannot be parsed: {error or type(error).__name__}") from error
    if not reader.uses_gpu:
        reader.inferred.append("no mention of CUDA: runs on CPUs as well")
    return ScriptFacts(
        uses_gpu=reader.uses_gpu,
        distributed=reader.distributed,
        frameworks=tuple(dict.fromkeys(reader.frameworks)),
        precision=reader.precision,
        inferred=tuple(dict.fromkeys(reader.inferred)),
    )


def script_needs(
    facts: ScriptFacts,
    hours: float | None,
    measured_on: str | None,
    offers: list[Offer],
    gpu_memory_gib: float | None = None,
) -> ScriptNeeds:
    """Combine what the source shows with what the user states.

    Raises:
        ConfigError: no hours, or a machine type that the catalog does not have.
    """
    if hours is None or measured_on is None:
        raise ConfigError(
            "hours and measured_on are needed for a script, since its length cannot be read from it: "
            "for instance --hours 3 --measured-on g5.xlarge"
        )
    if not 0 < hours < math.inf:
        raise ConfigError(f"hours is {hours}: it must be a finite number > 0")
    machine = next((offer for offer in offers if measured_on in (offer.instance, offer.key)), None)
    if machine is None:
        known = ", ".join(sorted({offer.instance for offer in offers}))
        raise ConfigError(f"measured_on is {measured_on!r}, which the catalog does not have; it has {known}")
    inferred = facts.inferred
    if gpu_memory_gib is None and facts.uses_gpu and machine.gpu_memory_gib is not None:
        gpu_memory_gib = machine.gpu_memory_gib
        inferred += (f"GPU memory: as much as {machine.instance} has, {gpu_memory_gib:.1f} GiB, since none is stated",)
    checkpoint = int((gpu_memory_gib or 1.0) * _STATE_SHARE * 2**30)
    inferred += (f"checkpoint: {checkpoint / 1e9:.1f} GB, a quarter of the GPU memory",)
    return ScriptNeeds(facts, hours, machine, gpu_memory_gib, checkpoint, inferred=inferred)


class _Reader(ast.NodeVisitor):
    """Collects imports and device calls."""

    def __init__(self) -> None:
        self.uses_gpu = self.distributed = False
        self.frameworks: list[str] = []
        self.precision: Precision = "float32"
        self.inferred: list[str] = []

    def visit_Import(self, node: ast.Import) -> None:
        for name in node.names:
            self._imported(name.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for name in node.names:
            self._imported(f"{node.module or ''}.{name.name}", node.lineno)

    def visit_Call(self, node: ast.Call) -> None:
        called = ast.unparse(node.func)
        if called.endswith(".cuda") or called.startswith("torch.cuda."):
            self._gpu(f"{called}(...)", node.lineno)
        if "DistributedDataParallel" in called or called.endswith("init_process_group"):
            self._several(called, node.lineno)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and (node.value == "cuda" or node.value.startswith("cuda:")):
            self._gpu(repr(node.value), node.lineno)
        if node.value in ("bfloat16", "float16"):
            self._mixed(node.value, node.lineno)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in ("bfloat16", "float16"):
            self._mixed(node.attr, node.lineno)
        self.generic_visit(node)

    def _imported(self, name: str, line: int) -> None:
        top = name.partition(".")[0]
        if top in _FRAMEWORKS:
            self.frameworks.append(top)
            self.inferred.append(f"framework {top}: imported in line {line}")
        if name.startswith(_DISTRIBUTED):
            self._several(f"import of {name}", line)

    def _gpu(self, what: str, line: int) -> None:
        self.uses_gpu = True
        self.inferred.append(f"GPU: {what} in line {line}")

    def _several(self, what: str, line: int) -> None:
        self.distributed = True
        self.inferred.append(f"several GPUs: {what} in line {line}")

    def _mixed(self, precision: object, line: int) -> None:
        if precision == "bfloat16" or self.precision == "float32":
            self.precision = "bfloat16" if precision == "bfloat16" else "float16"
        self.inferred.append(f"precision {precision}: line {line}")
