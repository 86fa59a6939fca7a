from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

import pytest

from crucible.jobs.records import EndReason
from crucible.jobs.status import JobState
from crucible.reports import Metrics, job_report, merged_metrics
from crucible.reports.compare import compare, comparison_page
from crucible.reports.curve import points_of, small_curve, sparkline
from crucible.reports.overview import OverviewReader
from crucible.reports.overview_page import overview_page
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


WRITTEN = [
    '{"step": true, "train_loss": 1.0}',
    f'{{"step": 1{"0" * 400}, "train_loss": 1.0}}',
    f'{{"step": 10, "time": 1{"0" * 400}, "train_loss": 1{"0" * 400}, "val_loss": NaN, "attempt": 99}}',
    f'{{"step": 20, "time": Infinity, "train_loss": 1{"0" * 400}, "gpu_utilisation_percent": 1{"0" * 400}}}',
    '{"step": 30, "time": NaN, "train_loss": Infinity}',
    '{"step": 40, "time": 1e308, "train_loss": 2.0}',
    '{"step": 50, "time": 0, "train_loss": -Infinity}',
]


def test_whatever_a_workload_writes_every_page_shows_the_rest(store: Store, tmp_path: Path) -> None:
    past = Past(store, tmp_path, now=datetime.now(UTC))
    past.attempt(0, 0, []).append_metrics(1, "\n".join(WRITTEN).encode())
    past.status(JobState.RUNNING)

    rows = Metrics(past.job).rows()
    assert [(row["step"], row["attempt"], row.get("time")) for row in rows] == [
        (10, 1, None),
        (20, 1, None),
        (30, 1, None),
        (40, 1, None),
        (50, 1, 0),
    ]
    assert "train_loss" not in rows[0]
    assert math.isnan(rows[0]["val_loss"])
    assert "**Running**" in job_report(past.job)
    assert comparison_page(compare([past.job, past.job]))
    assert "**1 job running**" in overview_page(OverviewReader(store).read())
    assert len(merged_metrics(past.job)) == 5


def test_a_loss_near_the_largest_number_leaves_a_gap_in_the_small_curve() -> None:
    rows = [{"step": step, "train_loss": 1.7e308 if step > 50 else 2.0} for step in range(1, 101)]

    assert sparkline(points_of(rows)) == "▁" * 13
    assert small_curve(points_of(rows))
