"""A small training on several nodes without Prefect, whose processes record the rows of every step.

python -m tests.tasks.training_on_nodes train ARGUMENTS…         crucible.training, recording
python -m tests.tasks.training_on_nodes further STORE N RANK     a further node of attempt N
python -m tests.tasks.training_on_nodes first POOL STORE N       the first node of attempt N, on a pool
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from crucible.agent.attempt import run_attempt
from crucible.agent.member import run_member
from crucible.agent.nodes import Nodes
from crucible.agent.plan import AttemptPlan, Scratch, WorkloadCommand
from crucible.datasets.build import build_dataset
from crucible.datasets.config import DatasetConfig
from crucible.jobs.job import Job
from crucible.jobs.records import JobSpec, Launch, Outcome
from crucible.resources import Resources
from crucible.store import Store, store_at
from tasks.nodes import first_node, further_node
from tasks.training import attempt_plan
from tests.agent.harness import Recorder
from tests.training.conftest import TINY
from tests.waiting import until

PROJECT = Path(__file__).parents[2]
JOB = "on-nodes"
ROWS = "TEST_ROWS_FOLDER"
DEATH = "TEST_DEATH"
"""`STEP FILE`, for the second node: at that step it stops, once, and makes the file. Whoever sees that kills it."""
SEED = int(os.environ.get("TEST_SEED", "3"))
STEPS = 40
ENDLESS = 100_000
"""Steps of a training that is stopped: an idle machine makes forty before anybody could kill one of its nodes."""


def death_step() -> int:
    """After how many steps the second node dies."""
    step = random.Random(SEED).randrange(12, 36)
    print(f"seed {SEED}: node 1 dies after exactly {step} steps")
    return step


def new_job(folder: Path, **changes: Any) -> Job:
    """A job in a store of its own, with data in it."""
    (folder / "store").mkdir(parents=True)
    store = store_at((folder / "store").as_uri())
    text = folder / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 300)
    data = build_dataset(DatasetConfig.parse({"source": str(text), "tokenizer": "char"}), store)
    settings = {"max_iters": STEPS, "eval_interval": STEPS, "log_interval": 1, "checkpoint_interval_seconds": 1.0}
    config = TINY.with_overrides(settings | changes)
    resources = Resources(nodes="1..2", gpus=0)
    return Job.create(store, JobSpec(job_id=JOB, config=config, dataset=data.digest, resources=resources))


def run(
    job: Job, number: int, nodes: int, folder: Path, kill_at: int | None = None, stop_at: int | None = None
) -> Outcome:
    """An attempt on so many processes of this machine; after `kill_at` steps the second one dies, workload and all."""
    job.decide(Launch(number=number, pool="local", reason="test", nodes=nodes, stop_at_step=stop_at))
    environment = {**os.environ, "CRUCIBLE_HOME": str(folder / "home"), ROWS: str(folder / "rows")}
    (folder / "rows").mkdir(exist_ok=True)
    stands = folder / "stands"
    further = environment if kill_at is None else {**environment, DEATH: f"{kill_at} {stands}"}
    command = [sys.executable, "-m", "tests.tasks.training_on_nodes", "further", job.root.uri, str(number)]
    others = [
        subprocess.Popen([*command, str(rank)], env=further, cwd=PROJECT, start_new_session=True)
        for rank in range(1, nodes)
    ]

    def kill() -> None:
        until(lambda: stands.exists() or others[0].poll() is not None, 3600)
        if others[0].poll() is None:
            os.killpg(others[0].pid, signal.SIGKILL)

    if kill_at is not None:
        threading.Thread(target=kill, daemon=True).start()
    plan = _plan(job, number, Nodes(nodes), environment)
    try:
        return run_attempt(job.attempt(number), replace(plan, scratch=folder / "scratch"), Recorder())
    finally:
        for other in others:
            other.wait(60)


def rows_of_steps(folder: Path) -> dict[int, str]:
    """The digest of each step's rows, whichever processes computed them, and however often."""
    found: dict[int, dict[int, str]] = {}
    for path in (folder / "rows").iterdir():
        for line in path.read_text().splitlines():
            step, row, digest = line.split()
            before = found.setdefault(int(step), {}).setdefault(int(row), digest)
            assert before == digest, f"row {row} of step {step} was another one the second time"
    return {
        step: hashlib.sha256("".join(rows[row] for row in sorted(rows)).encode()).hexdigest()
        for step, rows in found.items()
    }


def _plan(job: Job, number: int, nodes: Nodes, environment: dict[str, str]) -> AttemptPlan:
    launch = job.attempt(number).read_launch()
    assert launch is not None
    plan = attempt_plan(job, job.read_spec(), launch, nodes)
    threads = {"OMP_NUM_THREADS": "1"}
    return replace(plan, prepare=_recording(plan.prepare), environment={**environment, **threads}, cwd=PROJECT)


def _recording(prepare: Callable[[Scratch], WorkloadCommand]) -> Callable[[Scratch], WorkloadCommand]:
    def prepared(scratch: Scratch) -> WorkloadCommand:
        command = prepare(scratch)
        at = list(command.arguments).index("crucible.training")
        arguments = [*command.arguments[:at], "tests.tasks.training_on_nodes", "train", *command.arguments[at + 1 :]]
        return replace(command, arguments=arguments)

    return prepared


def _train(arguments: list[str]) -> int:
    from crucible.training import __main__ as training
    from crucible.training.data import TRAIN_STREAM, Split

    whole = Split.batch
    file = (Path(os.environ[ROWS]) / f"{os.getpid()}-{os.environ.get('RANK', '0')}").open("a", buffering=1)

    def batch(self: Split, seed: int, stream: int, step: int, sequences: slice, total: int, length: int) -> Any:
        tensor = whole(self, seed, stream, step, sequences, total, length)
        if stream == TRAIN_STREAM:
            for row, content in zip(range(sequences.start, sequences.stop), tensor, strict=True):
                file.write(f"{step} {row} {hashlib.sha256(content.numpy().tobytes()).hexdigest()[:16]}\n")
        return tensor

    Split.batch = batch  # type: ignore[method-assign]
    if os.environ.get("RANK") == "1" and DEATH in os.environ:
        _stand_at(*os.environ[DEATH].split(maxsplit=1))
    return training.main(arguments)


def _stand_at(step: str, file: str) -> None:
    """Let the trainer go no further than that step, so that the other node cannot either."""
    from crucible.training.trainer import Trainer

    whole = Trainer.train_step

    def train_step(self: Trainer) -> None:
        if self.step == int(step) and not Path(file).exists():
            Path(file).touch()
            threading.Event().wait()
        whole(self)

    Trainer.train_step = train_step  # type: ignore[method-assign]


def main(kind: str, *arguments: str) -> int:
    """One of the three programs."""
    if kind == "train":
        return _train(list(arguments))
    pool = arguments[0] if kind == "first" else ""
    uri, number = arguments[-2:] if kind == "first" else arguments[:2]
    store: Store = store_at(uri)
    job = Job(store, JOB)
    if kind == "further":
        plan = _plan(job, int(number), further_node(int(arguments[2])), dict(os.environ))
        run_member(job.attempt(int(number)), plan, lambda line: print(line, flush=True))
        return 0
    plan = _plan(job, int(number), first_node(job.read_spec(), pool), dict(os.environ))
    print(run_attempt(job.attempt(int(number)), plan, Recorder()), flush=True)
    return 0


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)
