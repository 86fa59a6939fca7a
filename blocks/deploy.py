"""`python -m blocks.deploy --no-prompt deploy --all`: make the pool, register the blocks, then run `prefect …`.

One process for all of it, because importing Prefect takes longer than the rest; and not the process of `crucible up`,
which needs no such import when nothing has changed since the last time.
"""

from __future__ import annotations

import importlib
import pkgutil
import runpy
from pathlib import Path

import httpx
import yaml
from prefect.blocks.core import Block
from prefect.cli import app
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

import blocks
from blocks.store import Store
from crucible.local.provision import ensure_pool
from crucible.store import default_store_uri


def make_pool() -> None:
    """Make sure that the server which Prefect's settings name has the pool `local`."""
    user, _, password = (PREFECT_API_AUTH_STRING.value() or "").partition(":")
    with httpx.Client(base_url=PREFECT_API_URL.value(), auth=(user, password), timeout=30) as api:
        ensure_pool(api)


def register_blocks() -> None:
    """Register every block type of this folder, and save the default store where none is saved yet."""
    for info in pkgutil.iter_modules(blocks.__path__):
        if info.name == "deploy":
            continue
        module = importlib.import_module(f"blocks.{info.name}")
        for value in vars(module).values():
            # Without Prefect's own block classes, which a module imports to build on.
            if isinstance(value, type) and issubclass(value, Block) and not value.__module__.startswith("prefect"):
                value.register_type_and_schema()
    try:
        Store.load("default")
    except ValueError:  # not there; a store that the user has configured stays as it is
        Store(root=default_store_uri()).save("default")


def load_flows() -> None:
    """Run every file that prefect.yaml names, so that a broken one shows its error: Prefect reports "not found"."""
    deployments = yaml.safe_load(Path("prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    for path in sorted({deployment["entrypoint"].rpartition(":")[0] for deployment in deployments}):
        runpy.run_path(path)


if __name__ == "__main__":
    load_flows()
    make_pool()
    register_blocks()
    app()  # Prefect's command line takes its arguments from ours
