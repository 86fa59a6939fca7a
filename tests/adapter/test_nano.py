"""An unmodified script in nanoGPT's style survives machines that vanish, also in the middle of its own save."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

from tests.adapter.harness import ScriptJob, nano, nano_state, weights_after

STEPS, INTERVAL = 60, 5


def test_six_kills_two_of_them_while_it_writes_its_file(tmp_path: Path) -> None:
    seed = int(os.environ.get("CRUCIBLE_TEST_SEED") or random.SystemRandom().randrange(10**6))
    print(f"CRUCIBLE_TEST_SEED={seed}")
    chance = random.Random(seed)
    job = ScriptJob(tmp_path, nano(f"--max_iters={STEPS}", f"--eval_interval={INTERVAL}", output=["final.txt"]))
    moments = chance.sample(["while saving", "while saving", *["at a step"] * 4], 6)
    saved = 0
    for moment in moments:
        goal = min(saved + chance.randint(1, 2 * INTERVAL), STEPS - 1)
        if moment == "while saving":
            goal += INTERVAL - goal % INTERVAL
            job.start(HOLD=f"write:{goal}")
            expected = goal - INTERVAL
        else:
            job.start(HOLD=f"iter:{goal}")
            expected = goal - goal % INTERVAL
        job.until(lambda expected=expected: job.newest_step() == expected)
        if moment == "while saving":
            (job.cwd / "go").touch()
            job.until(lambda: job.printed("half of it is written"))
        job.kill()
        folder = job.newest()
        saved = nano_state(folder)["iter_num"] if folder else 0
        assert folder is None or folder.name == f"step-{saved:08d}"
        assert saved == expected, f"killed {moment} {goal}, the newest whole file is of {saved}"
    assert job.run() == 0
    assert job.resume_from is not None
    assert (job.resume_from / "output" / "final.txt").read_text() == weights_after(STEPS + 1)
    assert nano_state(job.resume_from)["iter_num"] == STEPS
    assert "Resuming training" in job.output


def test_metrics_and_validation_loss_come_from_what_it_prints(tmp_path: Path) -> None:
    job = ScriptJob(tmp_path, nano("--max_iters=6"))
    assert job.run() == 0
    losses = {m["step"]: m["train_loss"] for m in job.metrics() if "train_loss" in m}
    assert losses == {step: round(4 / (step + 1), 4) for step in range(7)}
    assert job.resume_from is not None
    state = json.loads((job.resume_from / "state.json").read_text())
    assert (state["step"], state["step_source"], state["val_loss"]) == (5, "printed", round(5 / 6, 4))
