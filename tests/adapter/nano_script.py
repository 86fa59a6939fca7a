"""A training script in nanoGPT's style that knows nothing of Crucible: `nano_script.py [--key=value …]`.

Its one checkpoint, a zip archive, is overwritten in place; SIGTERM ends it without a save unless `--on_term=save`. Its
weights are a chain of hashes, so that any step lost or repeated shows in the last one. No third-party import.

It stands still where HOLD says: `iter:17`, or `write:20`, that is before that save until there is a file `go`,
and again with half of its file written.
"""

import hashlib
import json
import os
import signal
import sys
import time
import zipfile
from pathlib import Path

settings = {"max_iters": 40, "eval_interval": 5, "init_from": "scratch", "seconds": 0.02}
settings |= {"out_dir": "out", "on_term": "", "bytes": 100_000, "fail_at": -1}
for argument in sys.argv[1:]:
    key, _, value = argument.removeprefix("--").partition("=")
    settings[key] = type(settings[key])(value)
path = Path(settings["out_dir"], "ckpt.pt")
terminated = False


def hold(moment: str) -> bool:
    return os.environ.get("HOLD") == moment


def save(iter_num: int, weights: str) -> None:
    while hold(f"write:{iter_num}") and not Path("go").exists():
        time.sleep(0.01)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.json", json.dumps({"iter_num": iter_num, "weights": weights}))
        archive.fp.flush()
        if hold(f"write:{iter_num}"):
            print("half of it is written")
            time.sleep(60)
        archive.writestr("padding", os.urandom(settings["bytes"]))


def on_term(*_: object) -> None:
    global terminated
    terminated = True


if settings["on_term"]:
    signal.signal(signal.SIGTERM, on_term)
iter_num, weights = 0, "start"
path.parent.mkdir(exist_ok=True)
if settings["init_from"] == "resume":
    print(f"Resuming training from {settings['out_dir']}", flush=True)
    with zipfile.ZipFile(path) as archive:
        state = json.loads(archive.read("data.json"))
    iter_num, weights = state["iter_num"], state["weights"]
print("tokens per iteration will be: 640")
while True:
    if iter_num % settings["eval_interval"] == 0 or terminated:
        print(f"step {iter_num}: train loss {4 / (iter_num + 1):.4f}, val loss {5 / (iter_num + 1):.4f}")
        if iter_num > 0:
            print(f"saving checkpoint to {settings['out_dir']}")
            save(iter_num, weights)
    if terminated:
        sys.exit(0)
    print(f"iter {iter_num}: loss {4 / (iter_num + 1):.4f}, time {settings['seconds'] * 1e3:.2f}ms, mfu -100.00%")
    if hold(f"iter:{iter_num}"):
        time.sleep(60)
    if iter_num == settings["fail_at"]:
        raise ValueError(f"loss is nan at {iter_num}")
    time.sleep(settings["seconds"])
    iter_num += 1
    weights = hashlib.sha256(f"{weights} {iter_num}".encode()).hexdigest()
    if iter_num > settings["max_iters"]:
        break
Path("final.txt").write_text(weights)
