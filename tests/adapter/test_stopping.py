"""How a script is stopped, and what the agent may say of it afterwards: 75 only where something new was saved."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from crucible.script_config import ScriptConfig
from tests.adapter.harness import NANO, ScriptJob, nano, nano_state
from tests.agent.harness import SCRIPTED


def test_a_script_that_dies_of_sigterm_gets_none_and_its_newest_whole_file_is_carried(tmp_path: Path) -> None:
    job = ScriptJob(tmp_path, nano())
    job.start(HOLD="iter:3")
    job.until(lambda: job.printed("iter 3:"))
    job.stop()
    assert job.wait() == 143, "nothing was saved, so nothing may say so"
    assert job.resume_from is None

    job.start(HOLD="write:10")
    job.until(lambda: job.newest_step() == 5)
    (job.cwd / "go").touch()
    job.until(lambda: job.printed("half of it is written"))
    job.stop(deadline_seconds=0.5)
    assert job.wait() == 75
    assert job.resume_from is not None
    assert nano_state(job.resume_from)["iter_num"] == 5

    job.start(HOLD="iter:8")
    job.until(lambda: job.printed("iter 8:"))
    job.stop()
    assert job.wait() == 143, "it had only saved again what it had resumed from"
    assert "no further than the step 5" in job.output
    assert job.newest_step() == 5

    job.script = nano("--seconds=0.1", "--max_iters=100000")
    job.start()
    job.until(lambda: job.newest_step() >= 15)
    before = job.newest_step()
    job.stop(deadline_seconds=60)
    assert job.wait() == 75
    assert "the script's next save is expected in" in job.output
    assert job.newest_step() > before, "it was waited for"


@pytest.mark.parametrize("shell", [False, True], ids=["python", "bash run.sh"])
def test_a_script_that_saves_on_sigterm_is_sent_one_also_through_a_shell(tmp_path: Path, shell: bool) -> None:
    arguments = ["--on_term=save", "--max_iters=100000", "--eval_interval=50000"]
    script = nano(*arguments, sigterm=True)
    if shell:
        script = script.model_copy(update={"command": ["bash", "run.sh"]})
    job = ScriptJob(tmp_path, script)
    job.start({"run.sh": f"{sys.executable} -S {NANO} {' '.join(arguments)}\necho not reached\n"})
    job.until(lambda: job.printed("iter 3:"))
    job.stop(deadline_seconds=60)
    assert job.wait() == 75
    assert "not reached" not in job.output
    assert job.resume_from is not None
    assert nano_state(job.resume_from)["iter_num"] >= 3


def test_a_stop_at_a_step_is_one_after_the_save_that_reaches_it(tmp_path: Path) -> None:
    job = ScriptJob(tmp_path, nano("--max_iters=100000"))
    assert job.run(CRUCIBLE_STOP_AT_STEP="10") == 75
    assert job.newest_step() >= 10


def test_a_script_that_follows_the_contract_is_left_to_itself(tmp_path: Path) -> None:
    options = {"steps": 12, "every": 4, "at": {"6": f"wait {tmp_path / 'gate'}"}}
    script = ScriptConfig(command=[sys.executable, "-S", str(SCRIPTED), json.dumps(options)], output=["kept/*"])
    job = ScriptJob(tmp_path, script)
    job.start()
    job.until(lambda: any(line["step"] == 6 for line in job.metrics()))
    job.stop()
    assert job.wait() == 75
    assert job.newest_step() == 6
    assert "the machine goes" in job.output
    (tmp_path / "gate").touch()
    assert job.run({"kept/table.csv": "a,b"}) == 0
    assert "from step 6" in job.output
    newest = job.resume_from
    assert newest is not None
    assert (newest.name, json.loads((newest / "state.json").read_text())["step"]) == ("step-00000013", 13)
    assert (newest / "output" / "kept" / "table.csv").read_text() == "a,b"
    assert (newest / "weights.txt").exists(), "the output stands beside the newest content"


def test_the_end_of_a_script(tmp_path: Path) -> None:
    """Done with nothing to keep is a failure that says so; a failure keeps its exit code and its last words."""
    job = ScriptJob(tmp_path, ScriptConfig(command=["true"]))
    assert job.run() == 1
    assert job.output == "[crucible] finished, nothing saved: name what to keep with checkpoint: or output:\n"

    job.script = ScriptConfig(command=["true"], output=["table.csv", "samples"])
    assert job.run({"table.csv": "a"}) == 1
    assert "output: samples does not exist" in job.output
    assert job.resume_from is not None
    assert (job.resume_from / "output" / "table.csv").read_text() == "a"

    job = ScriptJob(tmp_path / "failing", nano("--fail_at=2"))
    assert job.run() == 1
    assert job.output.splitlines()[-1] == "ValueError: loss is nan at 2"


def test_without_output_what_a_script_wrote_is_kept_and_an_evaluation_may_write_nothing(tmp_path: Path) -> None:
    """Its folder goes with the attempt, so what nobody named would be lost."""
    write = (
        "mkdir -p 'out[1]' __pycache__; echo x > 'out[1]/model.txt'; echo x > __pycache__/a.pyc; ln -s /etc/hosts link"
    )
    job = ScriptJob(tmp_path / "writes", ScriptConfig(command=["sh", "-c", f"touch -d @0 old.txt; {write}"]))
    assert job.run() == 0, job.output
    assert "no output: is named, so what it wrote is kept: out[1]/model.txt" in job.output
    assert job.resume_from is not None
    kept = [path.name for path in (job.resume_from / "output").rglob("*") if path.is_file()]
    assert kept == ["model.txt"]
    assert ScriptJob(tmp_path / "looks", ScriptConfig(command=["true"])).run(CRUCIBLE_EVALUATE="/a/checkpoint") == 0


def test_a_killed_adapter_takes_the_script_with_it(tmp_path: Path) -> None:
    job = ScriptJob(tmp_path, nano("--max_iters=100000"))
    job.start()
    job.until(lambda: job.printed("iter 1:"))
    assert job.pid is not None
    below = psutil.Process(job.pid).children(recursive=True)
    os.kill(job.pid, signal.SIGKILL)
    gone, alive = psutil.wait_procs(below, timeout=20)
    assert gone
    assert not alive
