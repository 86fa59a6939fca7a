"""`python -m crucible.pools.aws worker start --pool ec2-spot --type crucible-ecs`: `prefect`, with our worker type."""

from __future__ import annotations

import sys

from prefect.cli import app

import crucible.pools.aws.worker  # noqa: F401 - registers the type, also where the package's metadata is older

if __name__ == "__main__":
    sys.argv[0] = "prefect"
    app()
