"""The speed of a run on an offer: from its own history there, a probe, a measurement of its GPU, or a model of it.

The model adds up the parts of a step: matrix products at a share of the peak, activations and logits through
memory, the optimizer's pass over the state, and a fixed cost per layer for launching kernels:

    step = micro_steps * (FLOPs / (u * peak) + bytes / bandwidth + layers * launch) + 40 bytes * parameters / bandwidth

With FLOPs alone, one measured run predicts another model on the same machine with 23 % error (median; up to 90 %)
between 0.1M and 14M parameters on one CPU core; with the sum it is about 10 %. The constants for CPUs are fitted to
such runs on one AMD core, those for GPUs assumed from published throughputs; estimates based on them are marked,
unless `measured` has a run on the card to correct them by.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from crucible.catalog.offers import Offer, Precision
from crucible.estimate.history import SpeedRecord
from crucible.estimate.measured import measured_correction
from crucible.estimate.needs import Needs

Source = Literal["history", "probe", "history of other configurations", "measured", "peak"]

_OPTIMIZER_BYTES = 40  # per parameter: gradients zeroed, read, clipped; weights and two moments read and written
_A100_FLOPS = 312e12
_NEWEST = 20  # newest runs count: older ones used older software
_NODES_SCALING = 0.8  # speed per machine of several, compared with one alone (assumed: 10 Gbit/s or more between them)
_SCALING = 0.9  # speed per GPU of several, compared with one alone (assumed: one machine, NVLink or PCIe)


@dataclass(frozen=True)
class HardwareModel:
    """Constants of the step model for one kind of hardware."""

    utilisation: float
    """Share of the peak that matrix products reach; above 1 where the "peak" is numpy's on a small product."""
    activation_bytes: float
    """Traffic per token, layer and channel, forward and backward, in float32; half of it in 16 bit."""
    logit_bytes: float
    """Traffic per token and vocabulary entry."""
    layer_seconds: float
    """Launching the kernels of one layer, forward and backward."""


CPU = HardwareModel(utilisation=1.2, activation_bytes=80, logit_bytes=80, layer_seconds=6e-4)
GPU = HardwareModel(utilisation=0.5, activation_bytes=240, logit_bytes=24, layer_seconds=2.5e-4)


@dataclass(frozen=True)
class Speed:
    """Seconds per optimizer step, with the bounds that 8 of 10 runs should fall between."""

    seconds_per_step: float
    low_seconds_per_step: float
    high_seconds_per_step: float
    source: Source
    detail: str
    evaluation_share: float = 1 / 3
    """Time of an evaluation token over that of a training token."""

    @classmethod
    def within(cls, seconds: float, factor: float, source: Source, detail: str) -> Speed:
        """A speed that may be wrong by `factor` either way."""
        return cls(seconds, seconds / factor, seconds * factor, source, detail)


def modelled_seconds_per_step(needs: Needs, offer: Offer, precision: Precision) -> float | None:
    """The step model; None when the offer's peak or bandwidth is not known."""
    peak, bandwidth = offer.peak_flops(precision), offer.memory_gb_per_second
    if not peak or not bandwidth:
        return None
    config, hardware = needs.config, GPU if offer.gpus else CPU
    if not offer.gpus and config.threads and offer.vcpus:
        peak *= min(1.0, config.threads / offer.vcpus)
    width = 1.0 if precision == "float32" else 0.5
    micro_steps = config.gradient_accumulation_steps
    tokens = config.batch_size * config.block_size
    traffic = tokens * (
        config.n_layer * config.n_embd * hardware.activation_bytes * width + needs.vocab_size * hardware.logit_bytes
    )
    micro_step = (
        tokens * needs.flops_per_token / _reachable(peak, hardware)
        + traffic / (bandwidth * 1e9)
        + config.n_layer * hardware.layer_seconds
    )
    update = _OPTIMIZER_BYTES * needs.parameters / (bandwidth * 1e9)
    return micro_steps * micro_step / parallel_speedup(needs, offer) + update


def _reachable(peak: float, hardware: HardwareModel) -> float:
    """FLOP/s that training reaches: the faster the GPU, the smaller the share, since everything else gets in the way.

    Assumed from throughputs published for GPT-2 124M: about half of an A100's peak, a quarter of an H100's.
    """
    return hardware.utilisation * peak * min(1.0, math.sqrt(_A100_FLOPS / peak))


def reference_seconds_per_step(needs: Needs, offer: Offer) -> float:
    """The step model with a fixed speed for CPUs: what past runs are compared with.

    The measured speed of a machine that others use as well differs from minute to minute; a ratio between two runs must
    not carry that. Unknown GPUs are treated like an A10G; the ratio corrects for it.
    """
    if not offer.gpus:
        threads = needs.config.threads or offer.vcpus or 1
        known = replace(offer, peak_tflops_fp32=0.1 * threads, vcpus=threads, memory_gb_per_second=10.0)
    elif offer.peak_tflops_fp32 is None or offer.memory_gb_per_second is None:
        known = replace(
            offer, peak_tflops_fp32=31.2, peak_tflops_fp16=70.0, peak_tflops_bf16=70.0, memory_gb_per_second=600.0
        )
    else:
        known = offer
    seconds = modelled_seconds_per_step(needs, known, needs.precision_on(known))
    assert seconds is not None
    return seconds


