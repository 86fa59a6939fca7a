"""What sandboxes have cost by Modal's own figures, summed by the values of a tag."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import modal

from crucible.errors import ConfigError
from crucible.pools.modal.sandboxes import explained

LONGEST = timedelta(days=7)
"""Modal answers for seven days at most, in whole hours of UTC."""


async def billed_by_tag(
    tag: str, app_name: str = "crucible", since: datetime | None = None, client: modal.Client | None = None
) -> dict[str, float]:
    """Dollars by value of a tag, for all sandboxes of an App since an hour; "" stands for sandboxes without the tag.

    Modal's figures are late by minutes. A naive `since` is taken for UTC.

    Raises:
        ConfigError: `since` is more than seven days ago.
        ModalFailure: Modal does not answer, or refuses.
    """
    now = datetime.now(UTC)
    start = (now - LONGEST + timedelta(hours=1)) if since is None else since.replace(tzinfo=since.tzinfo or UTC)
    if now - start > LONGEST:
        raise ConfigError(f"since: {since} is too long ago; Modal sums up the last seven days")
    start = start.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    with explained():
        app = await modal.App.lookup.aio(app_name, client=client)
        groups = app.sandboxes.stats.aio(since=start, group_by_tags=[tag])
        return {group.tags.get(tag) or "": float(group.cost or 0) async for group in groups}
