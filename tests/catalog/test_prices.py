"""Refreshing prices: against moto where it has data, against botocore's stubs where it has none."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import ANY, Stubber

from crucible.catalog import prices
from crucible.catalog.offers import Offer, load_catalog

NOW = datetime(2026, 5, 7, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRUCIBLE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setattr("modal.config.config.get", lambda name: None)


def some(*keys: str) -> list[Offer]:
    return [offer for offer in load_catalog() if offer.key in keys]


def product(price: str) -> str:
    dimension = {"unit": "Hrs", "pricePerUnit": {"USD": price}}
    return json.dumps({"terms": {"OnDemand": {"a": {"priceDimensions": {"b": dimension}}}}})


def test_spot_prices_are_the_median_of_the_zones_and_on_demand_is_put_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    ec2, pricing = boto3.client("ec2", region_name="us-east-2"), boto3.client("pricing", region_name="us-east-1")
    zones = [{"InstanceType": "g6.xlarge", "SpotPrice": price} for price in ("0.26", "0.30", "0.27")]
    with Stubber(ec2) as spot, Stubber(pricing) as on_demand:
        wanted = {"InstanceTypes": ["g6.xlarge"], "ProductDescriptions": ["Linux/UNIX"], "StartTime": NOW}
        spot.add_response("describe_spot_price_history", {"SpotPriceHistory": zones}, wanted)
        expected = {"ServiceCode": "AmazonEC2", "Filters": ANY}
        on_demand.add_response("get_products", {"PriceList": [product("0.8100000000")]}, expected)
        monkeypatch.setattr(boto3, "client", lambda name, region_name: {"ec2": ec2, "pricing": pricing}[name])
        found = prices.refresh(some("ec2-spot/g6.xlarge", "ec2-on-demand/g6.xlarge"), "us-east-2", NOW)
    new = {offer.key: offer for offer in found.offers}
    assert new["ec2-spot/g6.xlarge"].usd_per_hour == 0.27
    assert new["ec2-spot/g6.xlarge"].on_demand_usd_per_hour == 0.81
    assert new["ec2-on-demand/g6.xlarge"].usd_per_hour == 0.81
    assert new["ec2-on-demand/g6.xlarge"].on_demand_usd_per_hour == 0.81
    assert new["ec2-spot/g6.xlarge"].as_of == date(2026, 5, 7)
    assert new["ec2-spot/g6.xlarge"].source == "EC2 spot price history, us-east-2"
    assert found.messages[0] == "EC2 spot price history: 1 price"
    assert found.messages[2] == "Modal billing rates: skipped, no Modal token is set up"


def test_a_stand_ins_prices_are_not_taken_and_a_failing_source_stops_no_other() -> None:
    from moto import mock_aws  # here: it loads for two seconds, in each process that collects this file

    # moto answers every spot price with $0.00001, and knows only a few products.
    with mock_aws():
        found = prices.refresh(some("ec2-spot/g5.xlarge"), "us-east-1", NOW)
    assert found.offers == ()
    assert "0 prices; refused, more than 10 times off: g5.xlarge at $1e-05" in found.messages[0]
    assert len(found.messages) == 3


def test_an_error_of_the_cloud_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    client = boto3.client("ec2", region_name="us-east-1")
    with Stubber(client) as stub:
        stub.add_client_error("describe_spot_price_history", "UnauthorizedOperation", "You are not\nallowed")
        monkeypatch.setattr(boto3, "client", lambda name, region_name: client)
        found = prices.refresh(some("ec2-spot/g5.xlarge"), "us-east-1", NOW)
    assert found.messages[0].startswith("EC2 spot price history: ClientError: ")
    assert "You are not allowed" in found.messages[0]


def test_modal_rates_become_the_price_of_a_sandbox() -> None:
    rates: dict[str, Any] = {"CPU": "0.00001", "Memory": "0.000002", "T4": "0.0002", "A100-80GB": "0.0007"}
    found = prices.modal_prices(rates)
    beside = 3 * (1 * 0.00001 + 8 * 0.000002)
    assert found == {
        "T4": pytest.approx((0.0002 + beside) * 3600),
        "A100-80GB": pytest.approx((0.0007 + beside) * 3600),
    }


def test_a_product_without_an_hourly_price_is_none() -> None:
    assert prices.on_demand_price(json.loads(product("1.5"))) == 1.5
    assert prices.on_demand_price({"terms": {}}) is None
    quantity = {"unit": "Quantity", "pricePerUnit": {"USD": "10"}}
    assert prices.on_demand_price({"terms": {"OnDemand": {"a": {"priceDimensions": {"b": quantity}}}}}) is None


def test_an_empty_first_page_with_a_token_is_not_the_end_and_a_missing_price_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = boto3.client("ec2", region_name="us-east-1")
    pages: list[dict[str, Any]] = [
        {"SpotPriceHistory": [], "NextToken": "more"},
        {"SpotPriceHistory": [{"InstanceType": "g5.xlarge", "SpotPrice": "0.4"}], "NextToken": ""},
    ]
    with Stubber(client) as stub:
        for page in pages:
            stub.add_response("describe_spot_price_history", page)
        monkeypatch.setattr(boto3, "client", lambda name, region_name: client)
        found = prices.refresh(some("ec2-spot/g5.xlarge", "ec2-spot/g6.xlarge"), "us-east-1", NOW)
    assert [offer.usd_per_hour for offer in found.offers] == [0.4]
    assert found.messages[0] == "EC2 spot price history: 1 price; no price for g6.xlarge"
