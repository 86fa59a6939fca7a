"""Train a model.

On its own, from a text file (resumes by itself when OUT holds a checkpoint of the same run):

    python -m crucible.training --preset cpu-small --text input.txt --out OUT [--set key=value ...] [--json]

As the workload of an agent, which says where to save and resume by CRUCIBLE_CHECKPOINT_DIR and CRUCIBLE_RESUME_FROM:

    python -m crucible.training --config config.json --data DATASET_FOLDER

From weights that exist (see `init_from` in docs/models.md), whose shape the model takes over:

    python -m crucible.training --set init_from=gpt2 max_iters=20 --data DATASET_FOLDER --out OUT

Several GPUs of one machine: `--processes N` with the same arguments; torchrun works too.
Exit code 0: done; 75: stopped by SIGTERM or SIGINT, saved, start again to go on; 69: this machine's GPU is not fit; 1:
failed. The last line says why.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, cast

from crucible.config import ConfigDraft, TrainConfig, preset_names
from crucible.contract import EXIT_DONE, EXIT_SAVED, EXIT_UNFIT, METRICS_FILE, Variable
from crucible.errors import CheckpointError, ConfigError, CrucibleError, DataError, MachineUnfit
from crucible.training.hardware import may_compute_on_cpu
from crucible.training.launch import launch
from crucible.workload.folders import STATE, TRAINER_FILES, newest_sound
from crucible.workload.lock import lock_folder
from crucible.workload.stop import StopRequest, leave, stop_at_step

if TYPE_CHECKING:
    from crucible.training.cpu import Gemm
    from crucible.training.initial import Initial
    from crucible.training.trainer import Result


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    stop = StopRequest()  # before the slow imports: a signal during them must not be lost
    options = _parser().parse_args(arguments)
    if options.processes > 1 and "RANK" not in os.environ:
        given = sys.argv[1:] if arguments is None else arguments
        return launch([sys.executable, "-m", "crucible.training", *given], options.processes)
    try:
        return _train(options, stop)
    except MachineUnfit as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_UNFIT
    except CrucibleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which may not be imported yet
            raise
        print(f"error: the model and its optimizer do not fit the GPU's memory: {error}", file=sys.stderr)
        return 1


def _train(options: argparse.Namespace, stop: StopRequest) -> int:
    draft = _draft(options)
    if draft.remark:
        _log(draft.remark)
    machine = {key: value for key, value in {**draft.base, **draft.stated}.items() if key in ("device", "fast_gemm")}
    choices = TrainConfig.parse(machine)
    if draft.init_from is None:
        draft.config()  # refuses before anything is read or tokenized
    contract = os.environ.get(Variable.CHECKPOINT_DIR)
    if contract is None and options.out is None:
        raise ConfigError("--out is missing; give the folder for checkpoints and metrics")
    checkpoints = Path(contract) if contract is not None else options.out / "checkpoints"
    data = _data(options)
    with _locked(checkpoints) as lock:
        if contract is not None:
            given = os.environ.get(Variable.RESUME_FROM)
            resume_from = Path(given) if given else None
        else:
            resume_from = newest_sound(checkpoints, _log, TRAINER_FILES)
        gemm = None
        if may_compute_on_cpu(choices.device):
            from crucible.training import cpu

            gemm = cpu.choose_gemm(choices.fast_gemm, resume_from)  # before torch is imported

        from crucible.training.data import Dataset
        from crucible.training.micro_batch import recorded_environment
        from crucible.training.processes import Processes
        from crucible.training.self_test import require_fit_gpu
        from crucible.training.trainer import Trainer
        from crucible.workload.metrics import Metrics

        processes = Processes()
        if contract is None:
            resume_from = processes.gather(resume_from)[0]  # the first one holds the lock, so it knows
        elif len(begins := {path and path.name for path in processes.gather(resume_from)}) > 1:
            raise CheckpointError(f"the processes would begin at different checkpoints: {', '.join(map(str, begins))}")
        log = _log if processes.first else _silent
        config, initial = _start(draft, options.weights, resume_from)
        require_fit_gpu(config, processes.local_rank, log)
        trainer = Trainer(
            config,
            Dataset(data),
            gemm=gemm.backend if gemm else "mkl",
            processes=processes,
            before=recorded_environment(resume_from),
            log=log,
        )
        _introduce(trainer.environment, sum(trainer.optimizer.sizes.values()), gemm, log)
        if resume_from is not None:
            trainer.resume(resume_from)
        elif initial is not None:
            trainer.begin_from(initial)
        first = trainer.step
        stop.anything_to_save = lambda: trainer.step > first
        metrics = os.environ.get(Variable.METRICS_FILE) or (options.out and options.out / METRICS_FILE)
        result = trainer.run(
            checkpoints,
            metrics=Metrics(Path(metrics) if metrics and processes.first else None, log),
            lock=lock,
            stop=lambda: bool(stop),
            stop_at_step=stop_at_step(),
            keep=config.keep_checkpoints if contract is None else None,
        )
        processes.close()
    if not result.complete:
        log(f"stopped at step {result.step} ({stop.reason() if stop else 'as asked'}); saved, start again to go on")
        return EXIT_SAVED
    if processes.first:
        log(f"done: step {result.step}, train loss {result.train_loss:.4f}, val loss {result.val_loss:.4f}")
        if options.json:
            print(_json_line(result), flush=True)
    return EXIT_DONE


def _locked(checkpoints: Path) -> AbstractContextManager[int | None]:
    """The folder's lock, for the one process that writes."""
    return lock_folder(checkpoints, _log) if os.environ.get("RANK", "0") == "0" else nullcontext()


