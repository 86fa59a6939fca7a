"""A trial without torch: `workload.py '{"hold": "…", "fail": {"3": "exit"}}'`, no third-party import.

Its weights are a chain of hashes, one link per step, and its loss is read off them: a step lost, repeated or taken from
a wrong checkpoint shows in the leaderboard. Options:

    hold    a folder: in step 2 a trial writes its process id to `<trial>.pid` there, and waits for `<trial>.go`
    fail    {"<trial>": "exit" | "nan" | "kill"}
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

stopping = False


def loss_after(trial: int, weights: str) -> float:
    return 1.0 + (trial * 7 % 10) / 10 + int(weights[:6], 16) / 16**6 / 100


def report(**values: float) -> None:
    with Path(os.environ["CRUCIBLE_METRICS_FILE"]).open("a") as file:
        file.write(json.dumps({"time": time.time(), **values}) + "\n")


def save(step: int, weights: str) -> None:
    folder = Path(os.environ["CRUCIBLE_CHECKPOINT_DIR"])
    partial = folder / f"step-{step:08d}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    (partial / "state.json").write_text(json.dumps({"step": step, "weights": weights}))
    partial.rename(folder / f"step-{step:08d}")


def hold(folder: Path, trial: int) -> None:
    (folder / f"{trial}.partial").write_text(str(os.getpid()))
    (folder / f"{trial}.partial").rename(folder / f"{trial}.pid")
    while not (folder / f"{trial}.go").exists() and not stopping:
        time.sleep(0.005)


def main(options: dict) -> int:
    def ask(_number: int, _frame: object) -> None:
        global stopping
        stopping = True

    signal.signal(signal.SIGTERM, ask)
    trial = int(os.environ["CRUCIBLE_JOB_ID"][-4:])
    step, weights = 0, "start"
    if resume := os.environ.get("CRUCIBLE_RESUME_FROM"):
        state = json.loads((Path(resume) / "state.json").read_text())
        step, weights = state["step"], state["weights"]
    last = int(os.environ["CRUCIBLE_STOP_AT_STEP"])
    failure = options.get("fail", {}).get(str(trial))
    while step < last and not stopping:
        step += 1
        weights = hashlib.sha256(f"{trial} {weights} {step}".encode()).hexdigest()
        if step == 2 and "hold" in options:
            hold(Path(options["hold"]), trial)
        if failure == "exit":
            print("out of memory", flush=True)
            return 1
        if failure == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    loss = float("nan") if failure == "nan" else loss_after(trial, weights)
    report(step=step, train_loss=loss)
    if step == last:
        report(step=step, val_loss=loss)
    save(step, weights)
    return 0 if step == options["steps"] else 75


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
