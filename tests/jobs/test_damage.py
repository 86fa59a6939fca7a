"""A damaged record costs its own job at most: it is named with its fix, and every listing goes on with the others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from crucible.cli.main import build_app
from crucible.errors import CrucibleError
from crucible.estimate.history import estimates, speeds
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, JobVariables, NodeReport, Record, StopRequest
from crucible.jobs.stage_records import StageRun
from crucible.reports.overview import OverviewReader
from crucible.store import Store, store_at
from crucible.supervision.heartbeat import supervisor_heartbeats
from crucible.trackers.config import TrackerKind
from crucible.trackers.records import TrackerRecord
from crucible.trackers.view import newest_jobs
from tests.jobs.test_records_of_0_1 import RECORDS, RUN

ATTEMPT = "jobs/shakespeare/attempts/0001"
RECORD_KINDS = {
    "jobs/shakespeare/job.json": "jobs show",
    "jobs/shakespeare/limits/0002.json": "jobs limits",
    f"jobs/shakespeare/starts/{RUN}.json": "jobs show",
    "jobs/shakespeare/supervisors/0001.json": "jobs show",
    f"{ATTEMPT}/launch.json": "jobs show",
    f"{ATTEMPT}/claim.json": "jobs show",
    f"{ATTEMPT}/start.json": "checkpoints ls",
    f"{ATTEMPT}/heartbeat.json": "jobs show",
    f"{ATTEMPT}/stop.json": "jobs show",
    f"{ATTEMPT}/outcome.json": "jobs show",
    f"{ATTEMPT}/metrics/000001.jsonl": "jobs metrics",
    "jobs/shakespeare/status.json": "jobs show",
    "jobs/shakespeare/estimate.json": "jobs show",
    f"jobs/shakespeare/choices/{RUN}.json": "jobs show",
    "jobs/shakespeare/checkpoints/step-00000020.attempt-0001/manifest.json": "checkpoints ls",
    "sweeps/rates/sweep.json": "sweeps show",
    "sweeps/rates/limits/0002.json": "sweeps show",
    "sweeps/rates/status.json": "sweeps show",
    "sweeps/rates/trials/0001.json": "sweeps show",
}
"""One record of each kind in `records_of_0_1`, and the command that reads it."""
NEWER_RECORDS: dict[str, Record] = {
    "stages/run-1.json": StageRun(name="run-1", stage="evaluate", pool="modal", cost_usd=0.5, end="completed"),
    "variables/0001.json": JobVariables(values={"gpus": "1"}),
    f"stops/{RUN}.json": StopRequest(end_reason=EndReason.CANCELLED, reason="enough"),
    "trackers/wandb.json": TrackerRecord(name="wandb", kind=TrackerKind.WANDB),
    "attempts/0001/nodes/0001.json": NodeReport(sequence=1, phase="training"),
}
"""Kinds that came later, damaged all at once in a job of their own."""
SHARED_RECORDS = (
    "datasets/3781f00484bafff5c240baf8a2504aaa/meta.json",
    "history/speeds/ec2-spot/g5.xlarge/shakespeare-0001.json",
    "history/estimates/shakespeare.json",
)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_another_type(path: Path) -> None:
    path.write_text(json.dumps([{"number": "one"}, "ü" * 500]))


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def missing(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_bytes(b"x")


def foreign_names(path: Path) -> None:
    for name in (".DS_Store", "7.json", "٣.json", "99999999999999999999.json", "notes (copy).json", "0009.json.swp"):
        (path.parent / name).write_bytes(b"\x00")
    for name in ("a folder", ".trash", "٠٠٠٤", "7"):
        (path.parent / name).mkdir()
        (path.parent / name / "x.json").write_bytes(b"{")


DAMAGES = [emptied, torn, of_another_type, deep, missing, a_folder, foreign_names]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_kind_of_record_damaged_in_every_way(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """One store in which each job and each sweep has another record damaged, and one of each has none."""
    root, app, problems = tmp_path / "store", build_app(), []
    shutil.copytree(RECORDS, root)

    def run(command: str) -> tuple[str, str]:
        """What the command printed, and its error."""
        result = CliRunner().invoke(app, [*command.split(), "--store", root.as_uri()])
        error = result.exception
        if error is not None and not isinstance(error, SystemExit | CrucibleError):
            problems.append(f"`crucible {command}` raised {error!r}")
        return result.output, str(error or "")

    for number, (key, command) in enumerate(RECORD_KINDS.items()):
        kind, name, rest = key.split("/", 2)
        shutil.copytree(RECORDS / kind / name, root / kind / f"{name}-{number}")
        damage(root / kind / f"{name}-{number}" / rest)
        output, error = run(f"{command} {name}-{number}")
        if error and Path(rest).stem not in error:
            problems.append(f"`crucible {command}` does not name {rest}: {error}")
        if command == "checkpoints ls" and damage in (emptied, torn, deep, a_folder) and rest not in output + error:
            problems.append(f"`crucible {command}` is silent about {rest}")
    for key in SHARED_RECORDS:
        damage(root / key)
    shutil.copytree(RECORDS / "jobs/shakespeare", root / "jobs/newer")
    for key, record in NEWER_RECORDS.items():
        store_at((root / "jobs/newer").as_uri()).write_model(key, record)
        damage(root / "jobs/newer" / key)
    run("jobs show newer")

    wanted = {
        "shakespeare",
        "script",
        "newer",
        *(f"shakespeare-{n}" for n, k in enumerate(RECORD_KINDS) if k.startswith("jobs")),
    }
    listed, error = run("jobs ls --json")
    if not wanted <= {line["job"] for line in json.loads(listed)}:
        problems.append(f"`crucible jobs ls` hides jobs: {listed}")
    for command in (
        "sweeps ls --json",
        "cost --by job --json",
        "data ls",
        "jobs show script",
        "sweeps show rates",
        "cleanup",
    ):
        if failure := run(command)[1]:
            problems.append(f"`crucible {command}` failed: {failure}")
    store = store_at(root.as_uri())
    shown = OverviewReader(store, lambda: Job(store, "script").read_spec().created_at).read()
    if not {"shakespeare", "script"} <= {line.job for line in shown.jobs}:
        problems.append(f"`crucible overview` hides jobs: {shown.damaged}")
    if not {"shakespeare", "script"} <= {job.job_id for job in newest_jobs(store, 99)}:
        problems.append("`crucible tensorboard` hides jobs")
    assert not problems, "\n".join(problems)
    assert speeds(store_at(root.as_uri())) == [] or damage is foreign_names
    assert estimates(store_at(root.as_uri())) == [] or damage is foreign_names


def test_no_record_steers_the_terminal(tmp_path: Path) -> None:
    """A script's coloured error is the message of its attempt; a name can come from whoever may start a job."""
    root, app = tmp_path / "store", build_app()
    shutil.copytree(RECORDS, root)
    texts = {"project", "owner", "reason", "message", "host", "price_remark", "pool", "instance"}
    for path in root.rglob("*.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | dict.fromkeys(texts & record.keys(), "\x1b[31mred\u202e\x07")))
    for command in (
        "jobs ls",
        "jobs show shakespeare",
        "jobs report shakespeare",
        "cost",
        "cost --csv",
        "sweeps show rates",
    ):
        shown = CliRunner().invoke(app, [*command.split(), "--store", root.as_uri()])
        assert shown.exit_code == 0
        assert not set("\x1b\u202e\x07") & set(shown.output), command
        assert command.startswith("cost") or "red" in shown.output


def test_a_damaged_supervisor_heartbeat_does_not_hide_the_others(store: Store) -> None:
    shutil.copytree(RECORDS, Path(store.uri.removeprefix("file://")))
    store.write("presence/torn.json", b"{")
    store.write("presence/empty.json", b"")
    assert [record.subject for record in supervisor_heartbeats(store)] == ["script"]


def test_what_a_deleted_jobs_agent_still_writes_is_no_attempt(store: Store) -> None:
    """Its heartbeat makes the folder anew; a job that is made under that name later starts all the same."""
    shutil.copytree(RECORDS / "jobs/script", Path(store.uri.removeprefix("file://")) / "jobs/script")
    shutil.rmtree(Path(store.uri.removeprefix("file://")) / "jobs/script")
    store.write_json("jobs/script/attempts/0001/heartbeat.json", {"sequence": 9, "phase": "training"})
    result = CliRunner().invoke(build_app(), ["jobs", "ls", "--store", store.uri])
    assert "job.json does not exist" in result.output
    with pytest.raises(CrucibleError, match="there is no job 'script'"):
        Job.open(store, "script")
