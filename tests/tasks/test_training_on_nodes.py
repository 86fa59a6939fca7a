"""Two nodes of this machine train with Crucible's trainer under torchrun: real processes, real gloo."""

from __future__ import annotations

from pathlib import Path

import pytest

from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.manifest import Checkpoint
from crucible.jobs.records import EndReason
from tests.tasks.training_on_nodes import ENDLESS, STEPS, death_step, new_job, rows_of_steps, run

pytestmark = pytest.mark.slow


def weights(checkpoint: Checkpoint) -> str:
    return next(file.sha256 for file in checkpoint.files if file.name == "model.safetensors")


def test_a_node_that_dies_costs_time_and_no_bit(tmp_path: Path) -> None:
    step = death_step()
    killed = new_job(tmp_path / "killed", max_iters=ENDLESS, checkpoint_interval_seconds=0.1)
    first = run(killed, 1, 2, tmp_path / "killed", kill_at=step)
    assert (first.end_reason, first.step) == (EndReason.INTERRUPTED, step)
    assert "node 1" in first.message
    last = first.committed_step + 20
    assert run(killed, 2, 2, tmp_path / "killed", stop_at=last).end_reason is EndReason.PAUSED

    undisturbed = new_job(tmp_path / "undisturbed", max_iters=ENDLESS)
    assert run(undisturbed, 1, 2, tmp_path / "undisturbed", stop_at=last).end_reason is EndReason.PAUSED
    one, other = (Checkpoints(job).list()[0] for job in (undisturbed, killed))
    assert (one.step, other.step) == (last, last)
    assert weights(one) == weights(other)
    print(f"went on from step {first.committed_step}; at step {last} both have weights {weights(one)[:12]}")


def test_from_two_nodes_to_one_and_back_the_data_stays(tmp_path: Path) -> None:
    # Dropout is drawn in each process: without it only rounding differs.
    undisturbed = new_job(tmp_path / "undisturbed", dropout=0.0)
    assert run(undisturbed, 1, 2, tmp_path / "undisturbed").end_reason is EndReason.COMPLETED

    changing = new_job(tmp_path / "changing", dropout=0.0)
    for number, (nodes, stop_at, end) in enumerate(
        [(2, 13, EndReason.PAUSED), (1, 26, EndReason.PAUSED), (2, None, EndReason.COMPLETED)], 1
    ):
        assert run(changing, number, nodes, tmp_path / "changing", stop_at=stop_at).end_reason is end

    rows = rows_of_steps(tmp_path / "undisturbed")
    assert sorted(rows) == list(range(STEPS))
    assert rows_of_steps(tmp_path / "changing") == rows
    losses = [Checkpoints(job).list()[0].state["val_loss"] for job in (undisturbed, changing)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