def _draft(options: argparse.Namespace) -> ConfigDraft:
    draft = ConfigDraft.from_file(options.config) if options.config else ConfigDraft.preset(options.preset, {})
    overrides = {}
    for item in options.set:
        key, separator, value = item.partition("=")
        if not separator:
            raise ConfigError(f"--set {item} is not of the form key=value")
        overrides[key] = value
    return draft.with_overrides(overrides)


def _start(draft: ConfigDraft, weights: Path | None, resume_from: Path | None) -> tuple[TrainConfig, Initial | None]:
    """The complete configuration, and the weights to start from unless a checkpoint of this run is there."""
    if (text := draft.init_from) is None:
        return draft.config(), None
    from crucible.training.initial_files import find_locally, read_initial
    from crucible.training.initial_source import Source, settled

    source = Source.parse(text)
    if resume_from is not None:
        recorded = json.loads((resume_from / STATE).read_text(encoding="utf-8"))["config"]
        return TrainConfig.parse({**draft.base, **settled(recorded, source.resume), **draft.stated}), None
    initial = read_initial(weights or find_locally(source.place), resume=source.resume, source=source.place)
    config = TrainConfig.parse(initial.settings(draft.base, draft.stated))
    initial.require_steps_left(config)
    return config, initial


def _data(options: argparse.Namespace) -> Path:
    """The dataset folder, made from --text with one token per character if need be."""
    if options.data is not None:
        return cast(Path, options.data)
    if options.text is None:
        raise ConfigError("--text or --data is missing; give a text file or a dataset folder to train on")
    if not options.text.is_file():
        raise DataError(f"--text {options.text} is not a file; give the path of a UTF-8 text")
    from crucible.datasets.build import build_dataset
    from crucible.datasets.config import DatasetConfig
    from crucible.store import store_at

    root = (options.out or Path(os.environ[Variable.CHECKPOINT_DIR]).parent / "data").absolute()
    config = DatasetConfig.parse({"source": str(options.text.absolute()), "tokenizer": "char"})
    info = build_dataset(config, store_at(root.as_uri()))
    return cast(Path, root / "datasets" / info.digest)


def _introduce(environment: dict[str, object], parameters: int, gemm: Gemm | None, log: Callable[[str], None]) -> None:
    log(f"{parameters:,} parameters on {environment['hardware']}, {environment['precision']}")
    if environment["device"] == "cpu":
        reason = gemm.reason if gemm else "torch's own way"
        log(f"{environment['threads']} threads, matrices multiplied by {environment['gemm']} ({reason})")


def _json_line(result: Result) -> str:
    return json.dumps(
        {
            "step": result.step,
            "train_loss": result.train_loss,
            "val_loss": result.val_loss,
            "tokens_per_second": round(result.tokens_per_second, 1),
            "weights_sha256": result.weights_sha256,
        }
    )


def _parser() -> argparse.ArgumentParser:
    description, _, _ = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser("python -m crucible.training", description=description)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--preset", default="cpu-small", help=f"one of {', '.join(preset_names())} (default cpu-small)")
    what.add_argument(
        "--config", type=Path, help="a YAML or JSON file of settings, or a config/*.py of nanoGPT, instead of a preset"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--text", type=Path, help="a UTF-8 text file; one token per character")
    source.add_argument("--data", type=Path, help="a dataset folder")
    parser.add_argument("--weights", type=Path, help="where the weights that init_from names lie on this machine")
    parser.add_argument("--out", type=Path, help="folder for checkpoints, metrics and the tokenized text")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="key=value", help="change settings")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="data-parallel processes, one per GPU")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON on stdout")
    return parser


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    """For the processes that are not the first."""


if __name__ == "__main__":
    leave(main())
