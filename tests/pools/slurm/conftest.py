"""A real Slurm on this machine for the tests: Debian's packages, installed where the tests run as root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from crucible.errors import ServiceError
from crucible.rehearsal.slurm.cluster import LocalCluster

KILL_WAIT_SECONDS = 4


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Two idle nodes. `SLURM_TESTS=required` makes their absence a failure."""
    made = LocalCluster(tmp_path_factory.mktemp("slurm"), kill_wait_seconds=KILL_WAIT_SECONDS)
    try:
        made.start()
    except ServiceError as error:
        if os.environ.get("SLURM_TESTS") == "required":
            raise
        pytest.skip(f"NOT TESTED, no Slurm can be started here: {error}")
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in made.environment.items():
                patch.setenv(name, value)
            yield made
    finally:
        made.stop()


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"
