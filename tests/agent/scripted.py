"""A workload that follows the contract and nothing else: `scripted.py '{"steps": 20, …}'`, no third-party import.

Its weights are a chain of hashes, one link per step, so any step lost, repeated or taken from a wrong checkpoint shows
in the last one. Options:

    steps, every, seconds   how many steps, how many between checkpoints, how long each takes
    on_stop                 "save" (and exit 75), "ignore", "fail", "die" (of the signal)
    at                      what to do in which step: {"<step>": "exit <code>" | "kill" | "stop <signal number>" |
                            "say <words>" | "shout" | "wait <file>" | "orphan <pid file>" | "spoil"}
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

stopping = False


def weights_after(step: int) -> str:
    """What the weights must be after so many steps."""
    weights = "start"
    for number in range(1, step + 1):
        weights = next_weights(weights, number)
    return weights


def next_weights(weights: str, step: int) -> str:
    return hashlib.sha256(f"{weights} {step}".encode()).hexdigest()


def save(step: int, weights: str) -> None:
    folder = Path(os.environ["CRUCIBLE_CHECKPOINT_DIR"])
    partial = folder / f"step-{step:08d}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    (partial / "weights.txt").write_text(weights)
    (partial / "state.json").write_text(json.dumps({"step": step, "val_loss": 10.0 / step}))
    partial.rename(folder / f"step-{step:08d}")


def report(step: int) -> None:
    with Path(os.environ["CRUCIBLE_METRICS_FILE"]).open("a") as file:
        file.write(json.dumps({"step": step, "time": time.time(), "train_loss": 10.0 / step}) + "\n")


def act(action: str, step: int) -> None:
    verb, _, argument = action.partition(" ")
    if verb == "exit":
        sys.exit(int(argument))
    elif verb == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif verb == "stop":
        os.kill(os.getpid(), int(argument))
    elif verb == "say":
        print(argument, flush=True)
    elif verb == "shout":
        print("x" * 4000, flush=True)
    elif verb == "wait":
        while not Path(argument).exists() and not stopping:
            time.sleep(0.005)
    elif verb == "orphan":
        child = subprocess.Popen(["sleep", "60"])
        Path(argument + ".partial").write_text(str(child.pid))
        Path(argument + ".partial").rename(argument)
    elif verb == "spoil":
        folder = Path(os.environ["CRUCIBLE_CHECKPOINT_DIR"]) / f"step-{step:08d}"
        folder.mkdir()
        (folder / "state.json").write_text("{torn")


def main(options: dict) -> int:
    def ask(_number: int, _frame: object) -> None:
        global stopping
        stopping = True

    on_stop = options.get("on_stop", "save")
    handler = {"ignore": signal.SIG_IGN, "die": signal.SIG_DFL}.get(on_stop, ask)
    signal.signal(signal.SIGTERM, handler)
    step, weights = 0, "start"
    if resume := os.environ.get("CRUCIBLE_RESUME_FROM"):
        step = json.loads((Path(resume) / "state.json").read_text())["step"]
        weights = (Path(resume) / "weights.txt").read_text()
    print(f"from step {step}", flush=True)
    last = int(os.environ.get("CRUCIBLE_STOP_AT_STEP") or options["steps"])
    saved = step
    while step < last:
        step += 1
        weights = next_weights(weights, step)
        time.sleep(options.get("seconds", 0.0))
        report(step)
        act(options.get("at", {}).get(str(step), ""), step)
        if stopping and on_stop == "fail":
            print("could not save", flush=True)
            return 1
        if step % options.get("every", 5) == 0 or step == last or stopping:
            save(step, weights)
            saved = step
        if stopping:
            reason = Path(os.environ["CRUCIBLE_STOP_REASON_FILE"])
            print(f"stopped at {step}, saved {saved}: {reason.read_text() if reason.is_file() else ''}", flush=True)
            return 75
    return 0 if last == options["steps"] else 75


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
