from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from crucible.datasets.build import build_dataset
from crucible.datasets.config import DatasetConfig
from crucible.datasets.fetch import fetch_dataset
from crucible.errors import DataError
from crucible.store import Store, store_at
from tests.datasets.texts import make_text


@pytest.fixture
def digest(tmp_path: Path, store: Store) -> str:
    path = tmp_path / "text.txt"
    path.write_text(make_text(20_000), encoding="utf-8")
    return build_dataset(DatasetConfig(source=str(path), shard_bytes=4000), store).digest


def test_downloaded_once(digest: str, store: Store, tmp_path: Path) -> None:
    folder = fetch_dataset(store, digest, tmp_path / "cache")
    for info in store.list():
        store.delete(info.key)
    assert fetch_dataset(store, digest, tmp_path / "cache") == folder
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [digest]


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_shard_is_refused_and_nothing_is_kept(damage: str, digest: str, store: Store, tmp_path: Path) -> None:
    key = next(info.key for info in store.list() if info.key.endswith(".bin"))
    data = bytearray(store.read(key))
    data[100] ^= 1
    if damage == "delete":
        store.delete(key)
    else:
        store.write(key, bytes(data[:-2] if damage == "truncate" else data))
    with pytest.raises(DataError, match=r"\.bin (does not have the sha256|is missing).*prepare the dataset again"):
        fetch_dataset(store, digest, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cached_copy_that_lost_a_part_is_downloaded_again(digest: str, store: Store, tmp_path: Path) -> None:
    folder = fetch_dataset(store, digest, tmp_path / "cache")
    shard = next(folder.glob("train-*.bin"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-2])
    assert fetch_dataset(store, digest, tmp_path / "cache") == folder
    assert shard.read_bytes() == content


def test_a_dataset_that_is_not_there_says_so(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset abc is not in file://.*crucible data prepare"):
        fetch_dataset(store, "abc", tmp_path / "cache")


def _fetch(uri: str, digest: str, cache: str) -> str:
    return str(fetch_dataset(store_at(uri), digest, cache))


def test_processes_may_race_for_it(digest: str, store: Store, tmp_path: Path) -> None:
    # Not "fork": a copy of a process with threads may wait for a lock for ever and ignore the SIGTERM that ends a pool.
    with multiprocessing.get_context("forkserver").Pool(4) as pool:
        arguments = [(store.uri, digest, str(tmp_path / "cache"))] * 4
        folders = set(pool.starmap(_fetch, arguments))
    assert folders == {str(tmp_path / "cache" / digest)}
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [digest]
