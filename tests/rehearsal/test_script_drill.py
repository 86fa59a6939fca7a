"""The drill of a script of your own: what strikes it, what it is compared with, and whole drills on each pool."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from crucible.adapter.whole import is_whole
from crucible.errors import ConfigError
from crucible.local.state import PROJECT
from crucible.rehearsal.drill.drill import Drill
from crucible.rehearsal.drill.plan import make_plan
from crucible.rehearsal.drill.running_script import RunningScript
from crucible.rehearsal.drill.script import OwnScript
from crucible.rehearsal.drill.stage import LOCAL_FAULTS, Stage, local_stage
from crucible.rehearsal.drill.tensors import difference
from tests.adapter.harness import ScriptJob, nano

EXAMPLE = PROJECT / "examples" / "nanogpt_style"


def test_a_script_is_found_and_stopped_in_the_middle_of_its_save(tmp_path: Path) -> None:
    job = ScriptJob(tmp_path, nano("--max_iters=100000", "--bytes=4000000", "--eval_interval=5"))
    job.start(CRUCIBLE_JOB_ID=str(tmp_path))
    try:
        job.until(lambda: job.newest_step() >= 5)
        running = RunningScript.find(str(tmp_path), 1)
        assert running is not None
        assert running.reached_step() >= 5
        assert running.freeze_in_save(job.script.checkpoint, 30)
        assert running.process.status() == psutil.STATUS_STOPPED
        assert is_whole(job.cwd / "out" / "ckpt.pt") is False
        running.process.kill()
        assert job.wait() == 128 + 9
        assert job.newest_step() % 5 == 0, "what is committed is whole, and not what was cut off"
    finally:
        with suppress(ProcessLookupError):
            job.kill()
    assert RunningScript.find(str(tmp_path), 1) is None


def write(folder: Path, **changes: object) -> Path:
    folder.mkdir()
    weights = {"a": torch.tensor([1.0, float("nan")]), "b": torch.arange(6).reshape(2, 3)}
    torch.save({"model": weights, "iter_num": 7, "optimizer": [torch.tensor(0.5)], **changes}, folder / "ckpt.pt")
    (folder / "log.txt").write_text(f"took {folder.name} s")
    return folder


def test_two_runs_are_equal_where_their_tensors_are(tmp_path: Path) -> None:
    one = write(tmp_path / "1")
    assert difference(one, write(tmp_path / "2", seconds=3.5)) == ""
    said = difference(one, write(tmp_path / "3", optimizer=[torch.tensor(0.75)]))
    assert said == "ckpt.pt: 1 of 3 tensors differ, by 0.25 at most"
    assert "other tensors: optimizer.1" in difference(one, write(tmp_path / "4", optimizer=[torch.tensor(0.5)] * 2))
    other = write(tmp_path / "5")
    save_file({"w": torch.zeros(2)}, other / "more.safetensors")
    assert difference(one, other) == "more.safetensors exists in one of them only"
    for folder in (one, other):
        (folder / "ckpt.pt").write_bytes(b"no tensors")
        (folder / "more.safetensors").unlink(missing_ok=True)
    assert difference(one, other) == "log.txt differs", "without a tensor every file counts"


def test_every_plan_for_a_script_strikes_twice_while_it_saves() -> None:
    faults = OwnScript(EXAMPLE).faults(LOCAL_FAULTS)
    in_save = {"kill-in-save", "lose-all-in-save"}
    names = [[fault.name for fault in make_plan(faults, 6, seed)] for seed in range(20)]
    assert all(in_save <= set(plan) and len(set(plan)) == 6 for plan in names)
    assert len({tuple(plan) for plan in names}) > 10
    assert len({plan.index("kill-in-save") for plan in names}) > 2, "not always at the same place"


def test_a_script_that_saves_too_seldom_for_the_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "crucible.yaml").write_text("checkpoint: out/ckpt.pt\n")
    with pytest.raises(ConfigError, match="command: there is none"):
        OwnScript(tmp_path)
    (tmp_path / "crucible.yaml").write_text("command: python a.py\ndrill: {command: python b.py, steps: 3}\n")
    with pytest.raises(ConfigError, match="steps"):
        OwnScript(tmp_path)


def stages(pool: str, folder: Path) -> AbstractContextManager[Stage]:
    if pool == "local":
        return local_stage(folder)
    if pool == "modal":
        from crucible.rehearsal.modal.drill import modal_stage

        return modal_stage(folder)
    from crucible.rehearsal.aws.stage import ec2_stage

    return ec2_stage(folder, pool)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("pool", "kills"), [("local", 6), ("modal", 3), ("ec2-spot", 3)])
def test_an_unmodified_script_survives_a_drill(tmp_path: Path, pool: str, kills: int) -> None:
    script = OwnScript(EXAMPLE)
    with stages(pool, tmp_path) as stage:
        stage.faults = script.faults(stage.faults)
        result = Drill(stage, kills, seed=1, workload=script).run()
    print(f"{pool}, seed 1", json.dumps(result.as_json(), indent=1))
    assert result.passed, result.failures
    assert result.script is not None
    assert result.script.checkpoints_read > kills
    assert not result.script.exact, "the example seeds its generator again when it resumes"
