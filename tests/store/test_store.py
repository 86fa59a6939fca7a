"""The store's promises, the same on a folder and on S3 over HTTP."""

from __future__ import annotations

import os
import random
import re
import resource
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest

from crucible.errors import (
    ConfigError,
    LocalDiskError,
    ObjectExists,
    ObjectMissing,
    RecordDamaged,
    StoreAccessDenied,
    StoreError,
    StoreUnavailable,
)
from crucible.store import ObjectInfo, Store, store_at

CREDENTIALS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind; the S3 one in a bucket whose name and prefix are as people choose them."""
    if request.param == "file":
        return store_at((tmp_path / "a store, 50% # off").as_uri())
    endpoint = request.getfixturevalue("s3_endpoint")
    bucket = f"my-bucket-{random.getrandbits(48):x}"
    boto3.client("s3", endpoint_url=endpoint, **CREDENTIALS).create_bucket(Bucket=bucket)
    return store_at(f"s3://{bucket}/team/runs", key="test", secret="test", endpoint_url=endpoint)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """This process cannot write files of more bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_objects_come_back_as_they_were_put(place: Store, tmp_path: Path) -> None:
    place.write("a/b.bin", b"\x00\xff")
    place.write("a/b.bin", b"second")
    place.write("empty", b"")
    assert place.read("a/b.bin") == b"second"
    assert place.read("empty") == b""
    assert (place.size("a/b.bin"), place.size("empty")) == (6, 0)
    place.write_json("record.json", {"step": 7, "name": "ä"})
    assert place.read_json("record.json") == {"step": 7, "name": "ä"}

    source = tmp_path / "weights.bin"
    source.write_bytes(random.Random(1).randbytes(300_000))
    place.upload(source, "deep/er/weights with space.bin")
    place.download("deep/er/weights with space.bin", tmp_path / "new folder" / "copy.bin")
    assert (tmp_path / "new folder" / "copy.bin").read_bytes() == source.read_bytes()


def test_missing_objects_are_missing_by_every_door(place: Store, tmp_path: Path) -> None:
    place.write("folder/object", b"x")
    for key in ("nothing", "folder/nothing", "folder/object/below"):
        for door in (place.read, place.size, place.read_json):
            with pytest.raises((ObjectMissing, StoreError), match=re.escape(key)):
                door(key)
        assert key.endswith("below") or not place.exists(key)
    with pytest.raises(ObjectMissing, match="nothing"):
        place.download("nothing", tmp_path / "copy")
    assert not list(tmp_path.glob("copy*"))
    place.delete("nothing")
    assert place.list("nothing") == []
    assert place.folders("nothing") == []


def test_a_folder_is_not_an_object(place: Store) -> None:
    place.write("jobs/one/job.json", b"{}")
    assert not place.exists("jobs/one")
    with pytest.raises(StoreError):
        place.read("jobs/one")


def test_listing_knows_folders_from_names_that_begin_alike(place: Store) -> None:
    for key in ("runs/1/a", "runs/1/b c", "runs/2/deep/x", "runs2/y", "runs/top"):
        place.write(key, key.encode())
    assert [info.key for info in place.list("runs")] == ["runs/1/a", "runs/1/b c", "runs/2/deep/x", "runs/top"]
    assert place.list("runs/1") == [ObjectInfo("runs/1/a", 8), ObjectInfo("runs/1/b c", 10)]
    assert place.list("runs/top") == []
    assert place.folders("runs") == ["1", "2"]
    assert place.folders() == ["runs", "runs2"]
    assert len(place.list()) == 5
    part = place.child("runs").child("2")
    assert part.list() == [ObjectInfo("deep/x", 13)]
    assert part.read("deep/x") == b"runs/2/deep/x"
    assert part.uri == place.uri + "/runs/2"


def test_many_objects_are_listed_in_full(place: Store) -> None:
    count = 1100 if place.uri.startswith("file") else 60
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: place.write(f"many/{i:05d}", b"."), range(count)))
    assert len(place.list("many")) == count


def test_delete_leaves_no_trace_of_a_folder(place: Store) -> None:
    place.write("jobs/a/checkpoints/x/1", b"1")
    place.write("jobs/a/checkpoints/x/2", b"2")
    place.delete("jobs/a/checkpoints/x/1")
    assert place.folders("jobs/a/checkpoints") == ["x"]
    place.delete("jobs/a/checkpoints/x/2")
    assert place.folders("jobs/a/checkpoints") == []
    assert place.folders("jobs") == []


def test_create_is_refused_when_something_else_is_there(place: Store) -> None:
    place.create("claim.json", b"mine")
    place.create("claim.json", b"mine")  # a request repeated by the network layer
    with pytest.raises(ObjectExists, match=r"claim\.json already exists"):
        place.create("claim.json", b"yours")
    assert place.read("claim.json") == b"mine"


