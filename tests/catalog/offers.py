"""Offers for tests: round figures, so that expected values can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

from crucible.catalog.offers import Offer

SPOT = Offer(
    pool="ec2-spot",
    instance="g.small",
    usd_per_hour=0.5,
    gpu="L4",
    gpus=1,
    gpu_memory_gib=22,
    vcpus=4,
    memory_gib=16,
    on_demand_usd_per_hour=1.5,
    startup_seconds=240,
    mtbf_hours=10,
    minimum_seconds=60,
    peak_tflops_fp32=30,
    peak_tflops_fp16=120,
    peak_tflops_bf16=120,
    memory_gb_per_second=300,
    as_of=date(2026, 1, 1),
)
ON_DEMAND = replace(SPOT, pool="ec2-on-demand", usd_per_hour=1.5, mtbf_hours=None)
BIG = replace(ON_DEMAND, instance="g.big", gpu="H100", gpu_memory_gib=80, usd_per_hour=7, peak_tflops_bf16=990)
BIG = replace(BIG, on_demand_usd_per_hour=7, memory_gib=256, memory_gb_per_second=3350)
MODAL = replace(SPOT, pool="modal", instance="L4", usd_per_hour=0.8, on_demand_usd_per_hour=0.8, startup_seconds=30)
MODAL = replace(MODAL, mtbf_hours=24, lifetime_hours=24, tenancy="shared", minimum_seconds=0)
LOCAL = Offer("local", "this-machine", 0.0, vcpus=2, memory_gib=16, startup_seconds=5, hardware="cpu-a")
LOCAL = replace(LOCAL, peak_tflops_fp32=0.2, memory_gb_per_second=10)
ALL = (SPOT, ON_DEMAND, BIG, MODAL, LOCAL)


def offer_like(base: Offer, **changes: Any) -> Offer:
    return replace(base, **changes)
