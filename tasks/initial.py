"""The configuration of a job that starts from weights that exist."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prefect.logging import get_run_logger

from crucible.checkpoints.initial import carry_in, tokenizer_of
from crucible.config import ConfigDraft, TrainConfig
from crucible.datasets.disk import work_folder
from crucible.datasets.meta import DatasetMeta
from crucible.store import Store
from crucible.training.initial_source import Source, settled


@dataclass(frozen=True)
class Settled:
    """A complete configuration; `init_from` in it is an address in the store."""

    config: TrainConfig
    init_source: str = ""
    """`init_from` as a person gave it."""
    require_dataset: Callable[[DatasetMeta], None] = lambda meta: None
    """Raises `ConfigError` for a dataset whose tokens are not those of the weights."""
    require_shape: Callable[[Mapping[str, Any]], object] = lambda values: None
    """Raises `ConfigError` for values of a sweep's trial that contradict the weights."""


def settle(draft: ConfigDraft, store: Store, recorded: tuple[TrainConfig | None, str] = (None, "")) -> Settled:
    """Complete a configuration with the shape of the weights it starts from, which are in the store afterwards.

    `recorded`: the configuration and the `init_source` that are on record already. The weights are not looked at again
    then: the file may have changed or gone since. Raises what `carry_in` raises, and `ConfigError` for values that
    contradict the weights.
    """
    config, source = recorded
    if draft.remark:
        get_run_logger().warning(draft.remark)
    if (text := draft.init_from) is None:
        return Settled(draft.config())
    if config is not None and text == source:
        taken = settled(config.model_dump(), Source.parse(text).resume)
        values = {**draft.base, **taken, **draft.stated, "init_from": config.init_from}
        return Settled(TrainConfig.parse(values, draft.source), source)
    logger = get_run_logger()
    with work_folder() as work:
        address, initial = carry_in(store, text, work, logger.info)
    values = {**initial.settings(draft.base, draft.stated), "init_from": address}
    complete = TrainConfig.parse(values, draft.source)
    initial.require_steps_left(complete)
    for remark in initial.remarks:
        logger.info(remark)
    light = initial.light()  # the flow goes on for as long as the training
    tokenizer = tokenizer_of(store, text)

    def require_dataset(meta: DatasetMeta) -> None:
        light.require_vocabulary(meta.vocab_size)
        if tokenizer is not None:
            tokenizer.require_same(meta)

    return Settled(complete, text, require_dataset, lambda values: light.settings({}, values))
