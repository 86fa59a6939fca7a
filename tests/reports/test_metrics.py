from __future__ import annotations

from pathlib import Path

import pytest

from crucible.jobs.records import EndReason
from crucible.reports import Metrics, merged_metrics
from crucible.store import Store
from tests.reports.history import Past, interrupted_twice, loss


def test_a_resumed_attempt_replaces_the_steps_that_were_lost_and_only_those(store: Store, tmp_path: Path) -> None:
    frame = merged_metrics(interrupted_twice(store, tmp_path).job)

    assert list(frame["step"]) == list(range(10, 2001, 10))
    by_step = frame.set_index("step")
    # The second attempt reported to step 1300, half a nat too high; the third resumed from 1200.
    assert by_step.loc[1200, "attempt"] == 2
    assert by_step.loc[1200, "train_loss"] == pytest.approx(loss(1200) + 0.5)
    assert by_step.loc[1210, "attempt"] == 3
    assert by_step.loc[1210, "train_loss"] == pytest.approx(loss(1210))


def test_lost_steps_are_gone_before_they_are_trained_again(store: Store, tmp_path: Path) -> None:
    past = Past(store, tmp_path)
    past.end(past.attempt(0, 300, [100]), EndReason.KILLED, "out of memory")
    past.attempt(100, 150, [])

    assert list(merged_metrics(past.job)["step"]) == list(range(10, 151, 10))


def test_lines_about_the_same_step_become_one_row(store: Store, tmp_path: Path) -> None:
    frame = merged_metrics(interrupted_twice(store, tmp_path).job).set_index("step")

    assert {"train_loss", "val_loss", "tokens_per_second"} <= set(frame.columns)
    assert list(frame["val_loss"].dropna().index) == list(range(250, 2001, 250))
    assert frame.loc[250, "train_loss"] == pytest.approx(loss(250))


def test_what_is_told_of_a_step_later_does_not_move_it_in_time(store: Store, tmp_path: Path) -> None:
    past = Past(store, tmp_path)
    attempt = past.attempt(0, 20, [])
    before = Metrics(past.job).rows()

    attempt.append_metrics(9, b'{"step": 10, "time": 9e9, "checkpoint_write_seconds": 2.0}\n')

    assert Metrics(past.job).rows() == [before[0] | {"checkpoint_write_seconds": 2.0}, before[1]]


def test_kept_metrics_read_only_what_is_new(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    past = interrupted_twice(store, tmp_path)
    metrics = Metrics(past.job)
    assert metrics.rows()[-1]["step"] == 2000
    read: list[str] = []
    original = type(past.job.store).read
    monkeypatch.setattr(
        type(past.job.store), "read", lambda self, key: (read.append(key), original(self, key))[1], raising=True
    )

    past.job.attempt(3).append_metrics(99, b'{"step": 2010, "train_loss": 1.0}\n')

    assert metrics.rows()[-1]["step"] == 2010
    assert [key for key in read if "/metrics/" in key] == ["attempts/0003/metrics/000099.jsonl"]


def test_a_job_without_attempts_has_an_empty_history(store: Store, tmp_path: Path) -> None:
    frame = merged_metrics(Past(store, tmp_path).job)

    assert list(frame.columns) == ["step", "attempt", "time"]
    assert frame.empty
