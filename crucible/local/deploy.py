"""`python -m crucible.local.deploy --no-prompt deploy --all`: register the blocks, then do what `prefect …` would do.

One process for both, because importing Prefect takes longer than either; and not the process of `crucible up`, which
can do without that import when nothing has changed since the last time.
"""

from __future__ import annotations

import importlib
import pkgutil
import runpy
from pathlib import Path

import yaml
from prefect.blocks.core import Block
from prefect.cli import app

import blocks
from blocks.store import Store
from crucible.store import default_store_uri


def register_blocks() -> None:
    """Register every block type of the `blocks` folder, and save the default store where none is saved yet."""
    for info in pkgutil.iter_modules(blocks.__path__):
        module = importlib.import_module(f"blocks.{info.name}")
        for value in vars(module).values():
            # Not the block classes of Prefect that a module imports to build on.
            if isinstance(value, type) and issubclass(value, Block) and not value.__module__.startswith("prefect"):
                value.register_type_and_schema()
    try:
        Store.load("default")
    except ValueError:  # not there: a store that the user has configured is left alone
        Store(root=default_store_uri()).save("default")


def load_flows() -> None:
    """Run every file that prefect.yaml names, so that a broken one says why: Prefect would only say "not found"."""
    deployments = yaml.safe_load(Path("prefect.yaml").read_text())["deployments"]
    for path in sorted({deployment["entrypoint"].rpartition(":")[0] for deployment in deployments}):
        runpy.run_path(path)


if __name__ == "__main__":
    load_flows()
    register_blocks()
    app()  # Prefect's command line takes its arguments from ours
