"""Where a script of your own goes, and what its resources become on each pool."""

from __future__ import annotations

from typing import Any

import pytest

from crucible.catalog.offers import load_catalog
from crucible.errors import ConfigError
from crucible.placement.script import place_script
from crucible.resources import Resources


def test_a_cloud_gets_its_cheapest_machine_with_so_many_gpus_and_a_fallback() -> None:
    spot, steady = place_script("ec2-spot", Resources()).placements
    cheapest = min((o for o in load_catalog() if o.pool == "ec2-spot" and o.gpus == 1), key=lambda o: o.usd_per_hour)
    assert (spot.instance, spot.usd_per_hour) == (cheapest.instance, cheapest.usd_per_hour)
    assert spot.mtbf_seconds is not None
    assert (steady.pool, steady.mtbf_seconds) == ("ec2-on-demand", None)
    (named,) = place_script("ec2-on-demand", Resources(instance="g5.xlarge")).placements
    assert named.instance == "g5.xlarge"


def test_modal_sells_gpus_by_the_piece() -> None:
    (one,) = place_script("modal", Resources(instance="H100")).placements
    (four,) = place_script("modal", Resources(instance="H100", gpus=4)).placements
    assert (four.instance, four.usd_per_hour) == ("H100:4", 4 * one.usd_per_hour)
    with pytest.raises(ConfigError, match="no machine H100 with 9 GPUs on modal"):
        place_script("modal", Resources(instance="H100", gpus=9))


def test_auto_is_refused_because_there_is_no_estimate() -> None:
    with pytest.raises(ConfigError, match="auto compares estimates"):
        place_script("auto", Resources())


@pytest.mark.parametrize(
    ("pool", "words"),
    [("skypilot", "crucible prices import"), ("ec2-spt", "did you mean ec2-spot?")],
)
def test_a_pool_without_machines_in_the_catalog_is_refused_with_what_to_do(pool: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        place_script(pool, Resources())


@pytest.mark.parametrize(
    ("pool", "asked", "variables"),
    [
        ("local", {"gpus": 1}, {}),
        (
            "docker-gpu",
            {"gpus": 2, "memory_gib": 1.5, "image": "me:1"},
            {"gpus": "2", "memory": "1536m", "image": "me:1"},
        ),
        ("ec2-spot", {"gpus": 4, "memory_gib": 30, "instance": "g5.12xlarge"}, {"gpus": "4", "memory": 30720}),
        ("modal", {"memory_gib": 8, "timeout_hours": 2}, {"memory_mib": 8192, "timeout_seconds": 7200}),
        ("modal", {"gpus": 0}, {"gpu": []}),
        ("slurm", {"nodes": 2, "gpus": 1}, {"nodes": "2", "gpus": "1"}),
        ("slurm", {"nodes": "2..4"}, {"nodes": "2..4"}),
        ("ec2-spot", {"nodes": 2}, {"nodes": "2"}),
        ("local", {"nodes": 2}, {}),
    ],
)
def test_resources_become_job_variables(pool: str, asked: dict[str, Any], variables: dict[str, Any]) -> None:
    assert Resources(**asked).job_variables(pool) == variables


@pytest.mark.parametrize(("pool", "asked"), [("local", "memory_gib"), ("docker-gpu", "timeout_hours")])
def test_what_a_pool_cannot_choose_is_refused_by_name(pool: str, asked: str) -> None:
    with pytest.raises(
        ConfigError, match=f"resources: {asked}: the pool {pool} cannot choose that; it can choose gpus"
    ):
        Resources.model_validate({asked: 4}).job_variables(pool)


@pytest.mark.parametrize("pool", ["modal", "kubernetes"])
def test_a_pool_of_single_machines_refuses_nodes(pool: str) -> None:
    with pytest.raises(ConfigError, match=f"nodes = 2: the pool {pool} runs an attempt on one machine; .*slurm"):
        Resources(nodes="2").job_variables(pool)
    Resources(nodes="1").job_variables(pool)


@pytest.mark.parametrize("wrong", ["0", "65", "4..2", "two", "2..", "2-4", "-1", "2.5", "1..100"])
def test_how_many_nodes_is_a_number_or_a_range(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"must be how many machines train together, 1 to 64, or a range: 2, 2\.\.4"):
        Resources.parse({"nodes": wrong})


def test_several_nodes_cost_and_break_as_many_times() -> None:
    one, three = (place_script("ec2-spot", Resources(nodes=nodes)).placements[0] for nodes in ("", "2..3"))
    assert (three.instance, three.nodes) == (one.instance, 3)
    assert three.usd_per_hour == pytest.approx(3 * one.usd_per_hour)
    assert one.mtbf_seconds is not None
    assert three.mtbf_seconds == pytest.approx(one.mtbf_seconds / 3)


def test_a_process_sees_so_many_of_the_gpus_that_it_may_use() -> None:
    assert Resources().visible_gpus("0,1") == {}
    assert Resources(gpus=0).visible_gpus(None) == {"CUDA_VISIBLE_DEVICES": ""}
    assert Resources(gpus=2).visible_gpus(None) == {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert Resources(gpus=2).visible_gpus("") == {"CUDA_VISIBLE_DEVICES": ""}
    assert Resources(gpus=2).visible_gpus("5,3,1") == {"CUDA_VISIBLE_DEVICES": "5,3"}
