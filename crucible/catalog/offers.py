"""Offers: the shipped price table, refreshed prices, and your own rows.

`offers.csv` has one row per pool and machine type. Every row names its source and its date; the column `assumed` lists
the values that are assumptions. Later tables override earlier ones, by pool and type:

    offers.csv                      shipped, in this package
    $CRUCIBLE_HOME/prices.csv       written by `crucible prices refresh` and `crucible prices import`
    $CRUCIBLE_HOME/clusters.csv     written by `crucible slurm setup`: your Slurm clusters
    $CRUCIBLE_HOME/offers.csv       your own, or the file given with --offers

Your row needs `pool`, `instance` and `usd_per_hour`; what it leaves out comes from the shipped row of the same pool and
type, else from any shipped row with the same GPU.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from crucible.errors import ConfigError
from crucible.home import crucible_home
from crucible.settings import explain_validation_error

STALE_AFTER_DAYS = 30
OWN_POOLS = ("local", "docker-gpu")
"""Pools on your own machine: free, and described by inspecting the machine."""

TRIED_ANYWAY = (*OWN_POOLS, "slurm", "kubernetes")
"""Pools that may be tried where nothing is known of their speed: they are free, or their price is yours to say."""

Precision = Literal["float32", "float16", "bfloat16"]


NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, config=ConfigDict(allow_inf_nan=False))
class Offer:
    """One machine type on one pool. Prices in USD per hour, memory in GiB per GPU, peaks in dense TFLOP/s per GPU."""

    pool: str
    instance: str
    usd_per_hour: NonNegative
    gpu: str = ""
    gpus: Annotated[int, Field(ge=0)] = 0
    gpu_memory_gib: Positive | None = None
    vcpus: Annotated[int, Field(gt=0)] | None = None
    memory_gib: Positive | None = None
    on_demand_usd_per_hour: Positive | None = None
    """The price of the same machine without interruptions."""
    startup_seconds: NonNegative = 60.0
    """From the request to a running container with the image pulled."""
    mtbf_hours: Positive | None = None
    """Mean time between interruptions; None: never interrupted."""
    lifetime_hours: Positive | None = None
    minimum_seconds: NonNegative = 0.0
    """The least that is billed per start."""
    granularity_seconds: Positive = 1.0
    peak_tflops_fp32: NonNegative | None = None
    peak_tflops_fp16: NonNegative | None = None
    peak_tflops_bf16: NonNegative | None = None
    memory_gb_per_second: Positive | None = None
    tenancy: Literal["dedicated", "shared"] = "dedicated"
    """`shared`: other customers' work runs on the same host."""
    assumed: tuple[str, ...] = ()
    source: str = "user"
    as_of: date | None = None
    missing: str = ""
    """Why this offer is not available on this machine, such as no GPU; empty if it is."""
    hardware: str = ""
    """The hardware of your own machine, so that a store shared by several machines keeps their speeds apart."""
    nodes: Annotated[int, Field(gt=0)] = 1
    """How many of these machines together; prices and interruptions are those of all of them."""

    def on_nodes(self, nodes: int) -> Offer:
        """So many of this machine: the price of all, and the first one that goes interrupts all."""
        if nodes == 1:
            return self
        on_demand = self.on_demand_usd_per_hour
        return dataclasses.replace(
            self,
            nodes=nodes,
            usd_per_hour=self.usd_per_hour * nodes,
            on_demand_usd_per_hour=None if on_demand is None else on_demand * nodes,
            mtbf_hours=None if self.mtbf_hours is None else self.mtbf_hours / nodes,
        )

    @property
    def key(self) -> str:
        return f"{self.pool}/{self.instance}"

    @property
    def speed_key(self) -> str:
        """The name under which speeds of past runs are kept."""
        machine = f"{self.pool}/{self.hardware}" if self.own_machine else self.key
        return machine if self.nodes == 1 else f"{machine} x {self.nodes}"

    @property
    def interruptible(self) -> bool:
        return self.mtbf_hours is not None

    @property
    def own_machine(self) -> bool:
        return self.pool in OWN_POOLS

    def peak_flops(self, precision: Precision) -> float | None:
        """Dense peak of one GPU (or of all CPUs) in FLOP/s; 0 when the hardware cannot, None when unknown."""
        column = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[precision]
        peak: float | None = getattr(self, f"peak_tflops_{column}")
        return None if peak is None else peak * 1e12

    def age_days(self, today: date) -> int | None:
        return None if self.as_of is None else (today - self.as_of).days

    def stale(self, today: date) -> bool:
        """Whether the price is billed and too old to trust."""
        age = self.age_days(today)
        return not self.own_machine and age is not None and age > STALE_AFTER_DAYS


