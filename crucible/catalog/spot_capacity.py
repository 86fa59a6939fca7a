"""Whether spot machines are to be had now, from EC2's spot placement scores; asked only with AWS credentials.

A score says how likely a request is to be met, from 1 (not likely) to 10 (very); it is no promise. AWS answers well for
three types or more together, so all sizes with the same GPU are asked about at once. Modal has nothing to ask.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-placement-score.html
"""

from __future__ import annotations

from collections.abc import Sequence

from crucible.catalog.offers import Offer
from crucible.catalog.prices import why_not_asked

_LIKELY, _UNLIKELY = 7, 3
_FEWEST_TYPES = 3
_TIMEOUT_SECONDS = 3


def spot_capacity(offers: Sequence[Offer], region: str | None = None) -> dict[str, bool]:
    """By machine type of the pool `ec2-spot`: whether one is likely to be had; types that nobody knows of are left out.

    Needs the permission ec2:GetSpotPlacementScores. Never raises: what cannot be asked is not known.
    """
    spot = [offer for offer in offers if offer.pool == "ec2-spot" and offer.gpu]
    if not spot or why_not_asked("ec2-spot") is not None:
        return {}
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    known: dict[str, bool] = {}
    brief = Config(connect_timeout=_TIMEOUT_SECONDS, read_timeout=_TIMEOUT_SECONDS, retries={"total_max_attempts": 1})
    try:
        session = boto3.Session()
        where = region or session.region_name or "us-east-1"
        client = session.client("ec2", region_name=where, config=brief)
        for gpu in dict.fromkeys(offer.gpu for offer in spot):
            types = sorted({offer.instance for offer in spot if offer.gpu == gpu})
            answer = client.get_spot_placement_scores(InstanceTypes=types, TargetCapacity=1, RegionNames=[where])
            scores = [entry["Score"] for entry in answer.get("SpotPlacementScores", [])]
            if scores and max(scores) >= _LIKELY:
                known |= dict.fromkeys(types, True)
            elif scores and max(scores) <= _UNLIKELY and len(types) >= _FEWEST_TYPES:
                known |= dict.fromkeys(types, False)
    except (BotoCoreError, ClientError, ResponseParserError):
        return known
    return known
