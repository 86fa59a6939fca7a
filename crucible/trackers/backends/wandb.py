"""Weights & Biases: the job's id is the run's id, so that the run is resumed wherever it is opened.

Without a key the run is kept on this machine; `wandb sync` sends it later. W&B writes in the background, so a process
that was killed may have lost rows that it took: the files themselves say how far they are.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from crucible.home import crucible_home
from crucible.jobs.metrics import Row
from crucible.jobs.status import JobState
from crucible.trackers.backends.base import RunEnd, RunRequest
from crucible.trackers.points import shown_metrics

KEY = "WANDB_API_KEY"
_BLOCK = 32768


class WandbRun:
    """A job's run at Weights & Biases, or in files below `WANDB_DIR`."""

    def __init__(self, request: RunRequest) -> None:
        config = request.config
        if key := config.api_key.get_secret_value():
            os.environ[KEY] = key
        if config.url:
            os.environ["WANDB_BASE_URL"] = config.url
        folder = Path(os.environ.setdefault("WANDB_DIR", str(crucible_home())))
        folder.mkdir(parents=True, exist_ok=True)
        import wandb

        offline = os.environ.get("WANDB_MODE") == "offline" or not _has_key()
        kept = newest_kept(folder, request.spec.job_id)
        labels = request.labels
        self._run = wandb.init(
            entity=config.entity or None,
            project=request.project,
            id=request.spec.job_id,
            name=request.spec.job_id,
            group=labels.get("sweep"),
            tags=[f"{name}:{value}"[:64] for name, value in labels.items() if name != "job"],
            config=request.parameters,
            resume="allow",
            reinit="create_new",
            mode="offline" if offline else None,
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                save_code=False,
                x_disable_stats=True,  # they would be those of the supervisor's machine
                x_disable_meta=True,
                init_timeout=30,
            ),
        )
        self.run_id = request.spec.job_id
        self.url = self._run.url or f"offline: wandb sync {self._run.dir.removesuffix('/files')}"
        self.newest_step: int | None = kept if offline else self._run.starting_step - 1

    def send(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._run.log(shown_metrics(row), step=int(row["step"]))

    def finish(self, end: RunEnd) -> None:
        self._run.summary.update({"state": str(end.state), "reason": end.reason, **end.figures, "model": end.model})
        self._run.finish(exit_code=1 if end.state is JobState.FAILED else 0)

    def close(self) -> None:
        self._run.finish()


def _has_key() -> bool:
    import wandb

    return bool(os.environ.get(KEY) or wandb.api.api_key)


def newest_kept(folder: Path, run_id: str) -> int | None:
    """The newest step in the files of offline runs below `folder`; -1: they have none; None: there are no files."""
    steps = [-1]
    paths = list(folder.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))
    for path in paths:
        steps += [step for step, _ in kept_rows(path)]
    return max(steps) if paths else None


def kept_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Step and values of every row in the file of an offline run."""
    from google.protobuf.message import DecodeError

    make_record = import_module("wandb.proto.wandb_internal_pb2").Record
    for data in _log_entries(path.read_bytes()):
        record = make_record()
        with suppress(DecodeError, ValueError, KeyError):
            record.ParseFromString(data)
            items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            if items:
                values = {name: json.loads(value) for name, value in items.items()}
                yield int(values["_step"]), values


def _log_entries(data: bytes) -> Iterator[bytes]:
    """The entries of a LevelDB log behind W&B's header of 7 bytes: checksum (4), length (2), type (1) and data.

    Blocks have 32 KiB; an entry that does not fit into its block has several parts.
    """
    at, whole = 7, b""
    while at + 7 <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        if kind == 0:
            return
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole in one block, or the last part
            yield whole
            whole = b""
