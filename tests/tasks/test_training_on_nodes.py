"""Two nodes of this machine train with Crucible's trainer under torchrun: real processes, real gloo."""

from __future__ import annotations

from pathlib import Path

import pytest

from crucible.checkpoints.commits import Checkpoints
from crucible.jobs.records import EndReason
from tests.tasks.training_on_nodes import ENDLESS, STEPS, Death, new_job, require_same_weights, rows_of_steps, run

pytestmark = pytest.mark.slow


def test_a_node_that_dies_costs_time_and_no_bit(tmp_path: Path) -> None:
    death = Death.planned(tmp_path)
    killed = new_job(tmp_path / "killed", max_iters=ENDLESS, checkpoint_interval_seconds=0.1)
    first = run(killed, 1, 2, tmp_path / "killed", death=death)
    assert (first.end_reason, first.step) == (EndReason.INTERRUPTED, death.step)
    assert "node 1" in first.message
    last = first.committed_step + 20
    assert run(killed, 2, 2, tmp_path / "killed", stop_at=last).end_reason is EndReason.PAUSED

    undisturbed = new_job(tmp_path / "undisturbed", max_iters=ENDLESS)
    assert run(undisturbed, 1, 2, tmp_path / "undisturbed", stop_at=last).end_reason is EndReason.PAUSED
    require_same_weights(undisturbed, killed, last, death)


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
