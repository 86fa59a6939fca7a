"""Where the time to the first step on Modal goes: `python -m benchmarks.modal_first_step [--quick]`.

Trains on the Modal stand-in, where a machine and an image cost nothing, so that what is left is ours. Each job runs a
fresh attempt and, after a preemption, one that resumes. Two jobs: one with the pool's own command, in which Prefect's
runner starts the engine, and one that starts the engine at once. Prints seconds by part, from the decision to launch:

    submit    until Prefect has the flow run
    pick up   until the worker has it (an event notifies it)
    create    until the sandbox's first process runs
    start     until the flow run is Running: Python and Prefect, once per process
    claim     until the attempt is claimed: imports of the flow, opening the store
    restore   downloading and verifying the newest commit
    import    until the first new step: torch, the data, the model
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client

from benchmarks.results import write_result
from crucible.jobs.job import Attempt, Job
from crucible.jobs.status import JobState, status_of
from crucible.local.access import prefect_settings
from crucible.rehearsal.modal.drill import IMAGE, STORE_SECRET, ModalStage, modal_stage

COMMANDS = {
    "runner": "",
    "engine": "python -m crucible.agent.entrypoint -- python -m prefect.engine",
}
PATIENCE_SECONDS = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the pool's own command")
    commands = ["runner"] if parser.parse_args().quick else list(COMMANDS)
    figures: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="crucible-bench-", ignore_cleanup_errors=True) as folder,
        modal_stage(Path(folder)) as stage,
        prefect_settings(stage.home),
        get_client(sync_client=True) as client,
    ):
        for command in commands:
            _use_command(stage, COMMANDS[command])
            figures[command] = _fresh_and_resumed(stage, client, f"first-step-{command}")
    if len(commands) == 2:
        figures["runner_to_engine"] = {
            kind: round(figures["runner"][kind]["total"] / figures["engine"][kind]["total"], 2)
            for kind in ("fresh", "resumed")
        }
    print(json.dumps(figures, indent=2))
    write_result("modal_first_step", figures)


def _use_command(stage: ModalStage, command: str) -> None:
    options = ("--gpu", "L4", "--image", IMAGE, "--secret", STORE_SECRET, "--set", f"command={command}")
    stage.crucible("modal", "pool", *options)


def _fresh_and_resumed(stage: ModalStage, client: SyncPrefectClient, job_id: str) -> dict[str, dict[str, float]]:
    parameters = {
        "preset": "debug",
        "config": {
            "device": "auto",
            "max_iters": 100_000,
            "eval_interval": 1_000_000,
            "checkpoint_interval_seconds": 1.0,
        },
        "dataset": {"source": "python-stdlib", "max_bytes": 500_000},
        "job": job_id,
        "pool": "modal",
        "run_evaluation": False,
    }
    stage.prefect("deployment", "run", "train-nanogpt", "--params", json.dumps(parameters))
    job = Job(stage.store, job_id)
    parts = {}
    for number, kind in enumerate(("fresh", "resumed"), start=1):
        attempt = job.attempt(number)
        _wait(lambda attempt=attempt: _has_committed(attempt))  # type: ignore[misc]
        sandbox = next(s for s in stage.modal.running() if s.tags.get("attempt") == str(number))
        stage.modal.preempt(sandbox.id)
        _wait(lambda attempt=attempt: attempt.read_outcome() is not None)  # type: ignore[misc]
        parts[kind] = _parts(client, attempt, sandbox.tags["prefect-flow-run-id"], sandbox.started_at)
    _wait(lambda: job.attempt(len(parts) + 1).read_claim() is not None)
    stage.crucible("jobs", "stop", job_id)
    _wait(lambda: (status := status_of(job)) is not None and status.state is not JobState.RUNNING)
    return parts


def _has_committed(attempt: Attempt) -> bool:
    heartbeat, start = attempt.read_heartbeat(), attempt.read_start()
    return heartbeat is not None and start is not None and heartbeat.committed_step > start.step


def _parts(client: SyncPrefectClient, attempt: Attempt, flow_run_id: str, sandbox_started: float) -> dict[str, float]:
    from uuid import UUID

    launch, claim, start, outcome = (
        attempt.read_launch(),
        attempt.read_claim(),
        attempt.read_start(),
        attempt.read_outcome(),
    )
    assert launch is not None
    assert claim is not None
    assert start is not None
    assert outcome is not None
    assert outcome.first_step_after_seconds is not None
    run = client.read_flow_run(UUID(flow_run_id))
    entered = {state.name: state.timestamp.timestamp() for state in reversed(client.read_flow_run_states(run.id))}
    assert run.created is not None
    claimed = claim.claimed_at.timestamp()
    moments = {
        "submit": run.created.timestamp(),
        "pick up": entered["Pending"],
        "create": sandbox_started,
        "start": entered["Running"],
        "claim": claimed,
        "restore": start.started_at.timestamp(),
        "import": claimed + outcome.first_step_after_seconds,
    }
    before = launch.decided_at.timestamp()
    parts = {}
    for part, moment in moments.items():
        parts[part] = round(moment - before, 2)
        before = moment
    return {**parts, "total": round(before - launch.decided_at.timestamp(), 2)}


def _wait(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the run made no progress for {PATIENCE_SECONDS:.0f} s")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
