"""The price of the machine that came: every row pairs a machine, a lifecycle or a price that the plan did not name."""

from __future__ import annotations

from pathlib import Path

import pytest

from crucible.billing.machine_price import machine_price
from crucible.catalog.ec2 import PriceUnavailable
from crucible.catalog.offers import load_catalog
from crucible.jobs.records import Launch

OFFERS = {offer.key: offer for offer in load_catalog()}
PLANNED = Launch(number=1, pool="ec2-spot", instance="g4dn.xlarge", usd_per_hour=0.208, reason="test")


@pytest.mark.parametrize(
    ("instance", "lifecycle", "spot", "usd_per_hour", "remark"),
    [
        ("g6.xlarge", "spot", 0.41, 0.41, "the machine is g6.xlarge at $0.41/h; planned was g4dn.xlarge at $0.208/h"),
        ("g6.xlarge", "spot", None, 0.374, "g6.xlarge at $0.374/h"),
        ("g5.xlarge", "on-demand", None, 1.006, "g5.xlarge at $1.006/h"),
        ("g4dn.xlarge", "spot", 0.25, 0.25, "g4dn.xlarge at $0.25/h"),
        ("g4dn.xlarge", "on-demand", None, 0.526, "g4dn.xlarge at $0.526/h"),
        ("g4dn.xlarge", "spot", None, 0.208, ""),
        (
            "x9.huge",
            "spot",
            None,
            0.208,
            "no price is known for ec2-spot/x9.huge: the bill assumes the planned",
        ),
        ("", "", None, 0.208, ""),
    ],
)
def test_the_price_is_that_of_the_machine(
    instance: str, lifecycle: str, spot: float | None, usd_per_hour: float, remark: str
) -> None:
    found = machine_price(PLANNED, instance, lifecycle, spot, OFFERS)
    assert found.usd_per_hour == usd_per_hour
    assert remark in found.remark
    assert bool(remark) == bool(found.remark)


def test_your_own_machine_is_free_even_if_it_is_an_ec2_instance() -> None:
    local = Launch(number=1, pool="local", reason="test")
    assert machine_price(local, "g5.xlarge", "spot", 0.4, OFFERS).usd_per_hour == 0


@pytest.mark.parametrize(
    ("identity", "spot", "usd_per_hour"),
    [
        ({"instance_type": "g6.xlarge", "zone": "us-east-1b", "lifecycle": "spot"}, 0.41, 0.41),
        ({"instance_type": "g6.xlarge", "zone": "us-east-1b", "lifecycle": "spot"}, None, 0.374),
        ({"instance_type": "g5.xlarge", "zone": "us-east-1b", "lifecycle": "on-demand"}, None, 1.006),
    ],
)
def test_an_attempt_is_claimed_at_the_price_of_its_machine(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    identity: dict[str, str],
    spot: float | None,
    usd_per_hour: float,
) -> None:
    from tasks import machine as machine_module

    def market(instance_type: str, zone: str) -> float:
        if spot is None:
            raise PriceUnavailable("the spot price of g6.xlarge in us-east-1b is not available: no network")
        return spot

    monkeypatch.setenv("CRUCIBLE_HOME", str(tmp_path))
    monkeypatch.setattr(machine_module, "spot_price", market)
    machine = machine_module.Machine(identity)
    claim = machine.claim(1, PLANNED)
    assert (claim.instance, claim.usd_per_hour) == (identity["instance_type"], usd_per_hour)
    assert claim.price_remark
    assert machine.current_price() == spot
    unavailable = spot is None and identity["lifecycle"] == "spot"
    assert ("spot_price_unavailable" in claim.environment) == unavailable, "a missing price is said"