def speed_record(needs: Needs, offer: Offer, seconds_per_step: float, steps: int, source: str = "job") -> SpeedRecord:
    """What to remember of a run."""
    return SpeedRecord(
        offer=offer.speed_key,
        workload=workload_key(needs),
        seconds_per_step=seconds_per_step,
        reference_seconds_per_step=reference_seconds_per_step(needs, offer),
        flops_per_step=needs.flops_per_token * needs.tokens_per_step,
        steps=steps,
        source=source,
    )


def gpus_used(needs: Needs, offer: Offer) -> int:
    """GPUs of each of the offer's machines that the run can use: the most that share a step evenly."""
    return needs.config.processes_on(offer.gpus, offer.nodes)


def idle_gpus(needs: Needs, offer: Offer) -> str | None:
    """Which GPUs of the offer would be paid for and not used, and what would use them; None if all are used."""
    used, config, every = gpus_used(needs, offer), needs.config, offer.gpus * offer.nodes
    if used >= offer.gpus:
        return None
    machines, shared = "", f"gradient_accumulation_steps = {config.gradient_accumulation_steps}"
    if offer.nodes > 1:
        machines, shared = f" of each of {offer.nodes} machines", f"{shared} times batch_size = {config.batch_size}"
    return (
        f"uses {used} of {offer.gpus} GPUs{machines} and pays for all, since {shared} is not a multiple of {every}; "
        f"{config.multiples_near(every)} would use all, with another batch size and thus other training"
    )


def parallel_speedup(needs: Needs, offer: Offer) -> float:
    """Speed on all usable GPUs of all machines over that on one."""
    used = gpus_used(needs, offer)
    one_machine = used * (_SCALING if used > 1 else 1.0)
    return one_machine * (offer.nodes * _NODES_SCALING if offer.nodes > 1 else 1.0)


def speed_on(offer: Offer, needs: Needs, records: Sequence[SpeedRecord], probed: Speed | None = None) -> Speed | None:
    """The best estimate there is: this run's history on this offer, a probe, other runs' history there, a
    measurement of its GPU, the peak.

    `probed` is a probe's result on this very offer. None when nothing is known about the offer's speed.
    """
    here = [record for record in records if record.offer == offer.speed_key]
    same = [record.seconds_per_step for record in here if record.workload == workload_key(needs)][-_NEWEST:]
    if same:
        detail = f"{len(same)} earlier run{'s' if len(same) > 1 else ''} of this configuration here"
        return Speed.within(statistics.median(same), 1.15, "history", detail)
    if probed is not None:
        return probed
    precision = needs.precision_on(offer)
    modelled = modelled_seconds_per_step(needs, offer, precision)
    if modelled is None:
        return None
    if here:
        seconds = reference_seconds_per_step(needs, offer) * _correction(needs, here)
        detail = f"{len(here)} earlier run{'s' if len(here) > 1 else ''} of other configurations here"
        return Speed.within(seconds, 1.35, "history of other configurations", detail)
    if offer.gpus and (measured := measured_correction(needs, offer, precision, modelled_seconds_per_step)):
        seconds = modelled * measured.factor
        return Speed.within(seconds, measured.uncertainty, "measured", f"scaled from a measurement: {measured.detail}")
    return Speed.within(modelled, 1.6, "peak", f"peak of {offer.gpu or 'the CPUs'} in {precision}, assumed utilisation")


def workload_key(needs: Needs) -> str:
    """Names a workload by everything that decides its speed on given hardware."""
    config = needs.config
    parts = (
        f"{config.n_layer}x{config.n_embd}h{config.n_head}",
        f"t{config.block_size}b{config.batch_size}a{config.gradient_accumulation_steps}v{needs.vocab_size}",
        f"{config.dtype}{'-compiled' if config.compile else ''}{'-dropout' if config.dropout else ''}",
        f"threads{config.threads or 'all'}",
    )
    return "-".join(parts)


def _correction(needs: Needs, records: Sequence[SpeedRecord]) -> float:
    """Measured over modelled time of other runs on this offer: a geometric mean in which near sizes weigh most."""
    logs, weights = [], []
    for record in records:
        distance = abs(math.log(record.flops_per_step / (needs.flops_per_token * needs.tokens_per_step)))
        logs.append(math.log(record.seconds_per_step / record.reference_seconds_per_step))
        weights.append(1 / (0.5 + distance))
    return math.exp(sum(log * weight for log, weight in zip(logs, weights, strict=True)) / sum(weights))
