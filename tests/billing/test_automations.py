"""The automations that come with Crucible, created as their README says, on a real server: the message arrives."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.events import emit_event

from crucible.jobs.job import Job
from crucible.jobs.records import Claim, EndReason, JobSpec, Launch, Outcome
from crucible.local.state import PROJECT
from crucible.store import store_at
from tasks.ending import Ended
from tests.conftest import PrefectServer

AUTOMATIONS = PROJECT / "infrastructure" / "automations"


class Mailbox:
    """Messages that came to a web hook; other tests on the same server may cause some as well."""

    def __init__(self) -> None:
        self._messages: list[dict[str, str]] = []
        self._came = threading.Condition()

    def put(self, message: dict[str, str]) -> None:
        with self._came:
            self._messages.append(message)
            self._came.notify_all()

    def body(self, subject: str, seconds: float = 120.0) -> str | None:
        """Wait for the message with that subject; None when it does not come."""

        def found() -> str | None:
            return next((message["body"] for message in self._messages if message["subject"] == subject), None)

        with self._came:
            return self._came.wait_for(found, seconds)


@pytest.fixture
def mailbox() -> Iterator[tuple[str, Mailbox]]:
    """The address of a web hook, and what comes there."""
    box = Mailbox()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            box.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", box
    server.shutdown()
    server.server_close()


@pytest.fixture
def told(
    prefect_server: PrefectServer, prefect_api: str, mailbox: tuple[str, Mailbox], tmp_path: Path
) -> Iterator[Mailbox]:
    """All automations of the folder, telling a web hook."""
    address, box = mailbox
    block = CustomWebhookNotificationBlock(
        name="tests", url=address, json_data={"subject": "{{subject}}", "body": "{{body}}"}
    )
    block_id = str(block.save("automation-tests", overwrite=True))
    files = [yaml.safe_load(file.read_text()) for file in sorted(AUTOMATIONS.glob("*.yaml"))]
    together = {"automations": [automation for file in files for automation in file["automations"]]}
    mine = tmp_path / "automations.yaml"
    mine.write_text(yaml.safe_dump(together).replace("BLOCK_DOCUMENT_ID", block_id))
    prefect_server.prefect("automation", "create", "--from-file", str(mine))
    yield box
    with get_client(sync_client=True) as client:
        for automation in client.read_automations():
            if automation.name.startswith("crucible-"):
                client.delete_automation(automation.id)


def test_each_automation_tells_what_it_is_there_for(told: Mailbox, tmp_path: Path) -> None:
    from blocks.budget import Budget
    from flows.cost_report import check_budgets
    from flows.train_nanogpt import train_nanogpt

    resource = {"prefect.resource.id": "crucible.job.spotty", "prefect.resource.name": "spotty"}
    body = None
    while body is None:  # until the server's triggers know of the new automations
        emit_event("crucible.notice", resource=resource, payload={"message": "EC2 takes it back"})
        body = told.body("Crucible job spotty: notice", seconds=5.0)
    assert body == "EC2 takes it back"

    store = store_at(tmp_path.as_uri())
    job = Job.create(store, JobSpec(job_id="dear", project="automated"))
    job.decide(Launch(number=1, pool="modal", instance="L4", usd_per_hour=1.0, reason="test"))
    job.attempt(1).take(Claim(number=1))
    job.attempt(1).end(Outcome(end_reason=EndReason.COMPLETED, message="", seconds=900.0, cost_usd=0.9))
    Budget(usd=1.0, project="automated").save("automated", overwrite=True)  # type: ignore[unused-coroutine]
    assert check_budgets(store=store.uri, return_state=True).message == "2 alerts"  # type: ignore[union-attr]
    for percent in (50, 80):
        body = told.body(f"Crucible budget automated: {percent} %")
        assert (
            body
            == f"{percent} % reached: budget automated: $0.90 of $1.00 spent this month by project automated (90 %)"
        )

    over = f"{datetime.now(UTC) - timedelta(hours=1):%Y-%m-%dT%H:%MZ}"
    body = None
    while body is None:
        with pytest.raises(Ended, match="which is over"):
            train_nanogpt(job="too-late", finish_by=over, store=store.uri)
        body = told.body("Crucible run too-late: Failed", seconds=15.0)
    assert "which is over" in body
    assert not store.exists("jobs/too-late/job.json"), "refused before anything was made"
