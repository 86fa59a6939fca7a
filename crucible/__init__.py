"""Crucible: training runs that survive the cloud."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crucible.sweeps import Sweep

__version__ = "0.1.0"


def sweep(sweep_id: str, store: str | None = None) -> Sweep:
    """A sweep to look at: `crucible.sweep("tune-3f2a91c0").trials()` is its leaderboard as a pandas DataFrame.

    `store` is an address (`file://…`, `s3://…`); without one it is the default store. Raises `ConfigError` when there
    is no such sweep.
    """
    from crucible.store import default_store_uri, store_at
    from crucible.sweeps import Sweep

    return Sweep.open(store_at(store or default_store_uri()), sweep_id)