_FIELDS = [field.name for field in dataclasses.fields(Offer) if field.name not in ("missing", "hardware", "nodes")]
_GPU_FIELDS = [name for name in _FIELDS if name.startswith("peak_")] + ["gpu_memory_gib", "memory_gb_per_second"]


def load_catalog(own_offers: Path | None = None) -> list[Offer]:
    """The shipped offers, overridden by refreshed prices and by your own offers.

    Raises:
        ConfigError: a table that cannot be read; the message names file, line, column and value.
    """
    shipped = resources.files("crucible.catalog") / "offers.csv"
    offers = {offer.key: offer for offer in _read(shipped.read_text(encoding="utf-8"), "offers.csv", {})}
    for file in (prices_file(), cluster_offers_file(), own_offers or crucible_home() / "offers.csv"):
        try:
            text = file.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            if file == own_offers:
                raise ConfigError(f"offers file {file} does not exist") from None
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"offers file {file} cannot be read: {error}") from error
        offers |= {offer.key: offer for offer in _read(text, str(file), offers)}
    return list(offers.values())


def prices_file() -> Path:
    """Where `crucible prices refresh` writes."""
    return crucible_home() / "prices.csv"


def cluster_offers_file() -> Path:
    """Where `crucible slurm setup` writes what it has found out."""
    return crucible_home() / "clusters.csv"


def add_prices(fresh: Iterable[Offer], instead_of: Sequence[str] = ()) -> Path:
    """Add refreshed offers to `prices_file`, replacing earlier prices of the same offers; returns the file.

    `instead_of`: all earlier offers whose keys begin so are dropped.
    """
    file = prices_file()
    known = {offer.key: offer for offer in load_catalog()}
    earlier = _read(file.read_text(encoding="utf-8-sig"), str(file), known) if file.is_file() else []
    kept = [offer for offer in earlier if not offer.key.startswith(tuple(instead_of))]
    write_table({offer.key: offer for offer in (*kept, *fresh)}.values(), file)
    return file


def stale_warning(offers: Iterable[Offer], today: date) -> str | None:
    """One sentence when prices are older than `STALE_AFTER_DAYS`, else None."""
    old = [offer for offer in offers if offer.stale(today)]
    if not old:
        return None
    oldest = max(offer.age_days(today) or 0 for offer in old)
    return (
        f"{len(old)} prices are older than {STALE_AFTER_DAYS} days (the oldest {oldest}); "
        "`crucible prices refresh` updates them from AWS and Modal, `crucible prices import` from SkyPilot"
    )


def write_table(offers: Iterable[Offer], target: Path) -> None:
    """Write offers in the catalog's format, atomically."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_FIELDS)
        writer.writerows([_cell(getattr(offer, name)) for name in _FIELDS] for offer in offers)
    partial.replace(target)


def _cell(value: object) -> str:
    return "" if value is None else " ".join(value) if isinstance(value, tuple) else str(value)


def _read(text: str, source: str, known: Mapping[str, Offer]) -> list[Offer]:
    rows = csv.DictReader(io.StringIO(text, newline=""))  # splitlines() would also split at U+2028 in a cell
    try:
        return _offers(rows, source, known)
    except csv.Error as error:
        raise ConfigError(f"{source} line {rows.line_num}: {error}; is a quote left open?") from None


def _offers(rows: csv.DictReader[str], source: str, known: Mapping[str, Offer]) -> list[Offer]:
    unknown = [name for name in rows.fieldnames or () if name not in _FIELDS]
    if unknown:
        raise ConfigError(f"{source}: unknown column {unknown[0]!r}; the columns are {', '.join(_FIELDS)}")
    by_gpu = {offer.gpu: offer for offer in known.values() if offer.gpu}
    return [_offer(row, f"{source} line {rows.line_num}", known, by_gpu) for row in rows]


def _offer(row: dict[str, str], where: str, known: Mapping[str, Offer], by_gpu: Mapping[str, Offer]) -> Offer:
    given: dict[str, Any] = {name: cell.strip() for name, cell in row.items() if name and cell and cell.strip()}
    for name in ("pool", "instance", "usd_per_hour"):
        if name not in given:
            raise ConfigError(f"{where}: {name} is missing; every offer needs pool, instance and usd_per_hour")
    given["assumed"] = tuple(given.get("assumed", "").split())
    base = known.get(f"{given['pool']}/{given['instance']}")
    if base is not None:
        given = dataclasses.asdict(base) | given
    elif (twin := by_gpu.get(given.get("gpu", ""))) is not None:
        given = {"gpus": 1, **{name: getattr(twin, name) for name in _GPU_FIELDS}} | given
    try:
        return Offer(**given)
    except ValidationError as error:
        raise ConfigError(explain_validation_error(error, where)) from None
