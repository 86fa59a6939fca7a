"""Preprocessing as tasks: plan once, one mapped task per shard, finish."""

from __future__ import annotations

import time
from collections.abc import Callable
from logging import Logger, LoggerAdapter
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task, unmapped
from prefect.artifacts import create_markdown_artifact

from crucible.datasets import build
from crucible.datasets.config import DatasetConfig
from crucible.datasets.disk import work_folder
from crucible.datasets.finished import DatasetInfo
from crucible.datasets.meta import ShardMeta
from crucible.datasets.progress import Progress, Stop
from crucible.formatting import markdown_table
from crucible.store import Store
from tasks.retries import NETWORK_RETRIES, quoted

PROGRESS_SECONDS = 10.0
"""Time between two log lines of a long step."""


def prepare_dataset(config: DatasetConfig, store: Store) -> DatasetInfo:
    """Make the dataset, or find it in the store; call from any flow. Raises what `build_dataset` raises.

    Shards are mapped over the flow's task runner; an artifact says what came out.
    """
    logger = get_run_logger()
    with work_folder() as work:
        planned = plan_dataset(quoted(config), quoted(store), work)
        if planned.built is not None:
            info = planned.built
        else:
            names = [item.name for item in planned.items]
            logger.info("%d shard(s) to tokenize", len(names))
            stop = Stop()
            meter = build.Meter(planned, stop.watched(_logged(logger)))
            with stop.on_error():  # a cancelled run must not wait for shards that nobody wants
                futures = build_shard.map(
                    names,
                    planned=unmapped(quoted(planned)),
                    store=unmapped(quoted(store)),
                    meter=unmapped(quoted(meter)),
                )
                shards = futures.result()
            info = finish_dataset(quoted(planned), shards, quoted(store))
    logger.info(
        "%s dataset %s: %s, %s tokens",
        "cached:" if info.cached else "built",
        info.digest,
        info.meta.source_name(),
        f"{info.meta.tokens:,}",
    )
    report_dataset(info)
    return info


@task(name="plan dataset", task_run_name="plan", persist_result=False, **NETWORK_RETRIES)
def plan_dataset(config: DatasetConfig, store: Store, work: Path) -> build.Plan:
    """Find the dataset in the store, or make its text local, read it and cut it into shards."""
    return build.plan(config, store, work, _logged(get_run_logger()))


@task(name="build shard", task_run_name="{name}", persist_result=False, **NETWORK_RETRIES)
def build_shard(name: str, planned: build.Plan, store: Store, meter: build.Meter) -> ShardMeta:
    """Tokenize one shard and upload it."""
    item = next(item for item in planned.items if item.name == name)
    shard = build.build_shard(planned, item, store, meter)
    get_run_logger().info("%s: %s tokens from %s bytes of text", name, f"{shard.tokens:,}", f"{item.length:,}")
    return shard


@task(name="finish dataset", task_run_name="finish", persist_result=False, **NETWORK_RETRIES)
def finish_dataset(planned: build.Plan, shards: list[ShardMeta], store: Store) -> DatasetInfo:
    """Write the tokenizer and meta.json: from here on the dataset exists."""
    return build.finish(planned, shards, store)


def report_dataset(info: DatasetInfo) -> None:
    """Show the dataset in the Prefect UI, as an artifact of the current run."""
    meta = info.meta
    shards = [shard for split in meta.splits.values() for shard in split.shards]
    rows = {
        "digest": f"`{info.digest}`",
        "source": meta.source_name(),
        "tokenizer": meta.tokenizer.kind,
        "vocabulary": f"{meta.vocab_size:,}",
        **{
            f"{name} tokens": f"{split.tokens:,} (from {split.bytes:,} bytes, {split.bytes / split.tokens:.2f} a token)"
            for name, split in meta.splits.items()
        },
        "shards": f"{len(shards)}, {meta.tokens * meta.token_bytes:,} bytes of {meta.dtype}",
        "where": f"`{info.uri}`",
        "state": "cached: it was there already" if info.cached else "built by this run",
    }
    if meta.tokenizer.replaced_characters:
        rows["replaced"] = f"{meta.tokenizer.replaced_characters:,} rare characters became U+FFFD"
    table = markdown_table(["dataset", ""], list(rows.items()))
    create_markdown_artifact(table, key=f"dataset-{info.digest[:12]}", description=f"Dataset {info.digest}")


def _logged(logger: Logger | LoggerAdapter[Any]) -> Callable[[Progress], None]:
    """A progress callback that logs at a readable rate."""
    last = time.monotonic()

    def log(state: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_SECONDS:
            last = time.monotonic()
            share = f" of {state.total / 1e6:,.0f} ({state.done / state.total:.0%})" if state.total else ""
            logger.info("%s: %s MB%s", state.stage, f"{state.done / 1e6:,.0f}", share)

    return log
