"""What Prefect loads to know the worker type `crucible-ecs`; empty where the `aws` extra is not installed."""

from importlib.util import find_spec

if find_spec("prefect_aws"):
    from crucible.pools.aws.worker import EcsWorker as EcsWorker
