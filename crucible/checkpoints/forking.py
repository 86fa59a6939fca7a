"""The checkpoint that a forked job begins at: a copy of its own of a commit of another job.

The copy is made before the new job is on record, so the other job's retention has nothing to wait for, and nothing of
it is written to. It is the commit of an attempt 0, which no machine ever ran.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.manifest import FOLDER, Checkpoint, step_and_attempt
from crucible.checkpoints.restore import fetch_chosen
from crucible.config import TrainConfig
from crucible.contract import STATE_FILE, file_sha256, step_name
from crucible.errors import ConfigError
from crucible.jobs.job import Job
from crucible.workload.folders import CHECKSUMS

BEGINNING = 0
"""The number of the attempt that the copy is a commit of."""
SHAPE = ("n_layer", "n_head", "n_embd", "block_size", "bias")
"""What of a configuration a model's weights fix."""


def forked_config(before: TrainConfig, changes: Mapping[str, Any], step: int) -> TrainConfig:
    """The configuration of a fork at `step`. Raises `ConfigError` for every change that the checkpoint forbids."""
    config = before.with_overrides(changes)
    wrong = [
        f"{name} = {getattr(config, name)}: the checkpoint's model has {name} = {getattr(before, name)}, and its shape "
        "cannot change; leave it out, or start a new job"
        for name in SHAPE
        if getattr(config, name) != getattr(before, name)
    ]
    if config.init_from != before.init_from:
        wrong.append("init_from: a fork starts from its checkpoint; leave it out, or start a new job")
    if config.max_iters <= step:
        wrong.append(f"max_iters = {config.max_iters} is not beyond the checkpoint's step {step}; raise it")
    if wrong:
        raise ConfigError("; ".join(wrong))
    return config


def copy_checkpoint(parent: Checkpoints, chosen: Checkpoint, fork: Job, config: TrainConfig | None, work: Path) -> None:
    """Put a checked copy of a commit into the new job; `work`: a scratch folder. Raises `CheckpointError`.

    `config`: what the fork trains, written into the copy in place of what the parent trained; None for a script.
    """
    folder = work / step_name(chosen.step)
    fetch_chosen(parent, chosen, folder)
    if config is not None:
        _write_config(folder, config)
    copies = Checkpoints(fork)
    for name in fork.store.folders(FOLDER):  # of a fork of this name that was killed before it was on record
        if step_and_attempt(name)[1] == BEGINNING:
            copies.delete(name)
    copies.commit(fork.attempt(BEGINNING), folder)


def _write_config(folder: Path, config: TrainConfig) -> None:
    path = folder / STATE_FILE
    state = json.loads(path.read_text(encoding="utf-8"))
    state |= {"config": config.model_dump(mode="json"), "config_digest": config.digest()}
    path.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    sums["files"][STATE_FILE] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    (folder / CHECKSUMS).write_text(json.dumps(sums), encoding="utf-8")
