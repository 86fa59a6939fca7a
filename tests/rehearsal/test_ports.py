"""The ports of the rehearsals run commands: neighbours on this machine and web pages may not use them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from types import SimpleNamespace

import boto3
import botocore.config
import httpx
import pytest
from botocore.exceptions import ClientError

from crucible.rehearsal.drill.stage import local_s3

PAGE = {"Origin": "https://evil.example.com"}
JOB = b'{"script": {"command": ["sh", "-c", "touch /tmp/mine"]}}'


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    with local_s3() as environment:
        yield environment


def client(environment: dict[str, str], key: str) -> object:
    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=key,
        aws_secret_access_key="rehearsal",
        region_name="us-east-1",
        config=botocore.config.Config(retries={"total_max_attempts": 1}),
    )


def test_the_drills_store_is_for_the_drill(s3: dict[str, str]) -> None:
    ours = client(s3, s3["AWS_ACCESS_KEY_ID"])
    ours.put_object(Bucket="crucible-drill", Key="runs/a", Body=b"ours")  # type: ignore[attr-defined]
    target = f"{s3['AWS_ENDPOINT_URL']}/crucible-drill/runs/jobs/drill/job.json"
    for headers in ({}, PAGE):
        assert httpx.put(target, content=JOB, headers=headers, trust_env=False).status_code == 403
    assert httpx.get(target, headers=PAGE, trust_env=False).status_code == 403
    with pytest.raises(ClientError, match="403"):
        client(s3, "rehearsal").put_object(Bucket="crucible-drill", Key="runs/a", Body=JOB)  # type: ignore[attr-defined]
    listed = ours.list_objects_v2(Bucket="crucible-drill")["Contents"]  # type: ignore[attr-defined]
    assert [found["Key"] for found in listed] == ["runs/a"]


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[None]:
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def test_faults_are_for_those_who_have_the_address() -> None:
    from crucible.rehearsal.aws.__main__ import control_server  # with all of moto: not in each process that collects

    cloud = SimpleNamespace(timeline=["something"], within=lambda do: do(), state=lambda: {})
    server = control_server(cloud, "not-a-secret")  # type: ignore[arg-type]
    with serving(server):
        url = f"http://127.0.0.1:{server.server_port}"
        for path in ("/state", "/timeline", "/faults/reclaim", "/guess/state", "//state"):
            for headers in ({}, PAGE):
                assert httpx.get(url + path, headers=headers, trust_env=False).status_code == 403
                assert httpx.post(url + path, headers=headers, json={}, trust_env=False).status_code == 403
        assert httpx.get(f"{url}/not-a-secret/state", headers=PAGE, trust_env=False).status_code == 403
        assert httpx.get(f"{url}/not-a-secret/timeline", trust_env=False).json() == ["something"]
        assert httpx.post(f"{url}/not-a-secret/faults/none", json={}, trust_env=False).status_code == 404
