"""What successive halving saves, and what carrying a sweep out costs: `python -m benchmarks.sweeps [--quick]`.

1. 27 configurations (learning rate × width × dropout) of a small GPT are all trained to the end, with their losses at
   every rung on record. Then `tune-nanogpt` searches the same grid with ASHA, and Optuna's SuccessiveHalvingPruner is
   played on the recorded losses in the same order. Compared: steps, and the best loss found.
2. 64 trials of about 2 s of training, two at a time: `tune-nanogpt` from `prefect deployment run` to Completed, against
   the same processes started in a bare loop.
3. 1,000 trials whose process ends at once: seconds per trial and memory of server and flow, first against last hundred;
   and what a trial takes when each is a flow run of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.results import write_result
from crucible.config import TrainConfig
from crucible.datasets.build import build_dataset
from crucible.datasets.config import DatasetConfig
from crucible.datasets.fetch import fetch_dataset
from crucible.jobs.status import JobState
from crucible.local.access import connect
from crucible.local.services import client_settings
from crucible.local.state import State
from crucible.rehearsal.drill.stage import Stage, local_stage
from crucible.sweeps import Space, Sweep, SweepLimits, SweepSpec
from crucible.sweeps.kinds import trial_config
from crucible.sweeps.sampling import make_sampler
from crucible.sweeps.schedules import ladder

DATASET = DatasetConfig(source="python-stdlib", max_bytes=300_000)
SPACE = {"learning_rate": [1e-3, 3e-3, 1e-2], "n_embd": [16, 32, 64], "dropout": [0.0, 0.1, 0.2]}
ETA = 3
AT_A_TIME = 2
SECONDS_OF_TRAINING = 2.0
ORDERS = 40
"""In which Optuna meets the trials, besides that of the sweep: its steps depend on who comes first."""
COMMON = {"fast_gemm": "off", "threads": 1, "eval_interval": 1_000_000}
"""One way to multiply and one thread: the recorded losses and those of the sweep must agree to the last bit."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer trials; the ratios then say little")
    quick = parser.parse_args().quick
    with (
        tempfile.TemporaryDirectory(prefix="crucible-bench-", ignore_cleanup_errors=True) as folder,
        local_stage(Path(folder)) as stage,
    ):
        digest = build_dataset(DATASET, stage.store).digest
        data = fetch_dataset(stage.store, digest, stage.home.root / "cache" / "datasets")
        result: dict[str, Any] = {"asha": _asha(stage, data, steps=54 if quick else 270)}
        result |= {name: result["asha"][name] for name in ("grid_steps", "asha_steps", "optuna_steps", "best_loss_gap")}
        write_result("sweeps", result)  # each part takes its minutes: what is there is kept
        result["orchestration"] = _orchestration(stage, data, trials=8 if quick else 64)
        write_result("sweeps", result)
        result["no_work"] = _no_work(stage, trials=60 if quick else 1000, flow_runs=4 if quick else 12)
    print(json.dumps(result, indent=2))
    write_result("sweeps", result)


# What halving saves


