"""The commit protocol: whole or not at all, newest first, nothing unverified, through every kind of damage."""

from __future__ import annotations

import itertools
import json
import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

import crucible.store
from crucible.checkpoints import Checkpoint, Checkpoints, finished_folders, step_of, wait_at_most
from crucible.errors import CheckpointError, FencedOut, StoreError
from crucible.jobs import Attempt, Job
from crucible.records import EndReason, Launch, Outcome, Start
from crucible.store import Store
from tests.faults.faulty_store import Died, DiesAfter, FaultyStore
from tests.faults.s3_proxy import S3Proxy
from tests.faults.small_jobs import (
    History,
    checkpoint_folder,
    claimed,
    history_of,
    is_whole,
    launched,
    new_job,
    running,
    weights,
)


@pytest.fixture
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out fsync: power failures are not what these tests are about, and they make many small files."""
    monkeypatch.setattr(crucible.store, "_fsync", lambda path: None)


@pytest.fixture
def job(store: Store) -> Job:
    return new_job(store)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


def commit(attempt: Attempt, scratch: Path, step: int, **state: object) -> Checkpoint:
    parent = scratch / f"attempt-{attempt.number}"
    return Checkpoints(attempt.job).commit(attempt, checkpoint_folder(parent, step, **state))  # type: ignore[arg-type]


def restored_step(job: Job, into: Path) -> int:
    """The step that a new machine would resume from, whole or the test fails; 0 for a fresh start."""
    found = Checkpoints(job).restore(into)
    if found is None:
        return 0
    checkpoint, folder = found
    assert is_whole(folder, checkpoint.step)
    return checkpoint.step


def stored(checkpoint: Checkpoint, name: str) -> str:
    return f"checkpoints/{checkpoint.name}/{name}"


# Commit and restore


def test_a_commit_is_restored_as_it_was(job: Job, scratch: Path) -> None:
    attempt = running(job, 1)
    carried: list[int] = []
    folder = checkpoint_folder(scratch, 100, val_loss=1.5, config_digest="abc")
    checkpoint = Checkpoints(job).commit(attempt, folder, progress=carried.append)
    assert (checkpoint.step, checkpoint.attempt, checkpoint.val_loss) == (100, 1, 1.5)
    assert max(carried) == checkpoint.bytes
    commit(attempt, scratch, 200)
    assert [c.step for c in Checkpoints(job).list()] == [200, 100]
    found = Checkpoints(job).restore(scratch / "restore")
    assert found is not None
    assert found[0].step == 200
    assert found[1] == scratch / "restore" / "step-00000200"
    assert is_whole(found[1], 200)


def test_nothing_committed_is_a_fresh_start(job: Job, scratch: Path) -> None:
    assert Checkpoints(job).list() == []
    assert Checkpoints(job).restore(scratch) is None


def test_restoring_again_replaces_what_an_earlier_try_left(job: Job, scratch: Path) -> None:
    commit(running(job, 1), scratch, 5)
    for _ in range(2):
        assert restored_step(job, scratch / "restore") == 5
        (scratch / "restore/step-00000005/left over").write_text("x")


def test_steps_beyond_eight_digits_keep_their_order(job: Job, scratch: Path) -> None:
    steps = [99_999_999, 100_000_000, 123_456_789_012]
    attempt = running(job, 1)
    for step in steps:
        commit(attempt, scratch, step)
    assert [step_of(folder) for folder in finished_folders(scratch / "attempt-1")] == steps
    assert [c.step for c in Checkpoints(job).list()] == steps[::-1]
    assert restored_step(job, scratch / "restore") == steps[-1]


def test_only_whole_folders_are_taken_for_checkpoints(scratch: Path) -> None:
    checkpoint_folder(scratch, 7)
    for name in ("step-00000008.partial", "step-", "step-x", "tmp", "steps-9", "step-00000010.tmp"):
        (scratch / name).mkdir()
    (scratch / "step-00000011").write_text("a file")
    assert [folder.name for folder in finished_folders(scratch)] == ["step-00000007"]
    assert finished_folders(scratch / "nowhere") == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "state.json").write_text("{torn"), r"state\.json"),
        (lambda folder: (folder / "state.json").write_text("[1]"), r"state\.json"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), r"manifest\.json"),
        (lambda folder: [path.unlink() for path in folder.rglob("*") if path.is_file()], "no file"),
    ],
)
def test_folders_that_could_not_be_restored_are_refused(
    job: Job, scratch: Path, spoil: Callable[[Path], object], words: str
) -> None:
    attempt = running(job, 1)
    folder = checkpoint_folder(scratch, 3)
    spoil(folder)
    with pytest.raises(CheckpointError, match=words):
        Checkpoints(job).commit(attempt, folder)
    assert Checkpoints(job).list() == []


def test_other_names_are_refused(job: Job, scratch: Path) -> None:
    with pytest.raises(CheckpointError, match="must be step-<number>"):
        Checkpoints(job).commit(running(job, 1), scratch / "ckpt.pt")


def test_a_file_that_changes_on_its_way_is_not_committed(store: Store, scratch: Path) -> None:
    """Same size, other bytes: the sha256 in the manifest would never fit again."""
    attempt = running(new_job(store), 1)
    folder = checkpoint_folder(scratch, 3)
    os.utime(folder / "model.bin", (0, 0))  # clocks of file systems are coarse

    def meddle(operation: str, key: str) -> None:
        if operation == "upload" and key.endswith("model.bin"):
            (folder / "model.bin").write_bytes(weights(4))

    job = Job(FaultyStore(store, meddle), "job")
    with pytest.raises(CheckpointError, match=r"model\.bin.*changed"):
        Checkpoints(job).commit(job.attempt(attempt.number), folder)
    assert Checkpoints(job).list() == []


def test_a_folder_that_vanishes_on_its_way_ends_the_commit(store: Store, scratch: Path) -> None:
    """Trying for ever, as one does while a store is away, would never save anything again."""
    attempt = running(new_job(store), 1)
    folder = checkpoint_folder(scratch, 3)
    tries = 0

    def vanish(operation: str, key: str) -> None:
        if operation == "upload":
            (folder / "model.bin").unlink(missing_ok=True)

    def patient(_seconds: float) -> bool:
        nonlocal tries
        tries += 1
        return tries > 5

    job = Job(FaultyStore(store, vanish), "job")
    with pytest.raises(CheckpointError, match=r"model\.bin"):
        Checkpoints(job).commit(job.attempt(attempt.number), folder, pause=patient)
    assert tries <= 1  # the file beside it may have failed first


def test_a_file_that_vanishes_before_it_is_read_ends_the_commit(
    store: Store, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = running(new_job(store), 1)
    folder = checkpoint_folder(scratch, 3)

    def vanished(path: Path) -> str:
        path.unlink()
        return path.read_text()

    monkeypatch.setattr("crucible.checkpoints.file_sha256", vanished)
    with pytest.raises(CheckpointError, match="vanished"):
        Checkpoints(attempt.job).commit(attempt, folder)


# Death and failures at every point


def test_death_at_any_point_of_a_commit_leaves_the_newest_whole_one(
    store: Store, scratch: Path, fast_disk: None
) -> None:
    """The process dies before its first, second, … operation on the store, until one commit gets through."""
    ends = []
    for operations in itertools.count():
        job = new_job(store, f"job-{operations}")
        commit(running(job, 1), scratch / job.job_id, 100)
        dies = DiesAfter(operations)
        mortal = Job(FaultyStore(store, dies), job.job_id)
        with suppress(Died):
            commit(mortal.attempt(1), scratch / job.job_id, 200)
        claimed(job, 2)
        ends.append(restored_step(job, scratch / job.job_id / "restore"))
        if not dies.died:
            break
    assert set(ends) == {100, 200}
    assert ends == sorted(ends), "once the manifest is there, the commit counts"
    assert len(ends) > 15


def test_one_failure_at_any_point_of_a_commit_is_outlived(store: Store, scratch: Path, fast_disk: None) -> None:
    for failing in itertools.count():
        counter = itertools.count()

        def fail_once(operation: str, key: str, counter: Iterator[int] = counter, failing: int = failing) -> None:
            if next(counter) == failing:
                raise StoreError("connection reset")

        job = new_job(store, f"job-{failing}")
        running(job, 1)
        frail = Job(FaultyStore(store, fail_once), job.job_id)
        folder = checkpoint_folder(scratch / job.job_id, 200)
        Checkpoints(frail).commit(frail.attempt(1), folder, pause=lambda seconds: False)
        assert restored_step(job, scratch / job.job_id / "restore") == 200
        if next(counter) <= failing:
            break


def test_a_store_that_stays_away_is_given_up_when_time_is_up(store: Store, scratch: Path) -> None:
    running(new_job(store), 1)

    def fail(operation: str, key: str) -> None:
        raise StoreError("connection refused")

    job = Job(FaultyStore(store, fail), "job")
    with pytest.raises(StoreError, match="connection refused"):
        Checkpoints(job).commit(job.attempt(1), checkpoint_folder(scratch, 1), pause=wait_at_most(0.01))


def test_a_store_that_cannot_be_read_is_no_fresh_start(store: Store, scratch: Path, fast_disk: None) -> None:
    """Whatever operation fails, restoring raises: starting from nothing would throw all work away."""
    job = new_job(store)
    commit(running(job, 1), scratch, 100)
    for failing in itertools.count():
        counter = itertools.count()

        def fail(operation: str, key: str, counter: Iterator[int] = counter, failing: int = failing) -> None:
            if next(counter) >= failing:
                raise StoreError("connection refused")

        frail = Job(FaultyStore(store, fail), "job")
        try:
            found = Checkpoints(frail).restore(scratch / "restore")
        except StoreError:
            continue
        assert found is not None
        assert is_whole(found[1], 100)
        assert failing >= 8
        return


# Damage


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
    found = Checkpoints(job).restore(
        scratch / "restore", on_damaged=lambda checkpoint, problem: told.append((checkpoint.step, problem))
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
        found = Checkpoints(job).restore(
            scratch / "restore", on_damaged=lambda checkpoint, problem: told.append(problem)
        )
        assert found is not None, job.store.read(key)
        assert is_whole(found[1], found[0].step), job.store.read(key)
        taken.append(found[0].step)
        Checkpoints(job).retain()  # must live through it, too
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


def test_if_all_are_damaged_each_is_told(job: Job, scratch: Path) -> None:
    attempt = running(job, 1)
    for step in (1, 2, 3):
        damage(job.store, stored(commit(attempt, scratch, step), "model.bin"), "flip", random.Random(step))
    told: list[int] = []
    found = Checkpoints(job).restore(scratch / "restore", on_damaged=lambda c, problem: told.append(c.step))
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
        store = Store.open("s3://crucible-truncated/runs", key="test", secret="test", endpoint_url=proxy.url)
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


# Retention


def test_retention_keeps_the_last_the_best_and_the_evaluated(job: Job, scratch: Path) -> None:
    attempt = running(job, 1)
    losses = {10: 3.0, 20: 2.0, 30: 1.0, 40: 1.5, 50: 1.2, 60: None, 70: 1.1, 80: float("nan")}
    for step, loss in losses.items():
        commit(attempt, scratch, step, val_loss=loss)
    job.store.write("models/step-00000010/README.md", b"a model card")
    deleted = Checkpoints(job).retain(keep_last=2)
    assert [c.step for c in deleted] == [60, 50, 40, 20]
    assert [c.step for c in Checkpoints(job).list()] == [80, 70, 30, 10]
    assert len(job.store.folders("checkpoints")) == 4
    assert Checkpoints(job).retain(keep_last=2) == []


@pytest.mark.parametrize("losses", [["n/a", 1.0, 2.0], [float("nan"), 1.0, 2.0], [None, 1.0, True], [3.0, 1.0, "inf"]])
def test_a_loss_that_is_no_number_is_never_the_best(job: Job, scratch: Path, losses: list[object]) -> None:
    attempt = running(job, 1)
    for step, loss in enumerate(losses, start=1):
        commit(attempt, scratch, step, val_loss=loss)
    commit(attempt, scratch, 9)
    Checkpoints(job).retain(keep_last=1)
    assert [c.step for c in Checkpoints(job).list()] == [9, 2]


def test_death_at_any_point_of_retention_harms_no_checkpoint(store: Store, scratch: Path, fast_disk: None) -> None:
    for operations in itertools.count():
        job = new_job(store, f"job-{operations}")
        attempt = running(job, 1)
        for step in (10, 20, 30, 40):
            commit(attempt, scratch / job.job_id, step)
        dies = DiesAfter(operations)
        mortal = Job(FaultyStore(store, dies), job.job_id)
        with suppress(Died):
            Checkpoints(mortal).retain(keep_last=2)
        left = Checkpoints(job).list()
        assert [c.step for c in left[:2]] == [40, 30]
        assert all(Checkpoints(job).verify(c) is None for c in left), "a half-deleted checkpoint was listed"
        running(job, 2, from_step=40)  # the next attempt's retention clears what is left
        Checkpoints(job).retain(keep_last=2)
        assert job.store.folders("checkpoints") == ["step-00000030.attempt-0001", "step-00000040.attempt-0001"]
        if not dies.died:
            assert operations > 20
            return


def test_what_superseded_attempts_left_is_cleared(job: Job, scratch: Path) -> None:
    first = running(job, 1)
    commit(first, scratch, 10)
    commit(first, scratch, 20)
    job.store.write("checkpoints/step-00000030.attempt-0001/model.bin", b"an upload that was cut short")
    second = running(job, 2, from_step=10)  # 20 did not verify
    commit(second, scratch, 15)
    job.store.write("checkpoints/step-00000025.attempt-0002/model.bin", b"an upload on its way")
    job.store.write("checkpoints/notes of a person/read.me", b"hello")
    Checkpoints(job).retain(keep_last=3)
    assert job.store.folders("checkpoints") == [
        "notes of a person",
        "step-00000010.attempt-0001",
        "step-00000015.attempt-0002",
        "step-00000025.attempt-0002",
    ]


def test_retention_of_one_who_slept_through_two_successors_deletes_nothing_of_theirs(
    store: Store, scratch: Path
) -> None:
    """The machine was suspended in the middle of its retention and wakes up long after it was given up for lost."""
    job = new_job(store)
    commit(running(job, 1), scratch, 10)

    def meanwhile(operation: str, key: str) -> None:
        nonlocal slept
        if slept or operation != "folders" or key != "attempts" or next(listings) == 0:
            return
        slept = True
        commit(running(job, 2, from_step=10), scratch, 20)
        running(job, 3, from_step=20)

    slept = False
    listings = itertools.count()
    Checkpoints(Job(FaultyStore(store, meanwhile), "job")).retain()
    assert slept
    assert restored_step(job, scratch / "restore") == 20


# The fence


def test_late_commits_of_a_superseded_attempt_do_not_count(job: Job, scratch: Path) -> None:
    first = running(job, 1)
    commit(first, scratch, 10)
    second = running(job, 2, from_step=10)
    with pytest.raises(FencedOut):
        commit(first, scratch, 20)
    assert [c.name for c in Checkpoints(job).list()] == ["step-00000010.attempt-0001"]
    commit(second, scratch, 12)
    assert [c.name for c in Checkpoints(job).list()] == ["step-00000012.attempt-0002", "step-00000010.attempt-0001"]


def test_a_manifest_written_while_the_successor_begins_is_not_acknowledged(store: Store, scratch: Path) -> None:
    job = new_job(store)
    commit(running(job, 1), scratch, 10)

    def take_over(operation: str, key: str) -> None:
        if operation == "write" and "manifest" in key:
            running(job, 2, from_step=10)

    slow = Job(FaultyStore(store, take_over), "job")
    with pytest.raises(FencedOut, match="taken over"):
        commit(slow.attempt(1), scratch, 20)
    assert restored_step(job, scratch / "restore") == 10


def test_an_attempt_declared_lost_commits_nothing_more(job: Job, scratch: Path) -> None:
    first = running(job, 1)
    first.end(Outcome(end_reason=EndReason.LOST, message="silent", decided_by="supervisor"))
    with pytest.raises(FencedOut, match="declared lost"):
        commit(first, scratch, 10)
    assert Checkpoints(job).list() == []


class Racer:
    """One attempt as an agent runs it: claim, restore, begin, commit step after step until it is fenced out."""

    def __init__(self, job: Job, number: int, scratch: Path, commits: int) -> None:
        self.job, self.number, self.commits = job, number, commits
        self.scratch = scratch / f"racer-{number}"
        self.acknowledged: History = []

    def run(self) -> None:
        """Ends when superseded, or when all is committed."""
        checkpoints = Checkpoints(self.job)
        try:
            attempt = claimed(self.job, self.number)
            found = checkpoints.restore(self.scratch / "resume")
            step = found[0].step if found else 0
            history = history_of(found[1]) if found else []
            attempt.begin(Start(step=step))
            attempt.require_current()
            for _ in range(self.commits):
                step += 1
                history = [*history, [self.number, step]]
                folder = self.scratch / f"step-{step:08d}"
                folder.mkdir(parents=True)
                (folder / "history.json").write_text(json.dumps(history))
                checkpoints.commit(attempt, folder)
                self.acknowledged.append([self.number, step])
            checkpoints.retain(keep_last=2)
        except FencedOut:
            return


def race(store: Store, scratch: Path, seed: int, racers: int = 2, commits: int = 3) -> list[History]:
    """Attempts 1, 2, … of one job at once; returns what each was promised.

    Each stands still at a random operation, as a suspended machine does, while its successor begins; it goes on when
    that one is through with a random number of operations of its own, and then both run freely.
    """
    job = new_job(store, f"race-{seed}")
    chance = random.Random(seed)
    # Claim and restore are some 15 operations, a commit 12.
    stops_at = [chance.randrange(15 + 12 * commits) for _ in range(racers)]
    sleeps_for = [chance.randrange(15 + 12 * commits) for _ in range(racers)]
    begins = [threading.Event() for _ in range(racers + 1)]
    wakes = [threading.Event() for _ in range(racers + 1)]
    begins[0].set()
    for number in range(1, racers + 1):
        job.decide(Launch(number=number, pool="local", reason="race"))

    def enter(index: int) -> Racer:
        operations = itertools.count()

        def stumble(operation: str, key: str) -> None:
            count = next(operations)
            if index and count == sleeps_for[index - 1]:
                wakes[index - 1].set()
            if index + 1 < racers and count == stops_at[index]:
                begins[index + 1].set()
                wakes[index].wait()

        racer = Racer(Job(FaultyStore(store, stumble), job.job_id), index + 1, scratch / job.job_id, commits)
        begins[index].wait()
        try:
            racer.run()
        finally:
            begins[index + 1].set()
            wakes[index - 1].set()
        return racer

    with ThreadPoolExecutor(racers) as pool:
        promised = [racer.acknowledged for racer in pool.map(enter, range(racers))]
    final = claimed(job, racers + 1)
    found = Checkpoints(final.job).restore(scratch / job.job_id / "final")
    history = history_of(found[1]) if found else []
    lost = [commit for each in promised for commit in each if commit not in history]
    assert not lost, f"seed {seed}: acknowledged but not in the final lineage: {lost}; final: {history}"
    stray = [c.name for c in Checkpoints(final.job).list() if [c.attempt, c.step] not in history]
    assert not stray, f"seed {seed}: counts, but is not in the final lineage: {stray}; final: {history}"
    assert [step for _, step in history] == list(range(1, len(history) + 1)), f"seed {seed}: {history}"
    numbers = [number for number, _ in history]
    assert numbers == sorted(numbers), f"seed {seed}: interleaved: {history}"
    return promised


def test_two_attempts_at_once_200_times(store: Store, scratch: Path, fast_disk: None) -> None:
    """Whatever was acknowledged survives in one single lineage; seeds 0 to 199, some with three at once."""
    both = 0
    with ThreadPoolExecutor(2) as pool:
        rounds = [pool.submit(race, store, scratch, seed, 3 if seed % 4 == 0 else 2) for seed in range(200)]
        for finished in rounds:
            promised = finished.result()
            both += sum(bool(each) for each in promised) > 1
    assert both > 30, "the race is only one if both sides get to commit"


def test_two_attempts_at_once_on_s3(s3_store: Store, scratch: Path) -> None:
    for seed in (1, 2):
        race(s3_store, scratch, seed, commits=2)


def test_restoring_beside_retention_always_finds_a_whole_one(store: Store, scratch: Path, fast_disk: None) -> None:
    """Evaluation and reports restore while the training job retains."""
    job = new_job(store)
    attempt = running(job, 1)
    commit(attempt, scratch, 1)
    over = threading.Event()

    def restore(me: int) -> int:
        steps = []
        while not over.is_set() or not steps:
            steps.append(restored_step(job, scratch / f"reader-{me}"))
        assert steps == sorted(steps)
        return len(steps)

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(restore, me) for me in range(2)]
        try:
            for step in range(2, 40):
                commit(attempt, scratch, step)
                Checkpoints(job).retain(keep_last=1)
        finally:
            over.set()
        assert all(reader.result() for reader in readers)


def test_a_symlinked_file_is_committed_by_its_contents(job: Job, scratch: Path) -> None:
    """Workloads link files that did not change since the last save."""
    attempt = running(job, 1)
    folder = checkpoint_folder(scratch, 1)
    data = (folder / "model.bin").read_bytes()
    (folder / "model.bin").rename(scratch / "shared.bin")
    (folder / "model.bin").symlink_to(scratch / "shared.bin")
    Checkpoints(job).commit(attempt, folder)
    found = Checkpoints(job).restore(scratch / "restore")
    assert found is not None
    assert (found[1] / "model.bin").read_bytes() == data
    assert not (found[1] / "model.bin").is_symlink()
    assert json.loads((found[1] / "state.json").read_text()) == {"step": 1}


def test_launches_do_not_disturb_commits(job: Job, scratch: Path) -> None:
    attempt = running(job, 1)
    launched(job, 2)
    assert commit(attempt, scratch, 5).step == 5
