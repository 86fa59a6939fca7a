"""Notices of Google Cloud and Azure, from stand-ins that answer over HTTP as their documentation says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from crucible.agent import notices_gcp
from crucible.agent.notices_azure import AzureMetadataNotices
from crucible.agent.notices_ec2 import Ec2MetadataNotices
from crucible.agent.notices_gcp import GcpMetadataNotices
from crucible.agent.sources import AZURE_CHASSIS, GCP_PRODUCT, sources_of_this_machine
from tests.waiting import until


class Metadata:
    """A metadata service of both clouds."""

    def __init__(self) -> None:
        self.preempted = threading.Event()
        self.asked: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.garbled = 0
        """How many more requests are answered with something that is not HTTP."""
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.asked.append(self.path)
                if service.garbled:
                    service.garbled -= 1
                    self.wfile.write(b"no HTTP at all\r\n\r\n")
                    return
                parts = urlsplit(self.path)
                if parts.path == "/computeMetadata/v1/instance/preempted":
                    self.google(parse_qs(parts.query))
                elif self.headers["Metadata"] != "true":
                    self.answer(400, "Bad Request")
                elif parts.path == "/metadata/scheduledevents":
                    assert parse_qs(parts.query)["api-version"] == ["2019-01-01"]
                    self.answer(200, json.dumps({"DocumentIncarnation": 1, "Events": service.events}))
                else:
                    self.answer(200, "machine-1")

            def google(self, query: dict[str, list[str]]) -> None:
                if self.headers["Metadata-Flavor"] != "Google":
                    return self.answer(403, "Missing Metadata-Flavor:Google header.")
                if query["last_etag"] == ["tag-FALSE"]:  # nothing new: held open until there is
                    service.preempted.wait(30)
                value = "TRUE" if service.preempted.is_set() else "FALSE"
                return self.answer(200, value, {"Metadata-Flavor": "Google", "ETag": f"tag-{value}"})

            def answer(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    service = Metadata()
    yield service
    service.preempted.set()
    service.server.shutdown()


def test_google_clouds_preemption_arrives_while_the_request_waits_for_it(metadata: Metadata) -> None:
    notices = GcpMetadataNotices(metadata.address)
    assert notices.poll() is None
    until(lambda: len(metadata.asked) == 2)
    assert notices.poll() is None
    metadata.preempted.set()
    until(lambda: notices.poll() is not None)
    notice = notices.poll()
    assert notice is not None
    assert notice.deadline is not None
    assert (notice.source, notice.stop) == ("gcp-spot", True)
    assert 20 < notice.deadline - time.time() <= 30
    assert notices.poll() == notice
    assert all("wait_for_change=true" in path for path in metadata.asked)


def test_an_answer_that_is_no_http_is_asked_for_again(metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices_gcp, "RETRY_SECONDS", 0.01)
    metadata.garbled = 1
    metadata.preempted.set()
    google = GcpMetadataNotices(metadata.address)
    until(lambda: google.poll() is not None)
    metadata.garbled = 1
    metadata.events = [{"EventType": "Preempt", "NotBefore": "", "EventStatus": "Scheduled"}]
    azure = AzureMetadataNotices(metadata.address, interval_seconds=1e-9)
    until(lambda: azure.poll() is not None)


def test_azures_eviction_of_this_machine_is_a_notice_and_that_of_another_is_none(metadata: Metadata) -> None:
    notices = AzureMetadataNotices(metadata.address, interval_seconds=1e-9)
    assert notices.poll() is None
    at = time.time() + 30
    evicted = {"EventType": "Preempt", "EventStatus": "Scheduled", "NotBefore": formatdate(at, usegmt=True)}
    metadata.events = [{**evicted, "Resources": ["machine-2"]}, {"EventType": "Freeze", "Resources": ["machine-1"]}]
    assert notices.poll() is None
    metadata.events = [{**evicted, "Resources": ["machine-1"]}]
    notice = notices.poll()
    assert notice is not None
    assert notice.deadline is not None
    assert notice.source == "azure"
    assert "evicts this spot machine" in notice.reason
    assert notice.deadline == pytest.approx(at, abs=1)
    metadata.events = []
    assert notices.poll() == notice


@pytest.mark.parametrize(("kind", "seconds"), [("Preempt", 30), ("Redeploy", 30)])
def test_an_event_of_azures_without_a_time_has_the_shortest_notice(
    metadata: Metadata, kind: str, seconds: float
) -> None:
    metadata.events = [{"EventType": kind, "NotBefore": "", "EventStatus": "Scheduled"}]
    notice = AzureMetadataNotices(metadata.address).poll()
    assert notice is not None
    assert notice.deadline is not None
    assert 0 < notice.deadline - time.time() <= seconds


@pytest.mark.parametrize(
    ("file", "text", "kinds"),
    [
        ("product_name", GCP_PRODUCT, {Ec2MetadataNotices, GcpMetadataNotices}),
        ("chassis_asset_tag", AZURE_CHASSIS, {Ec2MetadataNotices, AzureMetadataNotices}),
        ("product_name", "Some PC", {Ec2MetadataNotices}),
    ],
    ids=["gcp", "azure", "neither"],
)
def test_the_firmware_says_which_cloud_is_asked(tmp_path: Path, file: str, text: str, kinds: set[type]) -> None:
    (tmp_path / file).write_text(f"{text}\n")
    assert {type(source) for source in sources_of_this_machine({}, tmp_path)} == kinds