def _asha(stage: Stage, data: Path, steps: int) -> dict[str, Any]:
    base = TrainConfig.preset("debug", max_iters=steps, warmup_iters=steps // 10, **COMMON)
    rungs = ladder(steps, steps // 9, ETA)
    space = Space.parse(SPACE)
    order = make_sampler("grid", space, 0)
    trials = [order.suggest(number, []) for number in range(1, len(space.grid()) + 1)]
    configs = [trial_config(base, values) for values in trials]
    with ProcessPoolExecutor(AT_A_TIME) as pool:
        recorded = list(pool.map(_losses, configs, [data] * len(configs), [rungs] * len(configs)))
    _say(f"grid: {len(trials)} configurations trained to step {steps}")

    sweep = _tune(
        stage, "asha", base, space=SPACE, sampler="grid", schedule="asha", min_steps=rungs[0], run_evaluation=False
    )
    found = sweep.read_trials()
    best = sweep.best()
    assert best is not None
    assert best.loss is not None
    measured = [(trial.number, step, loss) for trial in found for step, loss in trial.losses.items()]
    grid_best = min(losses[-1] for losses in recorded)
    in_other_orders = [
        _optuna_steps(random.Random(seed).sample(recorded, len(recorded)), rungs) for seed in range(ORDERS)
    ]
    return {
        "configurations": len(trials),
        "rungs": rungs,
        "grid_steps": steps * len(trials),
        "asha_steps": sum(trial.steps for trial in found),
        "asha_share": round(sum(trial.steps for trial in found) / (steps * len(trials)), 3),
        "optuna_steps": _optuna_steps(recorded, rungs),
        "optuna_steps_mean_of_orders": round(statistics.mean(in_other_orders)),
        "optuna_steps_least_and_most": [min(in_other_orders), max(in_other_orders)],
        "grid_best_loss": grid_best,
        "asha_best_loss": best.loss,
        "best_loss_gap": best.loss - grid_best,
        "rung_losses": len(measured),
        "rung_losses_equal_to_the_grids": sum(
            loss == recorded[number - 1][rungs.index(step)] for number, step, loss in measured
        ),
    }


def _losses(config: TrainConfig, data: Path, rungs: Sequence[int]) -> list[float]:
    """Validation losses at every rung of one training that nothing stops."""
    from crucible.training.data import Dataset
    from crucible.training.trainer import Trainer
    from crucible.workload.metrics import Metrics

    trainer, losses = Trainer(config, Dataset(data)), []
    for rung in rungs:
        with tempfile.TemporaryDirectory() as folder:
            result = trainer.run(Path(folder) / "checkpoints", metrics=Metrics(None), stop_at_step=rung)
        assert result.val_loss is not None
        losses.append(result.val_loss)
    return losses


def _optuna_steps(recorded: Sequence[Sequence[float]], rungs: Sequence[int]) -> int:
    """Steps that Optuna's pruner trains when it meets the same trials one after the other, its most favourable case."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(pruner=optuna.pruners.SuccessiveHalvingPruner(rungs[0], ETA))
    steps = 0
    for losses in recorded:
        trial = study.ask()
        pruned = False
        for rung, loss in zip(rungs, losses, strict=True):
            reached = rung
            trial.report(loss, rung)
            if rung != rungs[-1] and trial.should_prune():
                pruned = True
                break
        steps += reached
        study.tell(trial, losses[-1] if not pruned else None, optuna.trial.TrialState.PRUNED if pruned else None)
    return steps


# What carrying out costs


def _orchestration(stage: Stage, data: Path, trials: int) -> dict[str, Any]:
    base = TrainConfig.preset("debug", max_iters=_steps_of(SECONDS_OF_TRAINING, data), **COMMON)
    configs = [base.model_copy(update={"seed": seed}) for seed in range(1, trials + 1)]
    began = time.monotonic()
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(lambda config: _bare(stage, config, data), configs))
    bare = time.monotonic() - began
    _say(f"bare loop: {trials} processes of {base.max_iters} steps in {bare:.0f} s")

    began = time.monotonic()
    space = {"seed": {"int": [1, trials]}}
    sweep = _tune(stage, "orchestrated", base, space=space, sampler="grid", schedule="none", run_evaluation=False)
    whole = time.monotonic() - began
    outcomes = [sweep.job(number).attempt(1).read_outcome() for number in range(1, trials + 1)]
    launches = [sweep.job(number).attempt(1).read_launch() for number in range(1, trials + 1)]
    first = min(launch.decided_at for launch in launches if launch)
    last = max(outcome.ended_at for outcome in outcomes if outcome)
    return {
        "trials": trials,
        "steps_each": base.max_iters,
        "bare_seconds": round(bare, 1),
        "sweep_seconds": round(whole, 1),
        "trials_seconds": round((last - first).total_seconds(), 1),
        "ratio": round(whole / bare, 3),
        "ratio_without_start_of_the_flow": round((last - first).total_seconds() / bare, 3),
    }


def _steps_of(seconds: float, data: Path) -> int:
    """Steps that take so long on one thread while as many trials as usual share the machine."""
    config = TrainConfig.preset("debug", max_iters=400, **COMMON)
    with ProcessPoolExecutor(AT_A_TIME) as pool:
        speeds = list(pool.map(_seconds_per_step, [config] * AT_A_TIME, [data] * AT_A_TIME))
    return max(10, round(seconds / max(speeds)))


def _seconds_per_step(config: TrainConfig, data: Path) -> float:
    from crucible.training.data import Dataset
    from crucible.training.trainer import Trainer

    trainer = Trainer(config, Dataset(data))
    for _ in range(20):
        trainer.train_step()
    began = time.perf_counter()
    while trainer.step < config.max_iters:
        trainer.train_step()
    return (time.perf_counter() - began) / (config.max_iters - 20)


def _bare(stage: Stage, config: TrainConfig, data: Path) -> None:
    folder = stage.home.root / "bare" / str(config.seed)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.model_dump_json())
    command = [sys.executable, "-m", "crucible.training", "--config", str(folder / "config.json"), "--data", str(data)]
    environment = {**stage.environment, "CRUCIBLE_CHECKPOINT_DIR": str(folder / "checkpoints"), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True)


def _tune(stage: Stage, name: str, base: TrainConfig, **parameters: Any) -> Sweep:
    """Run a sweep as a user does, to its end."""
    changed = base.model_dump(mode="json", exclude_none=True)
    values = {
        "preset": "debug",
        "config": changed,
        "dataset": DATASET.model_dump(mode="json"),
        "sweep": name,
        "parallelism": AT_A_TIME,
        **parameters,
    }
    said = stage.prefect("deployment", "run", "tune-nanogpt", "--params", json.dumps(values))
    run = said.split("UUID:")[1].split()[0]
    _wait(lambda: _final(stage, run), 1800)
    sweep = Sweep.open(stage.store, name)
    status = sweep.read_status()
    assert status is not None
    assert status.state is JobState.COMPLETED, status.reason
    _say(f"{name}: {status.reason}")
    return sweep


def _final(stage: Stage, run: str) -> bool:
    with connect(stage.home, State.load(stage.home).api_url or "") as api:
        state = api.get(f"/flow_runs/{run}").json()["state"]["type"]
    return state in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


# Trials of no work


def _no_work(stage: Stage, trials: int, flow_runs: int) -> dict[str, Any]:
    sweep = _empty_sweep(stage, "no-work", trials)
    server = State.load(stage.home).services["server"].find()
    assert server is not None
    memory: list[tuple[int, float, float]] = []
    flow = _carried_out(stage, sweep)
    while flow.poll() is None:
        time.sleep(1.0)
        begun = len(sweep.store.list("trials"))
        with suppress(psutil.NoSuchProcess):
            memory.append((begun, _mb(psutil.Process(flow.pid)), _mb(server)))
    assert flow.returncode == 0, "the flow failed"
    assert all(trial.state == "complete" for trial in sweep.read_trials())
    ends = _ends(sweep)
    tenth = max(10, trials // 10)
    at = {share: min(memory, key=lambda entry: abs(entry[0] - share * trials)) for share in (0.1, 0.5, 1.0)}

    elsewhere = _empty_sweep(stage, "flow-runs", flow_runs)
    assert _carried_out(stage, elsewhere, "flow-runs").wait() == 0, "the flow failed"
    return {
        "trials": trials,
        "seconds_per_trial": _pace(ends),
        "seconds_per_trial_first_tenth": _pace(ends[:tenth]),
        "seconds_per_trial_last_tenth": _pace(ends[-tenth:]),
        "seconds_per_trial_as_flow_runs": _pace(_ends(elsewhere)),
        "flow_mb": {f"at {share:.0%}": round(entry[1]) for share, entry in at.items()},
        "server_mb": {f"at {share:.0%}": round(entry[2]) for share, entry in at.items()},
    }


def _empty_sweep(stage: Stage, name: str, trials: int) -> Sweep:
    save = (
        'cd "$CRUCIBLE_CHECKPOINT_DIR" && mkdir p && echo {} > p/state.json && mv p step-00000001 && '
        'echo \'{"step": 1, "val_loss": 1.0}\' > "$CRUCIBLE_METRICS_FILE"'
    )
    spec = SweepSpec(
        sweep_id=name,
        space=Space.parse({"seed": {"int": [1, trials]}}).as_json(),
        sampler="grid",
        schedule="none",
        ladder=[1],
        parallelism=AT_A_TIME,
        config=TrainConfig.preset("debug", max_iters=1, warmup_iters=0).model_dump(mode="json"),
        command=["sh", "-c", save],
    )
    sweep = Sweep.create(stage.store, spec)
    sweep.set_limits(SweepLimits(max_trials=trials))
    return sweep


def _carried_out(stage: Stage, sweep: Sweep, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.no_work_flow", sweep.root.uri, sweep.sweep_id, *arguments]
    settings = client_settings(stage.home, State.load(stage.home).api_url or "") | {"OMP_NUM_THREADS": "1"}
    environment = {**stage.environment, **settings}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _ends(sweep: Sweep) -> list[datetime]:
    outcomes = (sweep.job(trial.number).attempt(1).read_outcome() for trial in sweep.read_trials())
    return sorted(outcome.ended_at for outcome in outcomes if outcome)


def _pace(ends: Sequence[datetime]) -> float:
    """Mean seconds between two ends."""
    return round((ends[-1] - ends[0]).total_seconds() / (len(ends) - 1), 3)


def _mb(process: psutil.Process) -> float:
    return process.memory_info().rss / 1e6


def _wait(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the sweep did not end within {seconds:.0f} s")
        time.sleep(0.2)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
