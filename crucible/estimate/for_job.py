"""`pool = auto`: the recommendation for a job that is about to start, from its real configuration and dataset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from crucible.catalog.offers import Offer, load_catalog
from crucible.catalog.this_machine import with_own_machine
from crucible.config import TrainConfig
from crucible.datasets.meta import DatasetMeta
from crucible.errors import ConfigError
from crucible.estimate import history
from crucible.estimate.needs import Needs, needs_of
from crucible.estimate.ranking import PoolState, Preferences, Recommendation, recommend, why_nothing_fits
from crucible.store import Store


def recommend_for(
    store: Store,
    config: TrainConfig,
    meta: DatasetMeta,
    preferences: Preferences,
    pools: Mapping[str, PoolState] | None = None,
    only_ready: bool = True,
    own_offers: Path | None = None,
) -> Recommendation:
    """Rank the offers whose pool can take the job now (`only_ready`), with the speeds remembered in `store`.

    Raises:
        ConfigError: nothing fits, with the most frequent reasons; an offers file that cannot be read.
    """
    offers = with_own_machine(load_catalog(own_offers))
    found = recommend(
        job_needs(config, meta),
        offers,
        preferences,
        history.speeds(store),
        pools=pools,
        only_ready=only_ready and pools is not None,
    )
    if found.best is None:
        raise ConfigError(why_nothing_fits(found))
    return found


def job_needs(config: TrainConfig, meta: DatasetMeta) -> Needs:
    """What a run of `config` on the dataset needs."""
    return needs_of(
        config,
        meta.vocab_size,
        dataset_bytes=meta.tokens * meta.token_bytes,
        val_tokens=meta.splits["val"].tokens,
    )


def offer_at(offers: list[Offer], pool: str, instance: str) -> Offer | None:
    """The offer an attempt ran on; own machines are recorded without a type."""
    for offer in offers:
        if offer.pool == pool and (offer.instance == instance or offer.own_machine):
            return offer
    return None
