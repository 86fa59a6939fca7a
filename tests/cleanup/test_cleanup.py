"""A clean-up removes nothing that is needed from a store with fifty jobs, and the same wherever it is interrupted."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.exceptions import ParameterTypeError
from typer.testing import CliRunner

from crucible.agent.plan import Scratch
from crucible.checkpoints.manifest import Checkpoint, StoredFile
from crucible.cleanup.plan import GB, CleanupRequest, clean_up, plan_cleanup
from crucible.cleanup.removal import Kind, Removal
from crucible.cli.main import build_app
from crucible.config import TrainConfig
from crucible.errors import StoreUnavailable
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, JobSpec, Outcome, Start, now
from crucible.jobs.status import JobState, JobStatus
from crucible.script_config import ScriptConfig
from crucible.store import Store, store_at
from crucible.supervision.heartbeat import FOLDER, SupervisorHeartbeat
from flows.cleanup import cleanup

OLD, YOUNG = now() - timedelta(days=40), now() - timedelta(days=5)
STEPS = (1, 2, 3)
BEST = 2
ALL = frozenset(STEPS)
JOBS_ONLY = CleanupRequest(kinds={Kind.CHECKPOINTS, Kind.LOGS})

KEPT = {
    "model": {BEST},
    "carded": {1, BEST},
    "capped": {BEST, 3},
    "script": {3},
    "built-on": {BEST, 3},
    "running": ALL,
    "young": ALL,
    "supervised": ALL,
    "rates-0001": ALL,
    "broken": ALL,
    "live": ALL,
}
"""Steps whose checkpoints stay, by kind of job; where all do, the log stays, too."""


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is about power cuts."""
    monkeypatch.setattr("crucible.store.file._fsync", lambda path: None)


def make_job(store: Store, name: str, kind: str) -> None:
    script = ScriptConfig(command=["python", "train.py"]) if kind == "script" else None
    spec = JobSpec(job_id=name, config=None if script else TrainConfig(), script=script, created_at=OLD)
    job = Job(store, name)
    job.store.write_model("job.json", spec)
    if kind == "broken":
        job.store.write("job.json", b"{")
    state = {"running": JobState.RUNNING, "capped": JobState.BUDGET_STOP, "rates-0001": JobState.PAUSED}
    at = YOUNG if kind == "young" else OLD
    ended = JobStatus(state=state.get(kind, JobState.COMPLETED), reason="so it was", supervisor=1, at=at)
    job.store.write_model("status.json", ended)
    job.store.write_model("attempts/0001/start.json", Start(step=0))
    if kind != "live":
        outcome = Outcome(end_reason=EndReason.COMPLETED, message="completed")
        job.store.write_model("attempts/0001/outcome.json", outcome)
    job.attempt(1).output.write(0, b"step 1\n")
    job.attempt(1).append_metrics(0, b'{"step": 1, "train_loss": 2.0}\n')
    for step in STEPS:
        losses = {} if kind == "script" else {"val_loss": 1.0 + (step - BEST) ** 2}
        file = StoredFile(name="model.safetensors", size=10, sha256="0" * 64)
        checkpoint = Checkpoint(job_id=name, attempt=1, step=step, files=[file], state=losses)
        folder = f"checkpoints/{checkpoint.name}"
        job.store.write(f"{folder}/model.safetensors", bytes(10))
        job.store.write_model(f"{folder}/manifest.json", checkpoint)
    job.store.write("checkpoints/step-00000004.attempt-0001/model.safetensors", bytes(5))  # killed before its manifest
    if kind == "carded":
        job.store.write("models/step-00000001/README.md", b"# card")
    if kind == "supervised":
        store.write_model(f"{FOLDER}/{name}.json", SupervisorHeartbeat(flow_run_id=name, subject=name))


def make_store(store: Store) -> list[tuple[str, str]]:
    """Fifty jobs; returns their names and kinds."""
    store.write_model(f"{FOLDER}/sweep.json", SupervisorHeartbeat(flow_run_id="sweep", subject="rates"))
    kinds = [kind for kind in KEPT if kind != "rates-0001"]
    jobs = [("rates-0001", "rates-0001")] + [(f"{kinds[n % 10]}-job-{n}", kinds[n % 10]) for n in range(48)]
    for name, kind in jobs:
        make_job(store, name, kind)
    Job(store, "later").store.write_model("job.json", JobSpec(job_id="later", prepared_by=named(jobs, "built-on")))
    for name, kind in jobs:
        if kind == "built-on" and name != named(jobs, "built-on"):
            Job(store, f"after-{name}").store.write_model("job.json", JobSpec(job_id=f"after-{name}", evaluates=name))
    return jobs


