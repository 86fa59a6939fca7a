"""Preprocess a text into token shards.

    python -m flows.preprocess

The same text and options are never tokenized twice: the second run finds the first one's dataset in the store.
"""

from __future__ import annotations

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from crucible.datasets.config import DatasetConfig
from tasks.console import outlive_the_console
from tasks.datasets import prepare_dataset
from tasks.machine import machine_tags
from tasks.observing import add_tags
from tasks.stopping import stop_with_the_container
from tasks.storage import open_store


@flow(
    name="preprocess",
    flow_run_name="preprocess {dataset.label}",
    # tiktoken and hashing run outside the GIL: two shards at once take 1/1.55 of the time on two cores.
    task_runner=ThreadPoolTaskRunner(max_workers=2),  # type: ignore[arg-type]  # Prefect's hint is invariant
)
def preprocess(dataset: DatasetConfig = DatasetConfig(), store: str = "default") -> str:
    """Make a dataset in the store and return its digest.

    Args:
        dataset: Which text, and how it becomes tokens.
        store: Name of a Store block, or an address (file://…, s3://…).
    """
    outlive_the_console()
    stop_with_the_container()
    add_tags("stage:preprocess", *machine_tags())
    return prepare_dataset(dataset, open_store(store)).digest


if __name__ == "__main__":
    preprocess()
