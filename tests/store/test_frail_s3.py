"""An S3 store behind a network that fails: what passes is outlived, what stays is told."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ConnectionClosedError

from crucible.errors import (
    ObjectExists,
    StoreAccessDenied,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from crucible.jobs.job import Job
from crucible.jobs.records import JobSpec
from crucible.store import Store, store_at
from crucible.store.s3 import S3Store
from tests.faults.s3_proxy import S3Proxy

CREDENTIALS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[S3Proxy]:
    with S3Proxy(s3_endpoint) as proxy:
        yield proxy


@pytest.fixture
def frail(proxy: S3Proxy, s3_endpoint: str) -> Store:
    """An S3 store behind `proxy`."""
    bucket = f"my-bucket-{random.getrandbits(48):x}"
    boto3.client("s3", endpoint_url=s3_endpoint, **CREDENTIALS).create_bucket(Bucket=bucket)
    return store_at(f"s3://{bucket}/runs", key="test", secret="test", endpoint_url=proxy.url)


def test_nobody_listening_is_a_store_error_with_the_address(frail: Store, proxy: S3Proxy, tmp_path: Path) -> None:
    frail.write("object", b"x")
    proxy.refuse()
    for act in (
        lambda: frail.list(""),
        lambda: frail.create("claim", b"x"),
        lambda: frail.download("object", tmp_path / "copy"),
    ):
        with pytest.raises(StoreUnavailable, match=r"(?i)connect|closed"):
            act()
    assert list(tmp_path.iterdir()) == []
    proxy.heal()
    assert frail.read("object") == b"x"


@pytest.mark.parametrize(
    ("status", "code"), [(403, "AccessDenied"), (400, "ExpiredToken"), (403, "InvalidAccessKeyId")]
)
def test_refused_credentials_say_so(frail: Store, proxy: S3Proxy, status: int, code: str) -> None:
    frail.write("object", b"x")
    proxy.answer(status, code)
    for act in (lambda: frail.read("object"), lambda: frail.list(""), lambda: frail.write("object", b"y")):
        with pytest.raises(StoreAccessDenied, match="check the credentials"):
            act()
    proxy.heal()
    assert frail.read("object") == b"x"


def test_errors_that_pass_are_outlived(frail: Store, proxy: S3Proxy) -> None:
    frail.write("object", b"x")
    proxy.answer(500, "InternalError", times=1)
    assert frail.read("object") == b"x"
    proxy.answer(503, "SlowDown", times=2)
    frail.write("object", b"y")
    assert frail.read("object") == b"y"


def test_errors_that_stay_are_told(frail: Store, proxy: S3Proxy) -> None:
    proxy.answer(500, "InternalError")
    with pytest.raises(StoreUnavailable, match="InternalError"):
        frail.write("object", b"x")


def test_a_missing_bucket_is_told_apart_from_a_missing_object(s3_endpoint: str) -> None:
    nowhere = store_at("s3://no-such-place/runs", key="test", secret="test", endpoint_url=s3_endpoint)
    for act in (
        lambda: nowhere.read("object"),
        lambda: nowhere.exists("object"),
        lambda: nowhere.list(""),
        lambda: nowhere.folders("jobs"),
        lambda: nowhere.write("object", b"x"),
        lambda: nowhere.create("object", b"x"),
    ):
        with pytest.raises(StoreAccessDenied, match="bucket 'no-such-place' does not exist; create it first"):
            act()


def test_a_create_whose_answer_was_lost_does_not_lose_against_itself(frail: Store, proxy: S3Proxy) -> None:
    proxy.lose_answers(times=1)
    frail.create("claim", b"mine")
    assert frail.read("claim") == b"mine"
    proxy.lose_answers(times=1)
    with pytest.raises(ObjectExists):
        frail.create("claim", b"yours")


def test_a_create_that_cannot_be_checked_has_lost_against_nobody(frail: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be the caller's own, whose answer was lost: to say that it exists would be to say that it is another's."""

    def hang_up(_path: str) -> bytes:
        raise ConnectionClosedError(endpoint_url="http://127.0.0.1")

    assert isinstance(frail, S3Store)
    frail.create("claim", b"mine")
    monkeypatch.setattr(frail._s3, "cat_file", hang_up)
    with pytest.raises(StoreUnavailable, match="Connection was closed"):
        frail.create("claim", b"mine")


def test_create_is_refused_by_servers_that_only_say_412(frail: Store, proxy: S3Proxy) -> None:
    """AWS names the condition that failed in its answer; other S3 servers give the status alone."""
    frail.create("claim", b"mine")
    proxy.answer(412, "PreconditionFailed", times=1)
    with pytest.raises(ObjectExists):
        frail.create("claim", b"yours")


def test_a_broken_upload_is_repeated(frail: Store, proxy: S3Proxy, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(200_000))
    proxy.break_uploads(times=1)
    frail.upload(source, "object")
    assert frail.read("object") == source.read_bytes()


def test_a_cut_download_is_never_taken_for_whole(frail: Store, proxy: S3Proxy, tmp_path: Path) -> None:
    data = os.urandom(200_000)
    frail.write("object", data)
    proxy.cut_downloads(times=1)
    with suppress(StoreError):
        frail.download("object", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == data
    assert {path.name for path in tmp_path.iterdir()} <= {"copy"}
    (tmp_path / "copy").unlink(missing_ok=True)
    proxy.cut_downloads()
    with pytest.raises(StoreError):
        frail.download("object", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


# Stores that speak S3's protocol, more or less


def test_a_store_without_conditional_writes_is_refused_before_a_job_exists(frail: Store, proxy: S3Proxy) -> None:
    proxy.ignore_conditions()
    with pytest.raises(StoreRefused, match=r"ignores If-None-Match: .* nothing is started"):
        Job.create(frail, JobSpec(job_id="first"))
    assert frail.list() == []
    proxy.heal()
    Job.create(frail, JobSpec(job_id="first"))
    assert [info.key for info in frail.list()] == ["jobs/first/job.json"]


def test_a_store_that_rejects_checksums_is_told_with_the_setting(
    frail: Store, proxy: S3Proxy, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.reject_checksums()
    with pytest.raises(StoreRefused, match="set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
        frail.write("object", b"x")
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    fresh = store_at(frail.uri, key="test", secret="test", endpoint_url=proxy.url, skip_instance_cache=True)
    fresh.require_guarantees()
    (tmp_path / "weights").write_bytes(b"x" * 100_000)
    fresh.upload(tmp_path / "weights", "weights")
    assert fresh.size("weights") == 100_000
