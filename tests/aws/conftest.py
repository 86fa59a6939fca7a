"""One rehearsed AWS with the real stack in it, shared by the tests here; each leaves it without tasks or faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from crucible.aws.session import Aws
from crucible.aws.stack import StackState
from crucible.local.state import PROJECT
from crucible.rehearsal.aws.client import AwsRehearsal

PARAMETERS = {
    "BudgetEmail": "someone@example.com",
    "Owner": "tests",
    "MaxSpotInstances": "3",
    "MaxOnDemandInstances": "2",
}


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsRehearsal]:
    folder = tmp_path_factory.mktemp("aws")
    with AwsRehearsal.start(
        folder,
        working_directory=PROJECT,
        boot_seconds=0.1,
        idle_seconds=2.0,
        provisioning_seconds=3.0,
        shutdown_seconds=0.5,
        detect_seconds=0.1,
    ) as aws:
        yield aws


@pytest.fixture(scope="session")
def stack_state(cloud: AwsRehearsal) -> StackState:
    return cloud.deploy(parameters=PARAMETERS)


@pytest.fixture
def aws(cloud: AwsRehearsal, stack_state: StackState) -> Aws:
    return cloud.session()
