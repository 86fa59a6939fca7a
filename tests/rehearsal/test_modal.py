"""The Modal stand-in under the unmodified SDK: what it executes, and that each fault looks as Modal's own does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from grpclib import GRPCError

from crucible.errors import ServiceError
from crucible.rehearsal.modal import FakeModal
from crucible.rehearsal.modal.container import isolation

modal = pytest.importorskip("modal")
BACKENDS = pytest.mark.parametrize("gpu", ["H100:2", None], ids=["v1", "v2"])


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeModal]:
    with FakeModal(grace_seconds=10) as fake, pytest.MonkeyPatch.context() as patch:
        for name, value in fake.env.items():
            patch.setenv(name, value)
        yield fake


@dataclass
class Account:
    """What a program that uses Modal holds."""

    client: Any
    app: Any

    def create(self, script: str, **options: Any) -> Any:
        return modal.Sandbox.create("sh", "-c", script, app=self.app, client=self.client, **options)


@pytest.fixture
def account(fake: FakeModal) -> Iterator[Account]:
    client = modal.Client.from_credentials(fake.env["MODAL_TOKEN_ID"], fake.env["MODAL_TOKEN_SECRET"])
    known = len(fake.unknown_calls())
    yield Account(client, modal.App.lookup("tests", create_if_missing=True, client=client))
    assert fake.unknown_calls()[known:] == []


@BACKENDS
def test_a_sandbox_runs_its_command_and_nothing_of_this_environment_goes_in(account: Account, gpu: str | None) -> None:
    os.environ["OF_THIS_MACHINE"] = "1"
    sandbox = account.create("echo $A; env >&2; exit 3", gpu=gpu, env={"A": "b"}, tags={"k": "v"}, timeout=20)
    assert sandbox.stdout.read() == "b\n"
    assert "OF_THIS_MACHINE" not in sandbox.stderr.read()
    sandbox.wait()
    assert (sandbox.returncode, sandbox.get_tags()) == (3, {"k": "v"})
    again = modal.Sandbox.from_id(sandbox.object_id, client=account.client)
    assert (again.returncode, again.stdout.read()) == (3, "b\n")


@BACKENDS
def test_a_preemption_gives_notice_to_the_first_process_and_time_to_use_it(
    account: Account, fake: FakeModal, gpu: str | None
) -> None:
    sandbox = account.create("trap 'echo saved; exit 0' INT; echo ready; while :; do sleep 0.05; done", gpu=gpu)
    lines = iter(sandbox.stdout)
    assert next(lines) == "ready\n"
    fake.preempt(sandbox.object_id)
    assert next(lines) == "saved\n"
    with pytest.raises(modal.exception.SandboxTerminatedError):
        sandbox.wait()
    assert sandbox.returncode == 137


def test_a_first_process_that_ignores_the_notice_is_killed(account: Account, fake: FakeModal) -> None:
    sandbox = account.create("trap '' INT; echo ready; while :; do sleep 0.05; done", gpu="T4")
    assert next(iter(sandbox.stdout)) == "ready\n"
    fake.preempt(sandbox.object_id, grace_seconds=0.1)
    assert sandbox.poll() == 137


@pytest.mark.skipif(not isolation(), reason="needs PID namespaces")
def test_nothing_survives_a_lost_host(account: Account, fake: FakeModal, tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    script = f"setsid sh -c 'while :; do date +%N > {beat}; sleep 0.02; done' & sleep 600"
    sandbox = account.create(script, gpu="T4")
    while not beat.exists():
        pass
    fake.lose_host(sandbox.object_id)
    beat.unlink()
    account.create("sleep 0.3").wait()
    assert not beat.exists()


def test_lifetime_memory_and_termination_end_as_modal_says_them(account: Account, fake: FakeModal) -> None:
    old, big, cancelled = (account.create("sleep 600", gpu="T4") for _ in range(3))
    fake.reach_lifetime(old.object_id)
    with pytest.raises(modal.exception.SandboxTimeoutError):
        old.wait()
    fake.run_out_of_memory(big.object_id)
    big.wait()
    assert (old.returncode, big.returncode, cancelled.terminate(wait=True)) == (124, 137, 137)
    short = account.create("sleep 600", timeout=1)
    with pytest.raises(modal.exception.SandboxTimeoutError):
        short.wait()


def test_gpus_are_finite_and_a_queued_sandbox_starts_when_one_is_free(account: Account, fake: FakeModal) -> None:
    fake.set_capacity("L4", 1)
    first = account.create("sleep 600", gpu="L4")
    second = modal.Sandbox.create.aio("true", app=account.app, client=account.client, gpu="L4")
    import asyncio

    async def both() -> Any:
        creating = asyncio.ensure_future(second)
        await asyncio.to_thread(fake.wait_for, lambda views: views[-1].status == "QUEUED")
        await first.terminate.aio()
        return await creating

    sandbox = asyncio.run(both())
    sandbox.wait()
    assert sandbox.returncode == 0
    fake.set_capacity("L4", None)


def test_names_are_taken_while_a_sandbox_runs(account: Account) -> None:
    first = account.create("sleep 600", name="one")
    with pytest.raises(modal.exception.AlreadyExistsError):
        account.create("true", name="one")
    found = modal.Sandbox.from_name("tests", "one", client=account.client)
    assert found.object_id == first.object_id
    first.terminate(wait=True)
    account.create("true", name="one").wait()


def test_a_broken_image_a_bad_token_and_an_outage_are_told_apart(account: Account, fake: FakeModal) -> None:
    fake.fail_builds("pip install nonsense")
    image = modal.Image.debian_slim().run_commands("pip install nonsense")
    with pytest.raises(modal.exception.ImageBuildError):
        account.create("true", image=image)
    fake.accept_token(False)
    with pytest.raises(modal.exception.AuthError):
        modal.App.lookup("tests", client=account.client)
    fake.accept_token(True)
    fake.set_down(True)
    with pytest.raises(modal.exception.ServiceError):
        modal.App.lookup("tests", client=account.client)
    fake.set_down(False)


@pytest.mark.skipif(not isolation() or bool(os.geteuid()), reason="needs to mount")
def test_a_volume_outlives_its_sandboxes(account: Account) -> None:
    volume = modal.Volume.from_name("weights", create_if_missing=True, client=account.client)
    account.create("echo 42 > /tmp/weights/x", volumes={"/tmp/weights": volume}).wait()
    assert account.create("cat /tmp/weights/x", volumes={"/tmp/weights": volume}).stdout.read() == "42\n"


def test_costs_are_summed_by_tag_once_modal_has_them(account: Account, fake: FakeModal) -> None:
    from datetime import UTC, datetime, timedelta

    fake.delay_bills(3600)
    sandbox = account.create("true", gpu="H100:8", tags={"job": "a"})
    sandbox.wait()
    assert sandbox._experimental_stats().cost is None
    fake.delay_bills(0)
    assert sandbox._experimental_stats().cost > 0
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    groups = account.app.sandboxes.stats(since=hour - timedelta(hours=1), group_by_tags=["job"], tags={"job": "a"})
    assert [(group.tags["job"], group.cost > 0) for group in groups] == [("a", True)]


def test_a_call_that_the_stand_in_does_not_know_is_refused_and_remembered(fake: FakeModal) -> None:
    client = modal.Client.from_credentials(fake.env["MODAL_TOKEN_ID"], fake.env["MODAL_TOKEN_SECRET"])
    with pytest.raises((modal.exception.UnimplementedError, GRPCError)):
        modal.Queue.from_name("q", create_if_missing=True, client=client).put(1)
    assert fake.unknown_calls() == ["QueueGetOrCreate"]


def test_a_sandbox_that_is_not_there_is_named(fake: FakeModal) -> None:
    with pytest.raises(ServiceError, match="no sandbox 'sb-nowhere'"):
        fake.lose_host("sb-nowhere")