def named(jobs: list[tuple[str, str]], kind: str) -> str:
    return next(name for name, its_kind in jobs if its_kind == kind)


def steps_of(store: Store, job: str) -> set[int]:
    return {int(name[5:13]) for name in store.folders(f"jobs/{job}/checkpoints")}


def keys(store: Store) -> list[str]:
    return [info.key for info in store.list()]


def require_needed(store: Store, jobs: list[tuple[str, str]], before: list[str]) -> None:
    """Everything that is needed is there, and nothing else of what may go."""
    for name, kind in jobs:
        untouched = KEPT[kind] == ALL
        assert steps_of(store, name) == KEPT[kind] | ({4} if untouched else set()), name
        assert bool(store.list(f"jobs/{name}/attempts/0001/output")) == untouched, name
    gone = set(before) - set(keys(store))
    assert not [key for key in gone if "/checkpoints/" not in key and "/output/" not in key]


def test_a_dry_run_names_and_a_run_removes_only_what_nobody_needs(store: Store, tmp_path: Path) -> None:
    jobs = make_store(store)
    before = keys(store)
    plan = plan_cleanup(store, JOBS_ONLY, tmp_path / "scratch")
    dry = CliRunner().invoke(build_app(), ["cleanup", "--store", store.uri])
    assert "would be removed" in dry.output
    assert keys(store) == before
    assert len(plan.left_alone) == sum(kind == "broken" for _, kind in jobs)
    done = json.loads(CliRunner().invoke(build_app(), ["cleanup", "--apply", "--json", "--store", store.uri]).stdout)
    assert {(entry["kind"], entry["name"]) for entry in done["removals"]} == {(r.kind, r.name) for r in plan.removals}
    assert done["bytes"] == plan.bytes > 0
    require_needed(store, jobs, before)
    assert not plan_cleanup(store, JOBS_ONLY, tmp_path / "scratch").removals


class Killed(Exception):
    pass


