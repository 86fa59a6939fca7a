"""How many of the machines that a pool has started train, and how many are paid for."""

from __future__ import annotations

import pytest

from crucible.config import TrainConfig
from crucible.errors import ConfigError
from crucible.jobs.records import JobSpec, Launch
from crucible.resources import Resources
from tasks.machine import Machine
from tasks.nodes import first_node


@pytest.mark.parametrize(("granted", "used"), [("4", 4), ("3", 2), ("2", 2)])
def test_as_many_of_a_range_train_as_were_granted_and_share_a_steps_rows(
    monkeypatch: pytest.MonkeyPatch, granted: str, used: int
) -> None:
    config = TrainConfig(batch_size=8, gradient_accumulation_steps=1)
    spec = JobSpec(job_id="range", config=config, resources=Resources(nodes="2..4", gpus=0))
    monkeypatch.setenv("CRUCIBLE_NODES", granted)
    nodes = first_node(spec, "slurm")
    assert nodes.count == used
    launch = Launch(number=1, pool="slurm", reason="test", nodes=4, usd_per_hour=8.0)
    assert Machine({}).claim(1, launch, nodes).usd_per_hour == 2.0 * int(granted), "Slurm holds the others as well"
    monkeypatch.setenv("CRUCIBLE_NODES", "1")
    with pytest.raises(ConfigError, match=r"nodes = 2\.\.4: the pool slurm has started 1"):
        first_node(spec, "slurm")
