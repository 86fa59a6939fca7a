"""Weights to start from, carried into the store by their content before anything is launched.

Every machine of the job then finds them, whatever becomes of the file or the job that they came from. In the job's
record `init_from` is their address, `weights:DIGEST`, the digest of a data set (see `crucible.code.data`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.restore import choose_checkpoint, fetch_chosen
from crucible.code.data import scan, upload
from crucible.code.workplace import place_data
from crucible.contract import step_name
from crucible.datasets.meta import META_FILE, DatasetMeta
from crucible.errors import ConfigError
from crucible.home import local_path
from crucible.jobs.job import Job
from crucible.store import Store
from crucible.training.initial_source import Source

if TYPE_CHECKING:
    from crucible.training.initial import Initial

WEIGHTS = "weights"


@dataclass(frozen=True)
class TrainedTokenizer:
    """What the weights of a job count in."""

    job: str
    sha256: str
    uri: str
    """Its file in the store."""

    def require_same(self, meta: DatasetMeta) -> None:
        """Raise `ConfigError` for a dataset whose tokens stand for something else, though there may be as many."""
        if meta.tokenizer.sha256 != self.sha256:
            raise ConfigError(
                f"init_from: job {self.job} was trained with another tokenizer than the dataset's, so that its tokens "
                f"stand for other texts; prepare the dataset with its own: tokenizer: file, and as tokenizer_file a "
                f"copy of {self.uri}"
            )


def carry_in(
    store: Store, init_from: str, work: Path, report: Callable[[str], None] = lambda _: None
) -> tuple[str, Initial]:
    """Read what `init_from` names and put it into the store; returns its address there, and what it is.

    `work`: a scratch folder. Raises `ConfigError` for what cannot be started from, `CheckpointError` for a damaged
    checkpoint of a job.
    """
    from crucible.training.initial_files import checkpoint_files  # torch, for who starts from weights only

    source = Source.parse(init_from)
    path, initial = _read(store, source, work)
    if source.place.startswith(f"{WEIGHTS}:"):
        return init_from, initial
    staged = work / WEIGHTS
    staged.mkdir()
    for name, file in checkpoint_files(path).items():
        (staged / name).symlink_to(file.resolve())
    found = scan(work, WEIGHTS)
    upload(store, work, WEIGHTS, found, report)
    return f"{'resume:' if source.resume else ''}{WEIGHTS}:{found.digest}", initial


def read_weights(store: Store, init_from: str, work: Path) -> Initial:
    """Read what `init_from` names without keeping it. Raises as `carry_in` does."""
    return _read(store, Source.parse(init_from), work)[1]


def tokenizer_of(store: Store, init_from: str) -> TrainedTokenizer | None:
    """The tokenizer that a job named by `init_from` was trained with; None for weights that do not say."""
    place = Source.parse(init_from).place
    if not place.startswith("job:"):
        return None
    name = place.removeprefix("job:").partition("@")[0]
    dataset = Job.open(store, name).read_spec().dataset
    where = f"datasets/{dataset}/{META_FILE}"
    if not dataset or not store.exists(where):
        return None
    tokenizer = DatasetMeta.parse(store.read_json(where), where).tokenizer
    return TrainedTokenizer(name, tokenizer.sha256, f"{store.uri}/datasets/{dataset}/{tokenizer.file}")


def place_weights(store: Store, init_from: str, folder: Path, cache: Path) -> Path:
    """The weights of a job's record on this machine, below `folder`; their files come from `cache`."""
    digest = Source.parse(init_from).place.removeprefix(f"{WEIGHTS}:")
    place_data(store, {WEIGHTS: digest}, folder, cache)
    return folder / WEIGHTS


def _read(store: Store, source: Source, work: Path) -> tuple[Path, Initial]:
    from crucible.training.initial_files import read_initial

    if source.place.startswith(f"{WEIGHTS}:"):
        path = place_weights(store, source.place, work, work / "cache")
    else:
        path = _bring(store, source.place, work)
    return path, read_initial(path, resume=source.resume, source=source.place)


def _bring(store: Store, place: str, work: Path) -> Path:
    if place.startswith("hf:"):
        from crucible.training.initial_files import find_locally

        return find_locally(place)
    if not place.startswith("job:"):
        return local_path(place, "init_from")
    name, _, which = place.removeprefix("job:").partition("@")
    checkpoints = Checkpoints(Job.open(store, name))
    chosen = choose_checkpoint(checkpoints, which, f"init_from = {place!r}")
    target = work / step_name(chosen.step)
    fetch_chosen(checkpoints, chosen, target)
    return target