def interrupted(store: Store, scratch: Path, after_deletes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clean-up that is killed in the middle of removing something."""
    left = [after_deletes]
    delete = type(store).delete

    def counting(self: Store, key: str) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        delete(self, key)

    with monkeypatch.context() as patched:
        patched.setattr(type(store), "delete", counting)
        with pytest.raises(Killed):
            clean_up(plan_cleanup(store, JOBS_ONLY, scratch))


@pytest.mark.parametrize("after_deletes", [1, 6])
def test_interrupted_and_run_again_it_ends_the_same(
    store: Store, tmp_path: Path, after_deletes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [(f"{kind}-{n}", kind) for n, kind in enumerate(("model", "carded", "capped", "script", "young", "live"))]
    for name, kind in jobs:
        make_job(store, name, kind)
    whole = store_at((tmp_path / "whole").as_uri())
    shutil.copytree(store.uri.removeprefix("file://"), tmp_path / "whole")
    before = keys(store)
    plan = plan_cleanup(whole, JOBS_ONLY, tmp_path)
    clean_up(plan)
    interrupted(store, tmp_path, after_deletes, monkeypatch)
    assert keys(store) != keys(whole)
    clean_up(plan_cleanup(store, JOBS_ONLY, tmp_path))
    assert keys(store) == keys(whole)
    require_needed(store, jobs, before)


@pytest.mark.slow
def test_the_same_on_s3(s3_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_store(s3_store)
    before = keys(s3_store)
    plan_cleanup(s3_store, JOBS_ONLY, tmp_path)
    assert keys(s3_store) == before
    interrupted(s3_store, tmp_path, 25, monkeypatch)
    clean_up(plan_cleanup(s3_store, JOBS_ONLY, tmp_path))
    require_needed(s3_store, jobs, before)


def test_a_job_that_somebody_continues_meanwhile_is_left_alone(store: Store, tmp_path: Path) -> None:
    make_job(store, "capped", "capped")
    plan = plan_cleanup(store, JOBS_ONLY, tmp_path)
    store.write_model(f"{FOLDER}/x.json", SupervisorHeartbeat(flow_run_id="x", subject="capped"))
    before = keys(store)
    result = clean_up(plan)
    assert not result.removed
    assert len(result.needed_after_all) == len(plan.removals) > 0
    assert keys(store) == before


def test_a_store_that_goes_away_is_an_error(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_job(store, "model", "model")

    def away(*_: object) -> Iterator[Removal]:
        raise StoreUnavailable("away")

    monkeypatch.setattr(type(store), "folders", away)
    with pytest.raises(StoreUnavailable):
        plan_cleanup(store, JOBS_ONLY, tmp_path)


def test_what_cannot_be_is_refused_in_words_with_every_kind_named() -> None:
    refused = CliRunner().invoke(build_app(), ["cleanup", "--only", "rubbish"])
    for kind in Kind:
        assert kind in str(refused.exception)
    with pytest.raises(ParameterTypeError, match="36500"):
        cleanup.validate_parameters({"days": 1e9})


def test_a_project_near_its_quota_is_a_warning(store: Store, tmp_path: Path) -> None:
    make_job(store, "model", "model")
    held = sum(info.size for info in store.list("jobs"))
    calm = plan_cleanup(store, CleanupRequest(quota_bytes=held / 0.79), tmp_path)
    assert (calm.use[0].project, calm.warnings) == ("default", [])
    (warning,) = plan_cleanup(store, CleanupRequest(quota_bytes=held / 0.81), tmp_path).warnings
    assert "81 % of its" in warning
    assert "model (" in warning
    assert CleanupRequest().quota_bytes == 100 * GB


def test_unfinished_uploads_and_the_scratch_of_dead_attempts_go(store: Store, tmp_path: Path) -> None:
    root = Path(store.uri.removeprefix("file://"))
    store.write("jobs/a/job.json", b"{}")
    two_days_ago = time.time() - 2 * 86400
    for name, at in (("old", two_days_ago), ("new", time.time())):
        for folder in (root / ".partial", root / "jobs/a/.partial"):
            folder.mkdir(exist_ok=True)
            (folder / name).write_bytes(bytes(7))
            os.utime(folder / name, (at, at))
    for name in ("dead", "alive"):
        attempt = tmp_path / "scratch" / name / "attempt-0001"
        attempt.mkdir(parents=True)
        (attempt / "weights").write_bytes(bytes(100))
    request = CleanupRequest(kinds={Kind.UPLOADS, Kind.SCRATCH})
    with Scratch(tmp_path / "scratch/alive/attempt-0001").own():
        for attempt in (tmp_path / "scratch").glob("*/attempt-0001"):
            os.utime(attempt, (two_days_ago, two_days_ago))
        plan = plan_cleanup(store, request, tmp_path / "scratch")
        assert sorted((r.kind, r.name.removeprefix(f"{tmp_path}/"), r.bytes) for r in plan.removals) == [
            ("scratch", "scratch/dead/attempt-0001", 100),
            ("uploads", ".partial/old", 7),
            ("uploads", "jobs/a/.partial/old", 7),
        ]
        clean_up(plan)
        assert (tmp_path / "scratch/alive/attempt-0001").exists()
    assert not (tmp_path / "scratch/dead/attempt-0001").exists()
    assert [path.name for path in root.rglob(".partial/*")] == ["new", "new"]


def test_an_unfinished_multipart_upload_goes(s3_store: Store, tmp_path: Path) -> None:
    store: Any = s3_store
    where = {"Bucket": store.bucket, "Key": f"{store.prefix}/jobs/a/big"}
    store._s3.call_s3("create_multipart_upload", **where)
    store.write("jobs/a/job.json", b"{}")
    request = CleanupRequest(kinds={Kind.UPLOADS})
    (removal,) = plan_cleanup(store, request, tmp_path).removals
    assert removal.name.endswith(":jobs/a/big")
    clean_up(plan_cleanup(store, request, tmp_path))
    assert not store.unfinished_uploads()
    assert store.exists("jobs/a/job.json")
