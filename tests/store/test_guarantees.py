"""Whether a store keeps its promises is found out by trying: on this machine's file system, on one without hard links,
and on stores that break them."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from crucible.errors import ObjectExists, ObjectMissing, ServiceError, StoreRefused
from crucible.rehearsal import apt
from crucible.store import store_at
from crucible.store.file import FileStore
from crucible.store.guarantees import prove_guarantees


@pytest.fixture(scope="module")
def without_links(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on a mounted exFAT file system. Needs root, and Debian's packages or apt-get."""
    if not all(map(shutil.which, ("mkfs.exfat", "mount.exfat-fuse", "losetup"))):
        try:
            apt.install("exfat-fuse", "exfatprogs")
        except ServiceError as error:
            pytest.skip(f"NOT TESTED, no exFAT can be mounted here: {error}")
    root = tmp_path_factory.mktemp("exfat")
    image, mount = root / "image", root / "mounted"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)

    def run(*command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        run("mkfs.exfat", str(image))
        device = run("losetup", "--find", "--show", str(image))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"NOT TESTED, no exFAT can be mounted here: {error.stderr.strip()}")
    try:
        try:
            run("mount.exfat-fuse", device, str(mount))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"NOT TESTED, no exFAT can be mounted here: {error.stderr.strip()}")
        yield mount
        run("umount", "--lazy", str(mount))
    finally:
        subprocess.run(["losetup", "--detach", device], check=False)


def test_a_file_system_without_hard_links_still_has_create_only_writes(without_links: Path) -> None:
    (without_links / "a").touch()
    with pytest.raises(PermissionError):
        os.link(without_links / "a", without_links / "b")
    store = store_at(str(without_links / "store"))
    store.create("jobs/one/claim.json", b"mine")
    store.create("jobs/one/claim.json", b"mine")  # a repeated request does not lose against itself
    with pytest.raises(ObjectExists):
        store.create("jobs/one/claim.json", b"another's")
    assert store.read("jobs/one/claim.json") == b"mine"
    with ThreadPoolExecutor(8) as threads:
        racing = [threads.submit(store.create, "jobs/two/claim.json", f"{number}".encode()) for number in range(8)]
    winners = [number for number, one in enumerate(racing) if one.exception() is None]
    assert [f"{number}".encode() for number in winners] == [store.read("jobs/two/claim.json")]


def test_a_file_system_whose_renames_are_not_atomic_is_refused(without_links: Path) -> None:
    """The exFAT of FUSE removes the old file before it renames the new one."""
    with pytest.raises(StoreRefused, match="renaming is not atomic there"):
        prove_guarantees(store_at(str(without_links / "other")))


def test_this_machines_file_system_passes_and_leaves_nothing_behind(tmp_path: Path) -> None:
    store = store_at(str(tmp_path / "store"))
    prove_guarantees(store)
    assert store.list() == []


class LastWins(FileStore):
    """A file system on which an exclusive create is none when several come at once."""

    def create(self, key: str, data: bytes) -> None:
        with suppress(ObjectMissing):
            self.size(key)
            time.sleep(0.2)
            if self.read(key) != data:
                raise ObjectExists(key)
        time.sleep(0.05)
        self.write(key, data)


class InTwoSteps(FileStore):
    """A file system whose rename removes the old file first."""

    def write(self, key: str, data: bytes) -> None:
        self.delete(key)
        time.sleep(0.005)
        super().write(key, data)


class InPlace(FileStore):
    """A file system whose rename copies."""

    def write(self, key: str, data: bytes) -> None:
        target = self.root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb", buffering=0) as file:
            for start in range(0, len(data), 4096):
                file.write(data[start : start + 4096])
                time.sleep(0.001)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (LastWins, "writers created the same object at once"),
        (InTwoSteps, "was missing for a moment"),
        (InPlace, "was seen half-written"),
    ],
    ids=["create", "missing", "mixed"],
)
def test_a_store_that_breaks_a_promise_is_refused_with_what_to_do(
    tmp_path: Path, kind: type[FileStore], words: str
) -> None:
    with pytest.raises(StoreRefused, match=words) as caught:
        prove_guarantees(kind(tmp_path / "store"))
    assert "nothing is started; use a folder on another file system" in str(caught.value)
