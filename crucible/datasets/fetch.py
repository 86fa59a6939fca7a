"""Download a dataset to this machine once, verify it, and share it between all processes."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from crucible.datasets.disk import require_free_space, sweep, writing_to
from crucible.datasets.meta import META_FILE, DatasetMeta, load_meta
from crucible.errors import DataError, ObjectMissing
from crucible.store import Store


def fetch_dataset(store: Store, digest: str, cache_dir: str | Path) -> Path:
    """The local folder of the dataset, `cache_dir/<digest>`, downloaded unless it is there.

    Every file is checked against its sha256 before the folder gets its name, so a folder with this name is complete;
    concurrent processes end up with the same folder. Raises DataError if the store has no such dataset or a file
    does not verify.
    """
    cache = Path(cache_dir)
    folder = cache / digest
    if _is_whole(folder):
        return folder
    remote = store.child(f"datasets/{digest}")
    try:
        meta = DatasetMeta.parse(remote.read_json(META_FILE), f"{remote.uri}/{META_FILE}")
    except ObjectMissing as error:
        raise DataError(
            f"dataset {digest} is not in {store.uri}; prepare it with `crucible data prepare` and this store"
        ) from error
    with writing_to(cache):
        cache.mkdir(parents=True, exist_ok=True)
        sweep(cache, "*.partial")
        partial = Path(tempfile.mkdtemp(dir=cache, prefix=f"{digest}-", suffix=".partial"))
    try:
        require_free_space(cache, meta.tokens * meta.token_bytes, f"dataset {digest}")
        for name, sha256 in files(meta).items():
            _download(remote, name, sha256, partial)
        remote.download(META_FILE, partial / META_FILE)
        with writing_to(cache):
            _place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def files(meta: DatasetMeta) -> dict[str, str]:
    """The sha256 of every file of a dataset besides meta.json, by name."""
    shards = {shard.file: shard.sha256 for split in meta.splits.values() for shard in split.shards}
    return {meta.tokenizer.file: meta.tokenizer.sha256, **shards}


def _download(remote: Store, name: str, sha256: str, folder: Path) -> None:
    try:
        remote.download(name, folder / name)
        fault = "" if _sha256(folder / name) == sha256 else f"does not have the sha256 {sha256} that meta.json gives"
    except ObjectMissing:
        fault = "is missing"
    if fault:
        raise DataError(f"{remote.uri}/{name} {fault}; delete {remote.uri} and prepare the dataset again")


def _place(partial: Path, folder: Path) -> None:
    """Give the whole folder its name, unless another process just did; a damaged one steps aside."""
    if folder.exists() and not _is_whole(folder):
        folder.replace(tempfile.mkdtemp(dir=folder.parent, suffix=".partial"))
    try:
        partial.rename(folder)
    except OSError:
        if not _is_whole(folder):
            raise


def _is_whole(folder: Path) -> bool:
    """Whether all files are there in their right size; their content was checked before the folder got its name."""
    try:
        meta = load_meta(folder)
        return (
            all(
                (folder / shard.file).stat().st_size == shard.tokens * meta.token_bytes
                for split in meta.splits.values()
                for shard in split.shards
            )
            and (folder / meta.tokenizer.file).is_file()
        )
    except (OSError, DataError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
