"""The EC2 notice source against a metadata server that insists on tokens, as instances of our launch template do."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from crucible.agent.notices_ec2 import Ec2MetadataNotices
from crucible.rehearsal.aws.metadata import MetadataService

INSTANCE = "i-0123456789abcdef0"


@pytest.fixture
def metadata() -> Iterator[MetadataService]:
    service = MetadataService()
    service.add_instance(INSTANCE, instance_type="g5.xlarge", zone="us-east-1b", lifecycle="spot")
    yield service
    service.close()


def watch(service: MetadataService) -> Ec2MetadataNotices:
    return Ec2MetadataNotices(service.endpoint(INSTANCE), interval_seconds=1e-9)


def test_a_reclaim_is_a_stop_with_its_deadline_and_stands(metadata: MetadataService) -> None:
    notices = watch(metadata)
    assert notices.poll() is None
    at = float(int(time.time()) + 120)
    metadata.announce_reclaim(INSTANCE, at)
    notice = notices.poll()
    assert notice is not None
    assert notice.stop
    assert notice.deadline == at
    assert "terminate" in notice.reason
    metadata.remove_instance(INSTANCE)
    assert notices.poll() == notice


def test_a_rebalance_recommendation_only_warns_until_the_reclaim(metadata: MetadataService) -> None:
    notices = watch(metadata)
    metadata.recommend_rebalance(INSTANCE)
    warning = notices.poll()
    assert warning is not None
    assert not warning.stop
    assert warning.deadline is None
    metadata.announce_reclaim(INSTANCE, time.time() + 120)
    notice = notices.poll()
    assert notice is not None
    assert notice.stop


def test_an_expired_token_is_replaced_without_missing_the_notice(metadata: MetadataService) -> None:
    notices = watch(metadata)
    assert notices.poll() is None
    metadata.expire_tokens()
    metadata.announce_reclaim(INSTANCE, time.time() + 120)
    assert notices.poll() is not None


def test_a_service_that_does_not_answer_at_first_is_asked_again_soon(metadata: MetadataService) -> None:
    notices = watch(metadata)
    metadata.remove_instance(INSTANCE)
    assert notices.poll() is None
    metadata.add_instance(INSTANCE, instance_type="g5.xlarge", zone="us-east-1b", lifecycle="spot")
    metadata.announce_reclaim(INSTANCE, time.time() + 120)
    assert notices.poll() is not None


def test_identity_names_machine_zone_and_market(metadata: MetadataService) -> None:
    identity = watch(metadata).instance_identity()
    assert identity == {
        "instance_id": INSTANCE,
        "instance_type": "g5.xlarge",
        "zone": "us-east-1b",
        "region": "us-east-1",
        "image_id": "ami-rehearsal",
        "lifecycle": "spot",
    }


def test_off_ec2_there_is_no_identity_and_no_notice() -> None:
    with (
        socket.socket() as silent
    ):  # accepts the connection in its backlog and never answers: the slowest way to be off EC2
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        notices = Ec2MetadataNotices(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert notices.instance_identity() is None
        assert notices.poll() is None


def test_the_endpoint_is_the_one_boto3_is_told(metadata: MetadataService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.endpoint(INSTANCE) + "/")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # metadata must never go through a proxy
    assert (Ec2MetadataNotices().instance_identity() or {})["instance_id"] == INSTANCE
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert Ec2MetadataNotices().instance_identity() is None
