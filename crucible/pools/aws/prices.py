"""What a spot machine costs now, from AWS's own price history of its zone."""

from __future__ import annotations

from datetime import UTC, datetime

PRODUCT = "Linux/UNIX"
TIMEOUT_SECONDS = 3


def spot_price(instance_type: str, zone: str) -> float | None:
    """USD an hour of that type on that zone's spot market now; None when it cannot be had.

    Needs the permission ec2:DescribeSpotPriceHistory, which the stack's TaskRole has. Never raises for want of
    credentials, network or the price: an attempt must not fail over its bill.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError
    except ImportError:
        return None
    brief = Config(connect_timeout=TIMEOUT_SECONDS, read_timeout=TIMEOUT_SECONDS, retries={"total_max_attempts": 1})
    try:
        # A session of its own: the shared one keeps the credentials it was first used with.
        client = boto3.Session().client("ec2", region_name=zone.rstrip("abcdefghijklmnopqrstuvwxyz"), config=brief)
        answer = client.describe_spot_price_history(
            InstanceTypes=[instance_type],
            AvailabilityZone=zone,
            ProductDescriptions=[PRODUCT],
            StartTime=datetime.now(UTC),  # a start of now gives the price that holds now
        )
        prices = sorted(answer["SpotPriceHistory"], key=lambda entry: entry["Timestamp"])
        return float(prices[-1]["SpotPrice"]) if prices else None
    except (BotoCoreError, ClientError, ResponseParserError, ValueError):
        return None
