"""SkyPilot's own tables of machines and prices, as offers of the pool `skypilot`.

SkyPilot downloads them to `~/.sky/catalogs/v8/CLOUD/vms.csv`, one row per machine and zone. What must be known of them:

* Google Cloud: the row of a machine is without its GPU, whose price is a row of its own (no InstanceType).
* RunPod: SpotPrice repeats Price, so nothing is known of its spot machines. Its "MiB" are GiB.
* Lambda: no zones, and SpotPrice is empty, because it has no spot machines.

A row is taken when its GPU is in the catalog already, whose figures (peaks, memory) it gets: without them there is no
estimate. Of each machine the cheapest region is taken, unless regions are named. Interruptions and start-up times are
assumptions: the tables have none.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from crucible.catalog.offers import Offer
from crucible.errors import ConfigError

POOL = "skypilot"
STARTUP_SECONDS = 300.0
MTBF_HOURS = 8.0
SCHEMA = "v8"
_COLUMNS = ("InstanceType", "AcceleratorName", "AcceleratorCount", "Region", "Price", "SpotPrice")
_NO_SPOT_PRICE = ("runpod",)
_GPU_NAMES = {"A100": "A100-40GB", "A10G": "A10G", "H100-SXM": "H100", "H200-SXM": "H200"}
"""Where our catalog has another name for the same GPU."""
_GCP_GPUS = (
    (r"a2-highgpu-(\d+)g", "A100"),
    (r"a2-megagpu-(\d+)g", "A100"),
    (r"a2-ultragpu-(\d+)g", "A100-80GB"),
    (r"a3-highgpu-(\d+)g", "H100"),
    (r"a3-ultragpu-(\d+)g", "H200"),
    (r"a4-highgpu-(\d+)g", "B200"),
)
_GCP_L4 = {4: 1, 8: 1, 12: 1, 16: 1, 32: 1, 24: 2, 48: 4, 96: 8}
"""GPUs of a g2-standard by its CPUs."""
_GCP_T4 = ("n1-standard-4", "n1-standard-8")
"""Machines that a T4 can be attached to; the smallest two are enough."""


@dataclass(frozen=True)
class _Machine:
    region: str
    instance: str
    accelerators: str
    """As SkyPilot names it; empty where the instance type implies it."""
    gpu: str
    gpus: int
    vcpus: float | None
    memory_gib: float | None
    price: float | None
    spot_price: float | None


def catalog_folder() -> Path:
    """Where SkyPilot keeps its tables on this machine."""
    return Path(os.environ.get("SKY_RUNTIME_DIR") or "~").expanduser() / ".sky" / "catalogs" / SCHEMA


def clouds_there(folder: Path) -> list[str]:
    """The clouds whose table is there. Raises `ConfigError` if there is none at all."""
    found = sorted(path.parent.name for path in folder.glob("*/vms.csv"))
    if not found:
        raise ConfigError(
            f"there is no catalog of SkyPilot's below {folder}; it downloads them with its first `sky check` or "
            "`sky show-gpus`, or name another folder with --folder"
        )
    return found


def read_offers(
    folder: Path, clouds: Sequence[str], known: Iterable[Offer], regions: Sequence[str] = ()
) -> dict[str, list[Offer]]:
    """The offers of each cloud. `known`: the catalog, for the figures of its GPUs.

    Raises:
        ConfigError: a cloud's table is not there, or is not one.
    """
    like = {offer.gpu: offer for offer in known if offer.gpu and offer.peak_tflops_fp32 is not None}
    found = {}
    for cloud in clouds:
        file = folder / cloud / "vms.csv"
        if not file.is_file():
            there = ", ".join(path.parent.name for path in sorted(folder.glob("*/vms.csv"))) or "none"
            raise ConfigError(f"--cloud {cloud!r}: SkyPilot has no catalog of it in {folder}; it has {there}")
        as_of = datetime.fromtimestamp(file.stat().st_mtime, UTC).date()
        machines = [one for one in _machines(cloud, _rows(file)) if not regions or one.region in regions]
        found[cloud] = [offer for one in machines if one.gpu in like for offer in _offers(cloud, one, like, as_of)]
        found[cloud] = _cheapest(found[cloud], per_region=bool(regions))
    return found


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    rows = csv.DictReader(io.StringIO(text, newline=""))
    if lacking := [name for name in _COLUMNS if name not in (rows.fieldnames or ())]:
        raise ConfigError(f"{file} is no catalog of SkyPilot's ({SCHEMA}): it has no column {lacking[0]}")
    try:
        return list(rows)
    except csv.Error as error:
        raise ConfigError(f"{file} line {rows.line_num}: {error}") from None


def _machines(cloud: str, rows: Sequence[Mapping[str, str]]) -> Iterator[_Machine]:
    if cloud == "gcp":
        yield from _gcp(rows)
        return
    for row in rows:
        if row["InstanceType"] and row["AcceleratorName"]:
            gpus = int(_number(row["AcceleratorCount"]) or 0)
            yield _machine(row, row["AcceleratorName"], gpus, 0.0, None if cloud in _NO_SPOT_PRICE else 0.0)


def _gcp(rows: Sequence[Mapping[str, str]]) -> Iterator[_Machine]:
    """Each machine with the price of its GPUs in the same zone added."""
    gpu_rows = {
        (row["AcceleratorName"], int(_number(row["AcceleratorCount"]) or 0), row.get("AvailabilityZone", "")): row
        for row in rows
        if not row["InstanceType"] and row["AcceleratorName"]
    }
    for row in rows:
        for gpu, count in _gcp_gpus(row["InstanceType"]):
            added = gpu_rows.get((gpu, count, row.get("AvailabilityZone", "")))
            if added is not None and (price := _number(added["Price"])) is not None:
                yield _machine(row, gpu, count, price, _number(added["SpotPrice"]), attached=f"{gpu}:{count}")


def _gcp_gpus(instance: str) -> Iterator[tuple[str, int]]:
    for pattern, gpu in _GCP_GPUS:
        if found := re.fullmatch(pattern, instance):
            yield gpu, int(found[1])
    if (found := re.fullmatch(r"g2-standard-(\d+)", instance)) and int(found[1]) in _GCP_L4:
        yield "L4", _GCP_L4[int(found[1])]
    if instance in _GCP_T4:
        yield "T4", 1


def _machine(
    row: Mapping[str, str], gpu: str, gpus: int, added: float, added_spot: float | None, *, attached: str = ""
) -> _Machine:
    price, spot = _number(row["Price"]), _number(row["SpotPrice"])
    return _Machine(
        region=row["Region"],
        instance=row["InstanceType"],
        accelerators=attached,
        gpu=_GPU_NAMES.get(gpu, gpu),
        gpus=gpus,
        vcpus=_number(row.get("vCPUs", "")),
        memory_gib=_number(row.get("MemoryGiB", "")),
        price=None if price is None else price + added,
        spot_price=None if spot is None or added_spot is None else spot + added_spot,
    )


def _offers(cloud: str, one: _Machine, like: Mapping[str, Offer], as_of: date) -> Iterator[Offer]:
    twin = like[one.gpu]
    for price, spot in ((one.price, False), (one.spot_price, True)):
        # A part of a GPU (0.125 of an L4) has neither the memory nor the speed of one.
        if price is None or round(price, 5) <= 0 or not one.region or one.gpus < 1:
            continue
        yield Offer(
            pool=POOL,
            instance=f"{cloud}/{one.region}/{one.instance}"
            + (f"+{one.accelerators}" if one.accelerators else "")
            + ("/spot" if spot else ""),
            usd_per_hour=round(price, 5),
            gpu=one.gpu,
            gpus=one.gpus,
            gpu_memory_gib=twin.gpu_memory_gib,
            vcpus=int(one.vcpus) if one.vcpus and one.vcpus >= 1 else None,
            memory_gib=one.memory_gib if one.memory_gib and one.memory_gib > 0 else None,
            on_demand_usd_per_hour=one.price if one.price and one.price > 0 else None,
            startup_seconds=STARTUP_SECONDS,
            mtbf_hours=MTBF_HOURS if spot else None,
            minimum_seconds=60.0,
            peak_tflops_fp32=twin.peak_tflops_fp32,
            peak_tflops_fp16=twin.peak_tflops_fp16,
            peak_tflops_bf16=twin.peak_tflops_bf16,
            memory_gb_per_second=twin.memory_gb_per_second,
            assumed=("startup_seconds", "minimum_seconds", *(("mtbf_hours",) if spot else ())),
            source=f"SkyPilot's catalog {SCHEMA} {cloud}/vms.csv, as downloaded",
            as_of=as_of,
        )


def _cheapest(offers: Iterable[Offer], *, per_region: bool) -> list[Offer]:
    """Of each machine the cheapest zone, and region unless regions were named."""
    best: dict[tuple[str, ...], Offer] = {}
    for offer in offers:
        cloud, region, *machine = offer.instance.split("/")
        key = (cloud, region if per_region else "", *machine)
        if key not in best or offer.usd_per_hour < best[key].usd_per_hour:
            best[key] = offer
    return list(best.values())


def _number(text: str | None) -> float | None:
    """None for an empty cell, for one that is missing from the end of its row, and for what is no finite number."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
