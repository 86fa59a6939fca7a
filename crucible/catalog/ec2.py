"""EC2's spot market: what a machine costs in its zone now, and whether spot machines are available.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/using-spot-instances-history.html
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-placement-score.html
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from crucible.catalog.offers import Offer
from crucible.errors import CrucibleError

PRODUCT = "Linux/UNIX"
TIMEOUT_SECONDS = 3
_LIKELY, _UNLIKELY = 7, 3
_FEWEST_TYPES = 3


class PriceUnavailable(CrucibleError):
    """AWS gave no spot price; the message names the machine, the zone and the reason."""


def region_of(zone: str) -> str:
    """The region of an availability, local or Wavelength zone.

    >>> [region_of(zone) for zone in ("us-east-1b", "us-west-2-lax-1a", "us-gov-west-1c", "us-east-1-wl1-bos-wlz-1")]
    ['us-east-1', 'us-west-2', 'us-gov-west-1', 'us-east-1']
    """
    found = re.match(r"[a-z]+(?:-[a-z]+)+-\d+", zone)
    return found[0] if found else zone


def spot_price(instance_type: str, zone: str) -> float:
    """USD per hour of that type on that zone's spot market now.

    Needs the permission ec2:DescribeSpotPriceHistory, which the stack's TaskRole has.

    Raises:
        PriceUnavailable: no credentials, no network, no permission, or no price on record.
    """
    what = f"the spot price of {instance_type} in {zone} is not available"
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError
    except ImportError as error:
        raise PriceUnavailable(f"{what}: {error.name} is not installed") from error
    try:
        # A session of its own: the shared one keeps the credentials it was first used with.
        client = boto3.Session().client("ec2", region_name=region_of(zone), config=_brief())
        request = {"InstanceTypes": [instance_type], "AvailabilityZone": zone}
        entries = sorted(price_history(client, request, datetime.now(UTC)), key=lambda entry: entry["Timestamp"])
        return float(entries[-1]["SpotPrice"])
    except IndexError:
        raise PriceUnavailable(f"{what}: AWS has no price on record") from None
    except (BotoCoreError, ClientError, ResponseParserError, ValueError) as error:
        raise PriceUnavailable(f"{what}: {' '.join(str(error).split())}") from error


def price_history(client: Any, request: dict[str, Any], now: datetime) -> Iterator[dict[str, Any]]:
    """The spot prices in force `now`, over all pages: a page may be empty and still have a successor."""
    pages = client.get_paginator("describe_spot_price_history")
    # A start of now gives the price that is in force now.
    for page in pages.paginate(**request, ProductDescriptions=[PRODUCT], StartTime=now):
        yield from page["SpotPriceHistory"]


def spot_capacity(offers: Sequence[Offer]) -> dict[str, bool]:
    """By machine type of the pool `ec2-spot`: whether one is likely to be available; unknown types are left out.

    EC2's placement scores range from 1 (unlikely) to 10 (very likely) and promise nothing. They are meaningful for
    three types or more together, so all sizes with the same GPU are asked for at once.

    Needs the permission ec2:GetSpotPlacementScores. Never raises: what AWS does not answer is left out.
    """
    spot = [offer for offer in offers if offer.pool == "ec2-spot" and offer.gpu]
    if not spot:
        return {}
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError
    except ImportError:
        return {}

    known: dict[str, bool] = {}
    try:
        session = boto3.Session()
        where = os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
        client = session.client("ec2", region_name=where, config=_brief())
        for gpu in dict.fromkeys(offer.gpu for offer in spot):
            types = sorted({offer.instance for offer in spot if offer.gpu == gpu})
            request = {"InstanceTypes": types, "TargetCapacity": 1, "RegionNames": [where]}
            pages = client.get_paginator("get_spot_placement_scores").paginate(**request)
            scores = [entry["Score"] for page in pages for entry in page.get("SpotPlacementScores", [])]
            if scores and max(scores) >= _LIKELY:
                known |= dict.fromkeys(types, True)
            elif scores and max(scores) <= _UNLIKELY and len(types) >= _FEWEST_TYPES:
                known |= dict.fromkeys(types, False)
    except (BotoCoreError, ClientError, ResponseParserError, ValueError):  # ValueError: AWS_ENDPOINT_URL is no URL
        return known
    return known


def _brief() -> Any:
    """One request with short timeouts: an attempt or a form must not wait for a price."""
    from botocore.config import Config

    return Config(connect_timeout=TIMEOUT_SECONDS, read_timeout=TIMEOUT_SECONDS, retries={"total_max_attempts": 1})