def test_an_object_that_is_deleted_while_another_one_is_created_was_there_all_the_same(
    place: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.create("number.json", b"first")
    name = "_open" if hasattr(place, "_open") else "read"  # how each looks at what is there
    look: Callable[[Store, str], Any] = getattr(type(place), name)

    def after_the_delete(store: Store, key: str) -> Any:
        store.delete(key)
        return look(store, key)

    monkeypatch.setattr(type(place), name, after_the_delete)
    with pytest.raises(ObjectExists):
        place.create("number.json", b"second")


def test_create_has_exactly_one_winner(place: Store) -> None:
    writers, rounds = (8, 40) if place.uri.startswith("file") else (6, 4)
    for number in range(rounds):
        start = threading.Barrier(writers)

        def race(me: int, number: int = number, start: threading.Barrier = start) -> bool:
            start.wait()
            try:
                place.create(f"claims/{number}", str(me).encode())
            except ObjectExists:
                return False
            return True

        with ThreadPoolExecutor(writers) as pool:
            won = list(pool.map(race, range(writers)))
        assert won.count(True) == 1
        assert int(place.read(f"claims/{number}")) == won.index(True)


def test_readers_never_see_half_an_object(place: Store, tmp_path: Path) -> None:
    """Writers replace an object by turns with write and upload; each reader sees one of the wholes."""
    wholes = [bytes([letter]) * size for letter, size in ((65, 40_000), (66, 90_000), (67, 10))]
    sources = []
    for index, whole in enumerate(wholes):
        sources.append(tmp_path / f"source-{index}")
        sources[-1].write_bytes(whole)
    place.write("object", wholes[0])
    rounds = 60 if place.uri.startswith("file") else 10
    over = threading.Event()

    def write() -> None:
        for number in range(rounds):
            index = number % 3
            place.upload(sources[index], "object") if number % 2 else place.write("object", wholes[index])

    def read() -> int:
        seen = 0
        while not over.is_set() or not seen:
            assert place.read("object") in wholes
            assert place.size("object") in {len(whole) for whole in wholes}
            seen += 1
        return seen

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        writing = pool.submit(write)
        try:
            writing.result()
        finally:
            over.set()
        assert all(reader.result() for reader in readers)


@pytest.mark.parametrize("key", ["../outside", "a/../../outside", "/etc/passwd", "a/.."])
def test_keys_cannot_climb_out(place: Store, tmp_path: Path, key: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    actions: list[Callable[[], object]] = [
        lambda: place.read(key),
        lambda: place.write(key, b"x"),
        lambda: place.create(key, b"x"),
        lambda: place.delete(key),
        lambda: place.upload(source, key),
        lambda: place.download(key, tmp_path / "copy"),
        lambda: place.list(key),
        lambda: place.child(key),
    ]
    for action in actions:
        with pytest.raises(ConfigError, match="must be relative"):
            action()


def test_damaged_json_is_an_error_that_says_where(place: Store) -> None:
    for damaged in (b'{"step": 1', b"\xff\xfe", b""):
        place.write("record.json", damaged)
        with pytest.raises(RecordDamaged, match=r"record\.json is damaged: not valid JSON"):
            place.read_json("record.json")


def test_a_failed_upload_leaves_nothing_behind(place: Store, tmp_path: Path) -> None:
    with pytest.raises(LocalDiskError, match="does not exist: No such file"):
        place.upload(tmp_path / "does not exist", "object")
    assert not place.exists("object")
    assert place.list() == []


def test_a_full_local_disk_is_not_the_stores_fault(place: Store, tmp_path: Path) -> None:
    """A limit on file sizes stops the download half-way, as a full disk does."""
    place.write("object", b"x" * 50_000)
    (tmp_path / "a file").write_bytes(b"")
    with largest_file(10_000), pytest.raises(LocalDiskError):
        place.download("object", tmp_path / "copy")
    with pytest.raises(LocalDiskError):
        place.download("object", tmp_path / "a file" / "below")
    assert not list(tmp_path.glob("*copy*"))
    assert not list(tmp_path.glob(".*.partial"))
    with pytest.raises(ObjectMissing):
        place.download("nothing", tmp_path / "copy")


@pytest.mark.parametrize("address", ["s3://", "gs://bucket/x", "http://example.com/x", "s3:///prefix"])
def test_other_addresses_are_refused_in_words(address: str) -> None:
    with pytest.raises(ConfigError, match="use file:///path or s3://bucket/prefix"):
        store_at(address)


def test_plain_paths_are_file_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "relative").mkdir()
    monkeypatch.chdir(tmp_path)
    store_at("relative/folder").write("a", b"1")
    assert store_at(str(tmp_path / "relative/folder")).read("a") == b"1"
    assert store_at((tmp_path / "relative/folder").as_uri()).read("a") == b"1"


# The file store


def test_a_mistyped_store_is_not_created(tmp_path: Path) -> None:
    place = store_at(str(tmp_path / "nope" / "store"))
    for act in (lambda: place.write("a", b"1"), lambda: place.child("jobs/one").create("job.json", b"{}")):
        with pytest.raises(StoreAccessDenied, match=r"the folder .*nope does not exist; correct the address"):
            act()
    assert not (tmp_path / "nope").exists()


def test_an_object_of_somebody_elses_hides_no_other_and_a_store_that_is_closed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two people share a store, one with `umask 077`."""
    place = store_at(str(tmp_path / "store"))
    place.write("jobs/theirs/job.json", b"{}")

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(RecordDamaged, match=r"theirs/job\.json cannot be read: Permission denied; whoever owns it"):
        place.read("jobs/theirs/job.json")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StoreAccessDenied, match="check who owns"):
        place.read("jobs/theirs/job.json")


def test_what_stands_in_an_objects_place_is_named(tmp_path: Path) -> None:
    place = store_at(str(tmp_path / "store"))
    place.write("limits/0001.json/inside", b"x")
    for act in (
        lambda: place.read("limits/0001.json"),
        lambda: place.write("limits/0001.json", b"x"),
        lambda: place.create("limits/0001.json", b"x"),
        lambda: place.download("limits/0001.json", tmp_path / "copy"),
    ):
        with pytest.raises(RecordDamaged, match=r"limits/0001\.json is a folder where an object should be"):
            act()
    place.write("a file", b"x")
    with pytest.raises(RecordDamaged, match=r"a file.*move the file away"):
        place.write("a file/below", b"x")


def test_nothing_in_an_objects_place_makes_a_reader_wait_or_hides_the_others(tmp_path: Path) -> None:
    place = store_at(str(tmp_path))
    place.write("0001.json", b"x")
    os.mkfifo(tmp_path / "0002.json")
    (tmp_path / "0003.json").symlink_to("0003.json")
    (tmp_path / "0004.json").symlink_to("nothing")
    assert [info.key for info in place.list()] == ["0001.json", "0002.json"]
    for read in (
        place.read,
        lambda key: place.download(key, tmp_path.with_name("copy")),
        lambda key: place.create(key, b""),
    ):
        with pytest.raises(RecordDamaged, match=r"0002\.json is no file; move it away"):
            read("0002.json")
    for key in ("0003.json", "0004.json"):
        with pytest.raises(ObjectMissing):
            place.read(key)


def test_writing_and_deleting_beside_each_other_never_fails(tmp_path: Path) -> None:
    """Deleting the last object removes its folder, under the feet of whoever is about to write there."""
    place = store_at(str(tmp_path / "store"))

    def churn(me: int) -> None:
        for number in range(150):
            place.write(f"deep/down/here/{me}", str(number).encode())
            place.delete(f"deep/down/here/{me}")
            place.create(f"deep/down/here/claim-{me}-{number}", b"x")
            place.delete(f"deep/down/here/claim-{me}-{number}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(churn, range(6)))
    assert place.list() == []


def test_objects_are_readable_by_whom_the_umask_lets(tmp_path: Path) -> None:
    """A container writes as root, the person reads the records as themselves."""
    place = store_at(str(tmp_path / "store"))
    source = tmp_path / "source"
    source.write_bytes(b"x")
    before = os.umask(0o022)
    try:
        place.write("written", b"x")
        place.create("created", b"x")
        place.upload(source, "uploaded")
        place.download("written", tmp_path / "downloaded")
    finally:
        os.umask(before)
    for path in (tmp_path / "store").rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o644, path
    assert stat.S_IMODE((tmp_path / "downloaded").stat().st_mode) == 0o644


def test_a_broken_disk_is_no_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty answer would look like a job without limits or checkpoints."""
    place = store_at(str(tmp_path / "store"))
    place.write("limits/0001.json", b"{}")
    real = os.scandir

    def broken(path: str) -> object:
        if str(path).endswith("limits"):
            raise OSError(5, "Input/output error", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", broken)
    with pytest.raises(StoreError, match="Input/output error"):
        place.list("limits")
    with pytest.raises(StoreError, match="Input/output error"):
        place.folders("limits")


def test_a_full_disk_is_told_in_words_and_leaves_the_old_object(tmp_path: Path) -> None:
    """A limit on file sizes stops a write half-way, as a full disk does."""
    place = store_at(str(tmp_path / "store"))
    place.write("object", b"old")
    source = tmp_path / "source"
    source.write_bytes(b"x" * 50_000)
    with largest_file(10_000):
        for act in (
            lambda: place.write("object", b"x" * 50_000),
            lambda: place.create("another", b"x" * 50_000),
            lambda: place.upload(source, "object"),
        ):
            with pytest.raises(StoreUnavailable, match="File too large"):
                act()
    assert place.list() == [ObjectInfo("object", 3)]
    assert place.read("object") == b"old"
    assert [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()] == ["object"]
