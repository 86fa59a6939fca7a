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
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from crucible.agent.attempt import run_attempt
from crucible.agent.member import run_member
from crucible.agent.nodes import Nodes
from crucible.agent.plan import AttemptPlan, Scratch, WorkloadCommand
from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.manifest import Checkpoint
from crucible.datasets.build import build_dataset
from crucible.datasets.config import DatasetConfig
from crucible.jobs.job import Job
from crucible.jobs.records import JobSpec, Launch, Outcome, now
from crucible.resources import Resources
from crucible.store import Store, store_at
from tasks.nodes import first_node, further_node
from tasks.training import attempt_plan
from tests.agent.harness import Recorder
from tests.tasks.standing.sitecustomize import DEATH, stand_at_death
from tests.training.conftest import TINY
from tests.waiting import until

PROJECT = Path(__file__).parents[2]
JOB = "on-nodes"
ROWS = "TEST_ROWS_FOLDER"
SEED = int(os.environ.get("TEST_SEED", "3"))
STEPS = 40
ENDLESS = 100_000
"""Steps of a training that is stopped: an idle machine makes forty before anybody could kill one of its nodes."""


@dataclass
class Death:
    """Of the second node, after exactly so many steps."""

    step: int
    file: Path
    """Has the step in it, and is gone once the node has stopped there."""
    struck_at: datetime | None = None

    @classmethod
    def planned(cls, folder: Path) -> Death:
        """At the step that the seed gives."""
        death = cls(random.Random(SEED).randrange(12, 36), folder / "death")
        death.file.write_text(str(death.step))
        print(f"seed {SEED}: node 1 dies after exactly {death.step} steps")
        return death

    def strike(self, kill: Callable[[], object]) -> None:
        """Kill the node as soon as it has stopped there."""
        until(lambda: not self.file.exists(), 900)
        self.struck_at = now()
        kill()


def weights(checkpoint: Checkpoint) -> str:
    """The sha256 of its weights."""
    return next(file.sha256 for file in checkpoint.files if file.name == "model.safetensors")


def require_same_weights(undisturbed: Job, killed: Job, last: int, death: Death) -> None:
    """Both jobs end at step `last` with the same bits."""
    one, other = (Checkpoints(job).list()[0] for job in (undisturbed, killed))
    assert (one.step, other.step) == (last, last)
    assert weights(one) == weights(other)
    ended = killed.attempt(1).read_outcome()
    assert ended is not None
    assert death.struck_at is not None
    print(
        f"ended {(ended.ended_at - death.struck_at).total_seconds():.1f} s after that; went on from step "
        f"{ended.committed_step}; at step {last} both have weights {weights(one)[:12]}"
    )


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
    job: Job, number: int, nodes: int, folder: Path, death: Death | None = None, stop_at: int | None = None
) -> Outcome:
    """An attempt on so many processes of this machine; the second one dies, workload and all, as planned."""
    job.decide(Launch(number=number, pool="local", reason="test", nodes=nodes, stop_at_step=stop_at))
    environment = {**os.environ, "CRUCIBLE_HOME": str(folder / "home"), ROWS: str(folder / "rows")}
    (folder / "rows").mkdir(exist_ok=True)
    if death is not None:
        environment[DEATH] = str(death.file)
    command = [sys.executable, "-m", "tests.tasks.training_on_nodes", "further", job.root.uri, str(number)]
    others = [
        subprocess.Popen([*command, str(rank)], env=environment, cwd=PROJECT, start_new_session=True)
        for rank in range(1, nodes)
    ]

    def kill() -> None:
        if others[0].poll() is None:
            os.killpg(others[0].pid, signal.SIGKILL)

    if death is not None:
        threading.Thread(target=death.strike, args=(kill,), daemon=True).start()
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
    stand_at_death()
    return training.main(arguments)


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
