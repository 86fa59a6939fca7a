"""Damaged checkpoints: nothing unverified is ever loaded, and each damage is told."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import pytest

from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.restore import restore
from crucible.checkpoints.retention import retain
from crucible.config import TrainConfig
from crucible.errors import CheckpointError, StoreError
from crucible.jobs.job import Job
from crucible.store import Store, store_at
from tests.checkpoints.committing import commit, restored_step, stored
from tests.faults.faulty_store import FaultyStore
from tests.faults.s3_proxy import S3Proxy
from tests.faults.small_jobs import checkpoint_folder, is_whole, new_job, running


def damage(store: Store, key: str, kind: str, chance: random.Random) -> None:
    data = bytearray(store.read(key))
    match kind:
        case "missing":
            store.delete(key)
            return
        case "flip":
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        case "truncate":
            del data[chance.randrange(len(data)) :]
        case "garbage":
            data = bytearray(chance.randbytes(len(data)))
        case "longer":
            data += b"\0"
    store.write(key, bytes(data))


@pytest.mark.parametrize("kind", ["missing", "flip", "truncate", "garbage", "longer"])
@pytest.mark.parametrize("name", ["model.bin", "optimizer state/moments 1.bin", "state.json"])
def test_a_damaged_file_is_told_and_the_checkpoint_before_is_taken(
    job: Job, scratch: Path, kind: str, name: str
) -> None:
    attempt = running(job, 1)
    commit(attempt, scratch, 100)
    newest = commit(attempt, scratch, 200)
    damage(job.store, stored(newest, name), kind, random.Random(f"{kind} {name}"))
    told: list[tuple[int, str]] = []
    found = restore(
        Checkpoints(job),
        scratch / "restore",
        on_damaged=lambda checkpoint, problem: told.append((checkpoint.step, problem)),
    )
    assert found is not None
    assert found[0].step == 100
    assert is_whole(found[1], 100)
    assert [step for step, _ in told] == [200]
    assert name in told[0][1]
    assert not (scratch / "restore/step-00000200").exists()


def test_no_flip_in_a_manifest_stops_a_restore_or_lets_damage_through(job: Job, scratch: Path, fast_disk: None) -> None:
    attempt = running(job, 1)
    commit(attempt, scratch, 100)
    key = stored(commit(attempt, scratch, 200), "manifest.json")
    whole = job.store.read(key)
    chance = random.Random(11)
    taken, told = [], []
    for kind in ["flip"] * 60 + ["truncate"] * 10 + ["garbage"] * 3:
        damage(job.store, key, kind, chance)
        found = restore(
            Checkpoints(job), scratch / "restore", on_damaged=lambda checkpoint, problem: told.append(problem)
        )
        assert found is not None, job.store.read(key)
        assert is_whole(found[1], found[0].step), job.store.read(key)
        taken.append(found[0].step)
        retain(Checkpoints(job))  # must live through it, too
        job.store.write(key, whole)
    assert taken.count(100) == len(told) > 20
    assert 200 in taken, "a flip in the time of commit harms nobody"


def test_a_manifest_cannot_write_outside_its_folder(job: Job, scratch: Path, tmp_path: Path) -> None:
    attempt = running(job, 1)
    commit(attempt, scratch, 100)
    newest = commit(attempt, scratch, 200)
    outside = tmp_path / "outside"
    for name in (f"{outside}", "../../../../outside"):
        manifest = newest.model_dump(mode="json")
        manifest["files"][0] |= {"name": name}
        with suppress(Exception):
            job.store.write(f"checkpoints/{newest.name}/{name}", job.store.read(stored(newest, newest.files[0].name)))
        job.store.write_json(stored(newest, "manifest.json"), manifest)
        assert restored_step(job, scratch / "restore") == 100
        assert not outside.exists()


@pytest.mark.parametrize(
    ("foreign", "named"),
    [
        ({"config": TrainConfig(n_layer=2).model_dump(mode="json")}, "n_layer 2 -> 4"),
        ({"dataset_digest": "b" * 64}, "dataset bbb"),
        ({"config": TrainConfig(threads=3, device="cpu").model_dump(mode="json"), "dataset_digest": "a" * 64}, None),
        ({"config": {"of": "another version"}}, None),
    ],
)
def test_the_state_of_another_training_is_refused_and_nothing_is_started_over(
    store: Store, scratch: Path, foreign: dict[str, object], named: str | None
) -> None:
    job = new_job(store, config=TrainConfig(), dataset="a" * 64)
    attempt = running(job, 1)
    commit(attempt, scratch, 100)
    commit(attempt, scratch, 200, **foreign)
    if named is None:
        assert restored_step(job, scratch / "restore") == 200
        return
    with pytest.raises(CheckpointError, match=f"step-00000200.*{named}"):
        restore(Checkpoints(job), scratch / "restore")


def test_if_all_are_damaged_each_is_told(job: Job, scratch: Path) -> None:
    attempt = running(job, 1)
    for step in (1, 2, 3):
        damage(job.store, stored(commit(attempt, scratch, step), "model.bin"), "flip", random.Random(step))
    told: list[int] = []
    found = restore(Checkpoints(job), scratch / "restore", on_damaged=lambda c, problem: told.append(c.step))
    assert found is None
    assert told == [3, 2, 1]


def test_an_object_that_goes_while_it_is_being_restored(store: Store, scratch: Path) -> None:
    """Retention elsewhere deletes the checkpoint between its listing and its download."""
    job = new_job(store)
    attempt = running(job, 1)
    commit(attempt, scratch, 100)
    newest = commit(attempt, scratch, 200)

    def delete_under_the_feet(operation: str, key: str) -> None:
        if operation == "download" and newest.name in key:
            job.store.delete(stored(newest, "model.bin"))

    racing = Job(FaultyStore(store, delete_under_the_feet), "job")
    assert restored_step(racing, scratch / "restore") == 100


def test_a_truncated_upload_is_noticed_and_repeated(s3_endpoint: str, scratch: Path) -> None:
    import boto3

    boto3.client(
        "s3", endpoint_url=s3_endpoint, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
    ).create_bucket(Bucket="crucible-truncated")
    with S3Proxy(s3_endpoint) as proxy:
        store = store_at("s3://crucible-truncated/runs", key="test", secret="test", endpoint_url=proxy.url)
        job = new_job(store)
        attempt = running(job, 1)
        proxy.truncate_uploads(times=1, only="model.bin")
        folder = checkpoint_folder(scratch, 100)
        Checkpoints(job).commit(attempt, folder, pause=lambda seconds: False)
        assert restored_step(job, scratch / "restore") == 100
        proxy.truncate_uploads(only="model.bin")
        with pytest.raises(StoreError, match=r"arrived with \d+ of \d+ bytes"):
            commit(attempt, scratch, 200)
        proxy.heal()
        assert restored_step(job, scratch / "restore") == 100
