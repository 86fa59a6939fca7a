"""Job records: what stands once written, who may write, and the fence between two attempts."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from crucible.config import TrainConfig
from crucible.errors import ConfigError, FencedOut, StoreError
from crucible.jobs.job import Job
from crucible.jobs.records import Claim, EndReason, Heartbeat, JobSpec, Launch, Limits, Outcome, StopRequest, Supervisor
from crucible.store import Store
from tests.faults.small_jobs import claimed, launched, new_job, running


def outcome(reason: EndReason = EndReason.LOST, **fields: object) -> Outcome:
    return Outcome.model_validate({"end_reason": reason, "message": "test", "decided_by": "supervisor", **fields})


@pytest.mark.parametrize("job_id", ["a", "run-1", "2026.11_gpt", "x" * 63])
def test_usable_job_ids(store: Store, job_id: str) -> None:
    new_job(store, job_id)
    assert Job.ids(store) == [job_id]


@pytest.mark.parametrize("job_id", ["", "..", ".hidden", "a/b", "../x", "a b", "ä", "-x", "x" * 64, "a\n", "a\x00"])
def test_unusable_job_ids_are_refused_in_words(store: Store, job_id: str) -> None:
    with pytest.raises(ConfigError, match="no usable name"):
        new_job(store, job_id)
    assert Job.ids(store) == []


def test_a_job_is_created_once_and_keeps_its_spec(store: Store) -> None:
    new_job(store, config=TrainConfig(learning_rate=0.1))
    again = new_job(store, config=TrainConfig(learning_rate=0.1))
    assert again.read_spec().config == TrainConfig(learning_rate=0.1)
    with pytest.raises(ConfigError, match=r"config\.learning_rate \(0\.1, not 0\.2\)"):
        new_job(store, config=TrainConfig(learning_rate=0.2))
    assert again.read_spec().config == TrainConfig(learning_rate=0.1)


def test_opening_a_job_that_is_not_there(store: Store) -> None:
    with pytest.raises(ConfigError, match="no job 'nobody'"):
        Job.open(store, "nobody")
    assert Job.ids(store) == []


def test_jobs_with_similar_names_do_not_see_each_other(store: Store) -> None:
    claimed(new_job(store, "run-1"), 1)
    assert new_job(store, "run-10").attempts() == []
    assert new_job(store, "run").attempts() == []


def test_only_one_of_many_claims_wins(store: Store) -> None:
    job = new_job(store)
    for number in range(1, 21):
        attempt = launched(job, number)
        start = threading.Barrier(6)

        def take(_: int, number: int = number, start: threading.Barrier = start) -> str | None:
            claim = Claim(number=number)
            start.wait()
            try:
                job.attempt(number).take(claim)
            except FencedOut:
                return None
            return claim.token

        with ThreadPoolExecutor(6) as pool:
            winners = [token for token in pool.map(take, range(6)) if token]
        assert attempt.read_claim() is not None
        assert winners == [attempt.read_claim().token]


def test_a_second_claim_is_refused_and_says_who_has_it(store: Store) -> None:
    attempt = claimed(new_job(store), 1)
    assert attempt.read_claim() is not None
    with pytest.raises(FencedOut, match=rf"already taken by process {attempt.read_claim().pid} on "):
        attempt.job.attempt(1).take(Claim(number=1))


def test_an_attempt_that_was_given_up_cannot_be_claimed_any_more(store: Store) -> None:
    attempt = launched(new_job(store), 1)
    attempt.end(outcome(EndReason.NOT_STARTED))
    with pytest.raises(FencedOut, match="was declared never started by the supervisor"):
        attempt.take(Claim(number=1))


def test_a_late_comer_finds_the_higher_attempt(store: Store) -> None:
    job = new_job(store)
    launched(job, 1)
    claimed(job, 2)
    with pytest.raises(FencedOut, match="attempt 2 of job has taken over from 1"):
        job.attempt(1).take(Claim(number=1))


def test_the_fence_falls_with_a_claim_not_with_a_decision(store: Store) -> None:
    job = new_job(store)
    first = running(job, 1)
    launched(job, 2)
    first.require_current()
    second = claimed(job, 2)
    with pytest.raises(FencedOut, match="taken over"):
        first.require_current()
    second.require_current()
    second.end(outcome(EndReason.INTERRUPTED))
    with pytest.raises(FencedOut, match="declared interrupted"):
        second.require_current()


def test_the_first_outcome_and_the_first_stop_request_stand(store: Store) -> None:
    attempt = running(new_job(store), 1)
    lost = attempt.end(outcome(EndReason.LOST))
    assert attempt.end(outcome(EndReason.COMPLETED)) == lost
    assert attempt.read_outcome() == lost
    attempt.request_stop(StopRequest(end_reason=EndReason.CANCELLED, reason="first"))
    attempt.request_stop(StopRequest(end_reason=EndReason.BUDGET, reason="second"))
    assert attempt.read_stop_request() is not None
    assert attempt.read_stop_request().reason == "first"


def test_deciding_at_once_gives_everyone_the_same_decision(store: Store) -> None:
    job = new_job(store)
    start = threading.Barrier(6)

    def decide(me: int) -> str:
        start.wait()
        return job.decide(Launch(number=1, pool=f"pool-{me}", reason="race")).pool

    with ThreadPoolExecutor(6) as pool:
        pools = set(pool.map(decide, range(6)))
    assert len(pools) == 1
    assert job.attempts()[0].read_launch() is not None


def test_supervisors_at_once_get_numbers_of_their_own_and_the_newest_counts(store: Store) -> None:
    job = new_job(store)
    start = threading.Barrier(6)

    def supervise(me: int) -> Supervisor:
        start.wait()
        return job.supervise(f"flow-{me}")

    with ThreadPoolExecutor(6) as pool:
        supervisors = sorted(pool.map(supervise, range(6)), key=lambda s: s.number)
    assert [s.number for s in supervisors] == [1, 2, 3, 4, 5, 6]
    job.require_supervisor(supervisors[-1])
    for older in supervisors[:-1]:
        with pytest.raises(FencedOut, match=f"now supervised by flow run {supervisors[-1].flow_run_id}"):
            job.require_supervisor(older)


def test_the_newest_limits_count(store: Store) -> None:
    job = new_job(store)
    assert job.read_limits() == Limits()
    job.set_limits(Limits(max_cost_usd=1.0))
    job.set_limits(Limits(max_cost_usd=1.0))
    assert len(job.store.list("limits")) == 1
    for number in range(12):
        job.set_limits(Limits(max_cost_usd=2.0 + number))
    assert job.read_limits().max_cost_usd == 13.0


def test_the_cost_is_the_sum_of_last_words(store: Store) -> None:
    job = new_job(store)
    running(job, 1).write_heartbeat(Heartbeat(sequence=1, phase="training", cost_usd=0.5))
    assert job.cost_usd() == 0.5
    job.attempt(1).end(outcome(cost_usd=0.75))
    running(job, 2).write_heartbeat(Heartbeat(sequence=1, phase="training", cost_usd=0.1))
    launched(job, 3)
    assert job.cost_usd() == pytest.approx(0.85)


def test_metrics_come_back_in_order(store: Store) -> None:
    attempt = running(new_job(store), 1)
    for sequence in range(12):
        attempt.append_metrics(sequence, b'{"step": %d}\n{"step": %d}\n' % (2 * sequence, 2 * sequence + 1))
    assert list(attempt.metrics()) == [b'{"step": %d}' % step for step in range(24)]


def test_records_of_a_newer_release_are_read(store: Store) -> None:
    job = new_job(store)
    record = job.store.read_json("job.json") | {"field_of_the_future": [1, 2]}
    job.store.write_json("job.json", record)
    assert Job.open(store, "job").read_spec() == JobSpec.model_validate(record)


@pytest.mark.parametrize("damaged", [b"", b'{"number": 1', b"[]", b'{"number": "one"}'])
def test_a_damaged_record_is_an_error_with_its_address(store: Store, damaged: bytes) -> None:
    job = new_job(store)
    launched(job, 1)
    job.store.write("attempts/0001/claim.json", damaged)
    with pytest.raises(StoreError, match=r"attempts/0001/claim\.json"):
        _ = job.attempt(1).read_claim()


def test_folders_that_are_no_attempts_do_no_harm(store: Store) -> None:
    job = new_job(store)
    claimed(job, 1)
    job.store.write("attempts/notes/read.me", b"hello")
    job.store.write("limits/.DS_Store", b"hello")
    assert [attempt.number for attempt in job.attempts()] == [1]
    assert job.read_limits() == Limits()


def test_a_flow_run_that_is_brought_back_is_told_from_one_that_starts(store: Store) -> None:
    job = Job.create(store, JobSpec(job_id="again"))
    assert job.first_start("run-1")
    assert not job.first_start("run-1")
    assert job.first_start("run-2")


def test_a_job_made_for_one_device_is_continued_with_a_preset_that_takes_any(store: Store) -> None:
    new_job(store, config=TrainConfig(device="cpu"))
    again = new_job(store, config=TrainConfig(device="auto")).read_spec()
    assert again.config == TrainConfig(device="cpu")
    with pytest.raises(ConfigError, match=r"config\.device \('cpu', not 'cuda'\)"):
        new_job(store, config=TrainConfig(device="cuda"))
