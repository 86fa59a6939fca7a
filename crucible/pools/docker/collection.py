"""What Prefect loads to know the worker type `docker-gpu`; empty where the `docker` extra is not installed."""

from importlib.util import find_spec

if find_spec("prefect_docker"):
    from crucible.pools.docker.worker import DockerGpuWorker as DockerGpuWorker
