from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from crucible.cli.main import build_app
from crucible.errors import CheckpointError, ConfigError
from crucible.jobs.records import EndReason
from crucible.jobs.status import JobState
from crucible.placement.choice import Choice, remember_choice
from crucible.store import Store
from tests.reports.history import Past, interrupted_twice

Run = Callable[..., Any]


def test_ls_lists_jobs_newest_first(run: Run, store: Store, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    assert "no jobs" in run("jobs", "ls")
    interrupted_twice(store, tmp_path)
    Past(store, tmp_path, "another")

    listed = {entry["job"]: entry for entry in run("jobs", "ls", "--json")}

    assert set(listed) == {"another", "shakespeare"}
    assert listed["shakespeare"]["state"] == "completed"
    assert listed["shakespeare"]["attempts"] == 3
    assert listed["shakespeare"]["val_loss"] == pytest.approx(1.6175, abs=1e-4)
    assert listed["another"]["state"] is None
    assert "2,000 of 2,000" in run("jobs", "ls")


@pytest.mark.parametrize(
    "record",
    [
        "limits/0001.json",
        "attempts/0002/launch.json",
        "attempts/0002/claim.json",
        "attempts/0002/start.json",
        "attempts/0002/heartbeat.json",
        "attempts/0002/outcome.json",
        "status.json",
        "supervisors/0001.json",
    ],
)
def test_show_names_a_damaged_record_and_shows_the_rest(record: str, store: Store, tmp_path: Path) -> None:
    interrupted_twice(store, tmp_path)
    path = tmp_path / "store" / "jobs" / "shakespeare" / record
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"torn": ')

    result = CliRunner().invoke(build_app(), ["jobs", "show", "shakespeare", "--store", store.uri])

    assert result.exit_code == 0, result.output
    assert f"{record} is damaged" in result.stderr
    assert "of 2,000" in result.stdout


def test_show_tells_where_a_job_stands_and_what_every_attempt_lost(run: Run, store: Store, tmp_path: Path) -> None:
    interrupted_twice(store, tmp_path)

    shown = run("jobs", "show", "shakespeare", "--json")

    assert [attempt["steps_lost"] for attempt in shown["attempts"]] == [0, 100, 0]
    assert shown["spec"]["config"]["n_layer"] == 4
    text = run("jobs", "show", "shakespeare")
    assert "600 → 1,300" in text
    assert "lost (no sign of life)" in text
    assert "(s)" not in text, "1 checkpoint, 2 checkpoints"


def test_show_tells_the_deadline_of_the_run_that_decides(run: Run, store: Store, tmp_path: Path) -> None:
    past = interrupted_twice(store, tmp_path)
    assert run("jobs", "show", past.job_id, "--json")["finish_by"] is None
    for flow_run, hour in (("earlier", 8), ("latest", 20)):
        deadline = datetime(2026, 5, 7, hour, tzinfo=timezone(timedelta(hours=2)))
        remember_choice(past.job, flow_run, Choice(placements=[], finish_by=deadline))
        past.job.supervise(flow_run)

    assert run("jobs", "show", past.job_id, "--json")["finish_by"] == "2026-05-07T18:00:00+00:00"
    assert "2026-05-07 18:00 UTC" in run("jobs", "show", past.job_id)


def test_metrics_prints_the_merged_history(run: Run, store: Store, tmp_path: Path) -> None:
    interrupted_twice(store, tmp_path)

    rows = run("jobs", "metrics", "shakespeare", "--json")

    assert [row["step"] for row in rows] == list(range(10, 2001, 10))
    assert [row["step"] for row in run("jobs", "metrics", "shakespeare", "--last", "2", "--json")] == [1990, 2000]
    assert "1.6175" in run("jobs", "metrics", "shakespeare")


def test_a_loss_that_is_not_a_number_is_null_in_json(run: Run, store: Store, tmp_path: Path) -> None:
    past = Past(store, tmp_path)
    past.attempt(0, 0, []).append_metrics(0, b'{"step": 1, "train_loss": NaN}\n')

    assert run("jobs", "metrics", past.job_id, "--json")[0]["train_loss"] is None


def test_an_unknown_job_is_told_with_the_nearest_names(run: Run, store: Store, tmp_path: Path) -> None:
    Past(store, tmp_path, "shakespeare-char")

    with pytest.raises(ConfigError, match=r"no job 'shakespear-char' in .*; did you mean shakespeare-char"):
        run("jobs", "show", "shakespear-char")
    with pytest.raises(ConfigError, match="crucible jobs ls"):
        run("checkpoints", "ls", "zzz")


def test_stop_asks_the_running_attempt_to_save(run: Run, store: Store, tmp_path: Path) -> None:
    past = Past(store, tmp_path)
    attempt = past.attempt(0, 100, [50])

    run("jobs", "stop", past.job_id, "--reason", "enough")

    request = attempt.read_stop_request()
    assert request
    assert (request.end_reason, request.reason) == (EndReason.CANCELLED, "enough")


def test_stop_refuses_when_nothing_runs(run: Run, store: Store, tmp_path: Path) -> None:
    past = Past(store, tmp_path)
    with pytest.raises(ConfigError, match="never started"):
        run("jobs", "stop", past.job_id)
    past.end(past.attempt(0, 100, [50]), EndReason.INTERRUPTED, "spot reclaim")
    past.status(JobState.STOPPED)
    with pytest.raises(ConfigError, match="it is stopped"):
        run("jobs", "stop", past.job_id)
    past.status(JobState.RUNNING)
    assert "the job is stopped" in run("jobs", "stop", past.job_id), "between two attempts, and nobody is there"


def test_limits_change_only_what_is_named(run: Run, store: Store, tmp_path: Path) -> None:
    past = Past(store, tmp_path)
    run("jobs", "limits", past.job_id, "--max-cost-usd", "2.5", "--max-attempts", "7")
    run("jobs", "limits", past.job_id, "--max-cost-usd", "none", "--max-hours", "3")

    assert past.job.read_limits().model_dump(exclude={"schema_version"}) == {
        "max_attempts": 7,
        "max_cost_usd": None,
        "max_hours": 3.0,
        "max_attempts_without_progress": 2,
    }
    with pytest.raises(ConfigError, match="max_hours = 'soon' is not valid"):
        run("jobs", "limits", past.job_id, "--max-hours", "soon")
    assert past.job.read_limits().max_hours == 3.0


def test_report_prints_without_and_writes_with_the_picture(run: Run, store: Store, tmp_path: Path) -> None:
    interrupted_twice(store, tmp_path)
    out = tmp_path / "report.md"

    assert "base64" not in run("jobs", "report", "shakespeare")
    run("jobs", "report", "shakespeare", "--out", str(out))

    assert "data:image/png;base64," in out.read_text()
    with pytest.raises(ConfigError, match=r"--out .* cannot be written"):
        run("jobs", "report", "shakespeare", "--out", str(tmp_path / "missing" / "report.md"))


def test_checkpoints_are_listed_and_a_damaged_one_is_found(run: Run, store: Store, tmp_path: Path) -> None:
    past = interrupted_twice(store, tmp_path)
    listed = run("checkpoints", "ls", "shakespeare", "--json")
    assert [(entry["step"], entry["best"]) for entry in listed][:2] == [(2000, True), (1600, False)]
    assert all(entry["problem"] is None for entry in run("checkpoints", "verify", "shakespeare", "--json"))

    key = "checkpoints/step-00001600.attempt-0003/model.safetensors"
    damaged = bytearray(past.job.store.read(key))
    damaged[5000] ^= 1  # the size stays what it was
    past.job.store.write(key, bytes(damaged))

    with pytest.raises(CheckpointError, match=r"1 of 6 checkpoints of shakespeare are damaged \(step 1600\)"):
        run("checkpoints", "verify", "shakespeare")
    with pytest.raises(CheckpointError, match="sha256"):
        run("checkpoints", "get", "shakespeare", str(tmp_path / "got"), "--step", "1600")
    assert not list((tmp_path / "got").iterdir())


def test_get_fetches_the_newest_or_the_step_asked_for_and_overwrites_nothing(
    run: Run, store: Store, tmp_path: Path
) -> None:
    interrupted_twice(store, tmp_path)
    got = tmp_path / "got"

    run("checkpoints", "get", "shakespeare", str(got))
    run("checkpoints", "get", "shakespeare", str(got), "--step", "300")

    assert sorted(folder.name for folder in got.iterdir()) == ["step-00000300", "step-00002000"]
    assert (got / "step-00000300" / "model.safetensors").stat().st_size == 100_000
    with pytest.raises(ConfigError, match="is there already"):
        run("checkpoints", "get", "shakespeare", str(got))
    with pytest.raises(ConfigError, match="there are: 2000, 1600, 1200, 900, 600, 300"):
        run("checkpoints", "get", "shakespeare", str(got), "--step", "301")
