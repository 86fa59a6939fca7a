"""SkyPilot's catalogs as offers; the rows are real ones of its v8 tables, 2025."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from crucible.catalog.offers import add_prices, load_catalog, stale_warning
from crucible.catalog.skypilot import clouds_there, read_offers
from crucible.config import TrainConfig
from crucible.datasets.meta import DatasetMeta
from crucible.errors import ConfigError
from crucible.estimate.ranking import PoolState
from crucible.jobs.job import Job
from crucible.jobs.records import JobSpec, Launch
from crucible.placement.choice import PlacementRequest
from crucible.pools.skypilot.configuration import SkyJobConfiguration
from crucible.pools.skypilot.offers import job_variables
from crucible.pools.skypilot.pool import PoolOptions, pool_template
from crucible.store import Store
from tasks import placing
from tasks.launching import PrefectLauncher

TABLES = {
    "gcp": """\
InstanceType,vCPUs,MemoryGiB,AcceleratorName,AcceleratorCount,GpuInfo,Region,AvailabilityZone,Price,SpotPrice
a2-highgpu-1g,12.0,85.0,,,,europe-west4,europe-west4-a,0.81406,0.31824
a2-highgpu-1g,12.0,85.0,,,,us-central1,us-central1-a,0.73948,0.36975
a2-highgpu-1g,12.0,85.0,,,,us-central1,us-central1-b,0.73948,0.36975
n2-standard-4,4.0,16.0,,,,us-central1,us-central1-a,0.19424,0.05
,,,A100,1.0,,europe-west4,europe-west4-a,2.933908,1.15
,,,A100,1.0,,us-central1,us-central1-a,2.933908,1.46695
,,,A100,1.0,,us-central1,us-central1-b,2.933908,1.46695
,,,tpu-v3-8,1.0,,us-central1,us-central1-a,8.0,2.4
""",
    "lambda": """\
InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,Region,GpuInfo,SpotPrice
gpu_1x_a10,A10,1.0,30.0,200.0,0.75,us-west-1,,
gpu_1x_a100_sxm4,A100,1.0,30.0,200.0,1.29,us-west-1,,
gpu_1x_strange,Strange9000,1.0,30.0,200.0,0.01,us-west-1,,
gpu_1x_h100_pcie,H100,1.0,26.0,200.0,nan,us-west-1,,
gpu_8x_a100,A100,8.0
""",
    "runpod": """\
InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Region,SpotPrice,Price,AvailabilityZone,GpuInfo
1x_A100-80GB_SECURE,A100-80GB,1.0,8.0,117.0,CA,1.39,1.39,CA-MTL-1,"{'TotalGpuMemoryInMiB': 80}"
1x_A100-80GB_SECURE,A100-80GB,1.0,8.0,117.0,US,1.49,1.49,US-CA-1,"{'TotalGpuMemoryInMiB': 80}"
""",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CRUCIBLE_HOME", str(tmp_path / "home"))
    at = datetime(2025, 9, 1, tzinfo=UTC).timestamp()
    for cloud, text in TABLES.items():
        (tmp_path / "v8" / cloud).mkdir(parents=True)
        file = tmp_path / "v8" / cloud / "vms.csv"
        file.write_text(text)
        os.utime(file, (at, at))
    return tmp_path / "v8"


def test_each_machine_is_one_offer_in_its_cheapest_region_with_the_quirks_of_its_cloud(folder: Path) -> None:
    found = read_offers(folder, clouds_there(folder), load_catalog())
    prices = {offer.instance: offer.usd_per_hour for offers in found.values() for offer in offers}
    assert prices == {
        "gcp/us-central1/a2-highgpu-1g+A100:1": pytest.approx(0.73948 + 2.933908, abs=1e-4),
        "gcp/europe-west4/a2-highgpu-1g+A100:1/spot": pytest.approx(0.31824 + 1.15),
        "lambda/us-west-1/gpu_1x_a10": 0.75,
        "lambda/us-west-1/gpu_1x_a100_sxm4": 1.29,
        "runpod/CA/1x_A100-80GB_SECURE": 1.39,
    }
    (spot,) = [offer for offer in found["gcp"] if offer.interruptible]
    assert (spot.gpu, spot.gpus, spot.vcpus, spot.memory_gib, spot.as_of) == (
        "A100-40GB",
        1,
        12,
        85.0,
        date(2025, 9, 1),
    )
    assert spot.peak_flops("bfloat16") == 312e12
    assert {"startup_seconds", "mtbf_hours"} <= set(spot.assumed)
    for name in prices:
        assert job_variables(name)["infra"].split("/") == name.split("/")[:2]


def test_regions_that_are_named_are_kept_apart(folder: Path) -> None:
    found = read_offers(folder, ["gcp"], load_catalog(), ["us-central1", "europe-west4"])
    assert len([offer for offer in found["gcp"] if not offer.interruptible]) == 2


def test_imported_offers_stand_beside_the_others_and_say_how_old_they_are(folder: Path) -> None:
    found = read_offers(folder, ["lambda"], load_catalog())
    add_prices(found["lambda"])
    add_prices(found["lambda"][:1], instead_of=["skypilot/lambda/"])
    known = [offer for offer in load_catalog() if offer.pool == "skypilot"]
    assert [offer.instance for offer in known] == ["lambda/us-west-1/gpu_1x_a10"]
    warning = stale_warning(known, date(2025, 12, 1))
    assert warning is not None
    assert "(the oldest 91)" in warning
    assert "`crucible prices import` from SkyPilot" in warning


def test_auto_places_a_job_on_an_imported_machine_and_that_machine_is_asked_of_skypilot(
    folder: Path, store: Store, meta: DatasetMeta, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_prices(read_offers(folder, ["lambda"], load_catalog())["lambda"])
    monkeypatch.setattr(placing, "pool_states", lambda: {"skypilot": PoolState(workers_online=1)})
    monkeypatch.setattr(placing, "budget_limits", lambda invalid: [])
    config = TrainConfig.preset("gpt2-124m", max_iters=2000, warmup_iters=10, lr_decay_iters=2000)
    choice = placing.choose(store, PlacementRequest(job_id="job", config=config, dataset=meta, pool="auto"))
    (place,) = choice.placements
    assert (place.pool, place.instance, place.usd_per_hour) == ("skypilot", "lambda/us-west-1/gpu_1x_a100_sxm4", 1.29)

    job = Job.create(store, JobSpec(job_id="job", config=config))
    launch = Launch(number=1, pool=place.pool, instance=place.instance, reason=place.reason)
    variables = PrefectLauncher(store.uri, "project", "")._job_variables(job, job.read_spec(), launch)
    made = asyncio.run(SkyJobConfiguration.from_template_and_values(pool_template(PoolOptions()), variables, object()))
    assert made.task("")["resources"] == {"infra": "lambda/us-west-1", "instance_type": "gpu_1x_a100_sxm4"}


def test_what_is_not_there_or_no_catalog_is_told_in_one_message(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no catalog of SkyPilot's below"):
        clouds_there(tmp_path / "nothing")
    with pytest.raises(
        ConfigError, match=r"--cloud 'azure': SkyPilot has no catalog of it in .*; it has gcp, lambda, r"
    ):
        read_offers(folder, ["azure"], load_catalog())
    (folder / "gcp" / "vms.csv").write_text("name,price\nx,1\n")
    with pytest.raises(ConfigError, match="is no catalog of SkyPilot's"):
        read_offers(folder, ["gcp"], load_catalog())


@pytest.mark.parametrize(
    ("row", "offers"),
    [
        ("g6f.large,2,8,L4,0.125,0.2,0.1", 0),  # an eighth of an L4
        ("odd,2,8,L4,-1,0.2,0.1", 0),
        ("odd,2,8,L4,1,-1,0.1", 1),
        ("odd,2,8,L4,1,0.000001,0.000001", 0),
        ("odd,0.5,-8,L4,1,0.2,0.1", 2),
    ],
)
def test_a_part_of_a_gpu_is_not_taken_for_one_and_an_odd_row_is_no_error(folder: Path, row: str, offers: int) -> None:
    (folder / "aws").mkdir()
    heading = "InstanceType,vCPUs,MemoryGiB,AcceleratorName,AcceleratorCount,Price,SpotPrice,Region"
    (folder / "aws" / "vms.csv").write_text(f"{heading}\n{row},us-east-1\n")
    assert len(read_offers(folder, ["aws"], load_catalog())["aws"]) == offers


def test_a_table_that_is_not_csv_is_named(folder: Path) -> None:
    with (folder / "lambda" / "vms.csv").open("a") as file:
        file.write(f'"{"x" * 200_000}\n')
    with pytest.raises(ConfigError, match=r"vms.csv line \d+: field larger"):
        read_offers(folder, ["lambda"], load_catalog())
