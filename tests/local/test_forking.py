"""`crucible jobs fork`: a copy of a checkpoint under a new job, some settings changed and the parent untouched."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from typer.testing import CliRunner

import crucible
from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.restore import restore
from crucible.checkpoints.retention import retain
from crucible.cli import jobs as command
from crucible.code.workplace import unpack
from crucible.config import TrainConfig
from crucible.errors import CheckpointError, ConfigError, ServiceError, StartUnknown
from crucible.jobs.job import Job
from crucible.jobs.records import CodePackage, JobSpec
from crucible.local import forking
from crucible.reports import job_report
from crucible.script_config import ScriptConfig
from crucible.store import Store
from tests.checkpoints.committing import commit
from tests.faults.small_jobs import is_whole, running

DATA = {"words.txt": "e" * 64, "earlier.bin": "d" * 64}
CODE = CodePackage(digest="f" * 64, data=DATA)
SCRIPT = ScriptConfig(command=["python", "train.py"], env={"LR": "0.1", "MODE": "a"}, total_steps=9)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, JobSpec]]:
    """What was started instead of a flow run."""
    runs: list[tuple[str, JobSpec]] = []

    def start(parent: Job, fork: Job, spec: JobSpec) -> str:
        runs.append((fork.job_id, spec))
        return "a-run"

    monkeypatch.setattr(forking, "_start", start)
    return runs


@pytest.fixture
def parent(store: Store, tmp_path: Path) -> Job:
    job = Job.create(store, JobSpec(job_id="mine", script=SCRIPT, code=CODE, project="paper"))
    attempt = running(job, 1)
    for step, loss in ((3, 2.0), (6, 1.0), (9, 1.5)):
        commit(attempt, tmp_path, step, val_loss=loss)
    return job


def crucible_jobs(line: list[str], job: Job) -> dict[str, Any]:
    app = typer.Typer()
    command.register(app)
    app.command("other")(lambda: None)
    head, tail = (line[: line.index("--")], line[line.index("--") :]) if "--" in line else (line, [])
    arguments = ["jobs", "fork", job.job_id, *head, "--store", job.root.uri, "--json", *tail]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    values: dict[str, Any] = json.loads(done.stdout)
    return values


def test_a_fork_owns_a_copy_and_leaves_the_parent_alone(
    parent: Job, started: list[tuple[str, JobSpec]], tmp_path: Path
) -> None:
    before = {info.key for info in parent.store.list()}
    line = ["--from", "6", "--set", "env.LR=0.01", "--set", "total_steps=30", "--", "python", "train.py", "--fast"]
    made = crucible_jobs(line, parent)
    assert made["forked_from"] == {"job": "mine", "step": 6, "attempt": 1}
    assert {info.key for info in parent.store.list()} == before

    retain(Checkpoints(parent), keep_last=1)
    for checkpoint in Checkpoints(parent).list():
        Checkpoints(parent).delete(checkpoint.name)
    fork = Job(parent.root, "mine-from-6")
    [(name, spec)] = started
    assert (name, fork.read_spec()) == ("mine-from-6", spec)
    assert spec.script == SCRIPT.model_copy(
        update={
            "command": ["python", "train.py", "--fast"],
            "env": {"LR": "0.01", "MODE": "a"},
            "total_steps": 30,
        }
    )
    assert (spec.code, spec.project) == (CODE, "paper")
    found = restore(Checkpoints(fork), tmp_path / "restored")
    assert found is not None
    assert found[0].step == 6
    assert is_whole(found[1], 6)
    assert "Forked from `mine` at step 6" in job_report(fork)
    assert fork.cost_usd() == 0


def test_a_fork_goes_on_with_the_script_as_it_is_now(
    parent: Job, started: list[tuple[str, JobSpec]], tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.py").write_text("print('mended')")
    (folder / "crucible.yaml").write_text("data: [words.txt]")
    (folder / "words.txt").write_text("a b c")
    crucible_jobs(["--code", str(folder)], parent)
    handle = crucible.job("mine", store=parent.root.uri)
    assert handle.fork(code=folder, name="again").name == "again"
    [(_, spec), (_, same)] = started
    assert spec.code is not None
    assert spec.code == same.code != CODE
    assert spec.code.data["earlier.bin"] == DATA["earlier.bin"], "what the folder does not have stays as it was"
    assert spec.code.data["words.txt"] != DATA["words.txt"]
    files = unpack(parent.root, spec.code.digest, tmp_path / "work")
    assert (tmp_path / "work" / "train.py").read_text() == "print('mended')"
    assert "words.txt" not in files

    with pytest.raises(ConfigError, match="nothing-here is not a folder"):
        handle.fork(code=tmp_path / "nothing-here")
    (folder / "train.py").unlink()
    with pytest.raises(ConfigError, match=r"train\.py"):
        handle.fork(code=folder, name="not-made")
    assert "not-made" not in Job.ids(parent.root)


def test_a_fork_that_cannot_be_started_leaves_its_name_free(parent: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> str:
        raise ServiceError("the server does not answer")

    monkeypatch.setattr(forking, "_start", start)
    with pytest.raises(ServiceError):
        crucible.job("mine", store=parent.root.uri).fork(6)
    assert Job.ids(parent.root) == ["mine"]


def test_a_fork_that_was_killed_before_it_was_on_record_leaves_nothing_to_the_next_of_its_name(
    parent: Job, started: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(forking.Job, "create", killed)
        with pytest.raises(KeyboardInterrupt):
            forking.fork_job(parent, "9", name="own")
    fork, _ = forking.fork_job(parent, "6", name="own")
    found = restore(Checkpoints(fork), tmp_path / "restored")
    assert found is not None
    assert found[0].step == 6


@pytest.mark.usefixtures("prefect_api")
def test_a_fork_whose_start_got_no_answer_is_kept_and_starts_once(parent: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    @flow(name="train-script")
    def supervise() -> None:
        """Never run."""

    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(supervise)
        deployment = client.create_deployment(flow_id, name=f"tests-{uuid.uuid4().hex}", enforce_parameter_schema=False)
        before = client.create_flow_run_from_deployment(deployment)
    parent.supervise(str(before.id))
    create = SyncPrefectClient.create_flow_run_from_deployment

    def lose_answer(*given: Any, **options: Any) -> None:
        create(*given, **options)
        raise httpx.ReadTimeout("timed out")

    def refuse(*_: Any, **__: Any) -> None:
        raise httpx.ConnectError("connection refused")

    with monkeypatch.context() as patched:
        patched.setattr(SyncPrefectClient, "create_flow_run_from_deployment", lose_answer)
        with pytest.raises(StartUnknown, match=r"timed out.*--name mine-from-9"):
            forking.fork_job(parent)
        patched.setattr(SyncPrefectClient, "read_flow_run", refuse)
        with pytest.raises(ServiceError, match="connection refused"):
            forking.fork_job(parent, name="mine-from-9")
    assert len(Checkpoints(Job.open(parent.root, "mine-from-9")).list()) == 1
    fork, run = forking.fork_job(parent, name="mine-from-9")
    with get_client(sync_client=True) as client:
        of_it = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
        assert {str(found.id) for found in client.read_flow_runs(deployment_filter=of_it)} == {str(before.id), run}
    fork.supervise(run)
    with pytest.raises(ConfigError, match="is this fork and has been started"):
        forking.fork_job(parent, name="mine-from-9")


def test_best_newest_and_names_that_are_taken(parent: Job, started: list[tuple[str, JobSpec]]) -> None:
    handle = crucible.job("mine", store=parent.root.uri)
    names = [handle.fork("best").name, handle.fork().name, handle.fork(9).name, handle.fork(3, name="own").name]
    assert names == ["mine-from-6", "mine-from-9", "mine-from-9-2", "own"]
    with pytest.raises(ConfigError, match="'own' exists already"):
        handle.fork(name="own")
    with pytest.raises(ConfigError, match=r"--from 4: job mine has no such checkpoint; there are: 9, 6, 3"):
        handle.fork(4)
    with pytest.raises(ConfigError, match="put back where the parent saved it"):
        handle.fork(checkpoint="other.pt")
    with pytest.raises(ConfigError, match="total_stepz = 3 is not a known setting; did you mean total_steps"):
        handle.fork(total_stepz=3)
    for text in ("2026-02-30", "[1"):
        with pytest.raises(ConfigError, match=f"total_steps = {re.escape(text)}: "):
            handle.fork(total_steps=text)


def test_what_the_checkpoint_fixes_cannot_change(store: Store, tmp_path: Path, started: list[Any]) -> None:
    config = TrainConfig.preset("debug")
    job = Job.create(store, JobSpec(job_id="gpt", config=config))
    commit(running(job, 1), tmp_path, 5, config=config.model_dump(mode="json"))
    handle = crucible.job("gpt", store=store.uri)
    with pytest.raises(ConfigError, match=r"n_embd = 256: the checkpoint's model has n_embd = .*max_iters"):
        handle.fork(n_embd=256, max_iters=5, warmup_iters=1)
    with pytest.raises(ConfigError, match="runs Crucible's own trainer"):
        handle.fork(command=["python"])
    with pytest.raises(ConfigError, match="runs Crucible's own trainer"):
        handle.fork(code=tmp_path)
    assert Job.ids(store) == ["gpt"]


def test_a_fork_whose_copy_is_gone_does_not_begin_from_nothing(parent: Job, started: list[Any], tmp_path: Path) -> None:
    from crucible.agent.observer import Guarded
    from crucible.agent.restoring import restore_newest
    from tests.agent.runner import Silent
    from tests.faults.small_jobs import claimed

    fork, _ = forking.fork_job(parent)
    [copy] = Checkpoints(fork).list()
    Checkpoints(fork).delete(copy.name)
    with pytest.raises(CheckpointError, match="fork mine again"):
        restore_newest(claimed(fork, 1), tmp_path / "r", Guarded(Silent(), lambda _: None), 1.0, lambda: False)
