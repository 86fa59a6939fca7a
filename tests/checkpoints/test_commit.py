"""The commit protocol: whole or not at all, newest first, whatever fails or dies on the way."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.restore import choose_checkpoint, restore
from crucible.contract import finished_folders, step_of
from crucible.errors import CheckpointError, ConfigError, StoreError, StoreUnavailable
from crucible.jobs.job import Job
from crucible.store import Store
from crucible.store.retry import wait_at_most
from tests.checkpoints.committing import commit, restored_step
from tests.faults.faulty_store import Died, DiesAfter, FaultyStore
from tests.faults.small_jobs import checkpoint_folder, claimed, is_whole, new_job, running, weights


def test_a_commit_is_restored_as_it_was(job: Job, scratch: Path) -> None:
    attempt = running(job, 1)
    folder = checkpoint_folder(scratch, 100, val_loss=1.5, config_digest="abc")
    checkpoint = Checkpoints(job).commit(attempt, folder)
    assert (checkpoint.step, checkpoint.attempt, checkpoint.val_loss) == (100, 1, 1.5)
    commit(attempt, scratch, 200)
    assert [c.step for c in Checkpoints(job).list()] == [200, 100]
    found = restore(Checkpoints(job), scratch / "restore")
    assert found is not None
    assert found[0].step == 200
    assert found[1] == scratch / "restore" / "step-00000200"
    assert is_whole(found[1], 200)


def test_a_checkpoint_is_named_by_the_step_that_people_are_shown(job: Job, scratch: Path) -> None:
    """The commit with a script's outputs has a number of its own, and is shown at the script's last step."""
    attempt = running(job, 1)
    checkpoints = Checkpoints(job)
    with pytest.raises(ConfigError, match=r"^--from newest: job job has saved nothing yet$"):
        choose_checkpoint(checkpoints, "", "--from newest")
    commit(attempt, scratch, 100)
    commit(attempt, scratch, 201, output_of_step=200)
    chosen = [choose_checkpoint(checkpoints, which, "--from").step for which in ("100", "200", "201", "")]
    assert chosen == [100, 201, 201, 201]
    with pytest.raises(ConfigError, match=r"has no such checkpoint; there are: 200, 100$"):
        choose_checkpoint(checkpoints, "150", "--from 150")


def test_nothing_committed_is_a_fresh_start(job: Job, scratch: Path) -> None:
    assert Checkpoints(job).list() == []
    assert restore(Checkpoints(job), scratch) is None


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


def test_a_step_that_is_saved_again_is_carried_again(store: Store, scratch: Path) -> None:
    """What a commit that failed had carried already has the same sizes, and other bytes."""
    attempt = running(new_job(store), 1)
    folder = checkpoint_folder(scratch, 3)

    def refuse(operation: str, key: str) -> None:
        if operation == "upload" and key.endswith("state.json"):
            raise StoreUnavailable("503")

    flaky = Job(FaultyStore(store, refuse), "job")
    with pytest.raises(StoreUnavailable):
        Checkpoints(flaky).commit(flaky.attempt(attempt.number), folder)
    (folder / "model.bin").write_bytes(weights(4))
    Checkpoints(attempt.job).commit(attempt, folder)
    found = restore(Checkpoints(attempt.job), scratch / "restore")
    assert found is not None
    assert (found[1] / "model.bin").read_bytes() == weights(4)


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

    monkeypatch.setattr("crucible.checkpoints.commits.file_sha256", vanished)
    with pytest.raises(CheckpointError, match="vanished"):
        Checkpoints(attempt.job).commit(attempt, folder)


def test_a_symlinked_file_is_committed_by_its_contents(job: Job, scratch: Path) -> None:
    """Workloads link files that did not change since the last save."""
    attempt = running(job, 1)
    folder = checkpoint_folder(scratch, 1)
    data = (folder / "model.bin").read_bytes()
    (folder / "model.bin").rename(scratch / "shared.bin")
    (folder / "model.bin").symlink_to(scratch / "shared.bin")
    Checkpoints(job).commit(attempt, folder)
    found = restore(Checkpoints(job), scratch / "restore")
    assert found is not None
    assert (found[1] / "model.bin").read_bytes() == data
    assert not (found[1] / "model.bin").is_symlink()
    assert json.loads((found[1] / "state.json").read_text()) == {"step": 1}


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
                raise StoreUnavailable("connection reset")

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
        raise StoreUnavailable("connection refused")

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
                raise StoreUnavailable("connection refused")

        frail = Job(FaultyStore(store, fail), "job")
        try:
            found = restore(Checkpoints(frail), scratch / "restore")
        except StoreError:
            continue
        assert found is not None
        assert is_whole(found[1], 100)
        assert failing >= 8
        return


def test_links_are_carried_with_what_they_point_to(store: Store, scratch: Path) -> None:
    job = new_job(store)
    folder = checkpoint_folder(scratch, 7)
    shared = scratch / "shared"
    shared.mkdir()
    (shared / "vocabulary").write_bytes(b"words")
    (folder / "tokenizer").symlink_to(shared)
    (folder / "model.link").symlink_to("model.bin")
    Checkpoints(job).commit(running(job, 1), folder)
    found = restore(Checkpoints(job), scratch / "restore")
    assert found is not None
    assert (found[1] / "tokenizer" / "vocabulary").read_bytes() == b"words"
    assert (found[1] / "model.link").read_bytes() == weights(7)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: path.symlink_to("nowhere"), "odd is a link to nothing"),
        (lambda path: path.symlink_to(path.parent), "odd is a link to a folder that contains it"),
        (os.mkfifo, "odd is a FIFO"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_name(
    store: Store, scratch: Path, make: Callable[[Path], None], problem: str
) -> None:
    job = new_job(store)
    folder = checkpoint_folder(scratch, 7)
    make(folder / "optimizer state" / "odd")
    with pytest.raises(CheckpointError, match=problem):
        Checkpoints(job).commit(running(job, 1), folder)
    assert Checkpoints(job).list() == []
