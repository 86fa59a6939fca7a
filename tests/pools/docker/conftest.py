"""A Docker engine for the tests: the one that answers, or one started for them where the tests run as root."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from crucible.errors import ServiceError
from crucible.pools.docker.images import Recipe, build
from crucible.rehearsal.docker_engine import OwnEngine, an_engine


@pytest.fixture(scope="session")
def engine() -> Iterator[OwnEngine | None]:
    """An engine answers; the value is it if it may be killed. `DOCKER_TESTS=required` makes its absence a failure."""
    folder = Path(tempfile.mkdtemp(prefix="cru-"))  # a socket's path must be short
    before = os.environ.get("DOCKER_HOST")
    try:
        started = an_engine(folder)
    except ServiceError as error:
        if os.environ.get("DOCKER_TESTS") == "required":
            raise
        pytest.skip(f"NOT TESTED, no Docker engine answers and none can be started here: {error}")
    try:
        yield started or OwnEngine.in_use()
    finally:
        if started:
            started.stop()
            os.environ.pop("DOCKER_HOST") if before is None else os.environ.update(DOCKER_HOST=before)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def image(engine: OwnEngine | None) -> str:
    """The CPU image of the tree as it is."""
    return build(Recipe("cpu"), print)
