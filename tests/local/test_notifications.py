"""`crucible notify`: the automations that come with Crucible, on a real server. The messages arrive at a web hook."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from apprise.plugins.sendgrid import NotifySendGrid
from apprise.plugins.slack import NotifySlack
from prefect.blocks.notifications import SendgridEmail, SlackWebhook
from prefect.states import Scheduled
from typer.testing import CliRunner

from crucible.cli.main import build_app
from crucible.errors import ConfigError
from crucible.jobs.job import Job
from crucible.jobs.records import Claim, EndReason, JobSpec, Launch, Outcome
from crucible.local import notifications
from crucible.local.access import connect
from crucible.local.notifications import (
    BLOCK_NAME,
    Target,
    automations_on,
    send_test,
    switch_off,
    switch_on,
    targets_on,
    topics,
)
from crucible.store import store_at
from crucible.supervision.queue_watch import QueueWatch
from tasks.ending import Ended
from tasks.launching import PrefectLauncher
from tasks.observing import emit
from tests.conftest import PrefectServer, unused_port
from tests.supervision.deployed import deployed_run

POOL = f"crowded-{uuid.uuid4().hex[:6]}"


def crucible(*words: str, fails: bool = False) -> str:
    """What the command prints; the error's message where it must fail."""
    result = CliRunner().invoke(build_app(), list(words))
    assert (result.exit_code != 0) == fails, f"{result.output} {result.exception!r}"
    return str(result.exception) if fails else result.output


def new_pool(api: httpx.Client) -> str:
    api.post("/work_pools/", json={"name": POOL, "type": "process"}).raise_for_status()
    return POOL


class Mailbox:
    """Messages that came to a web hook; other tests on the same server may cause some as well."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._came = threading.Condition()

    def put(self, message: dict[str, Any]) -> None:
        with self._came:
            self._messages.append(message)
            self._came.notify_all()

    def everything(self) -> list[dict[str, Any]]:
        """What has come so far."""
        return [*self._messages]

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
def api(prefect_server: PrefectServer, prefect_api: str) -> Iterator[httpx.Client]:
    """The server's API; at the end nobody is notified any more."""
    with connect(prefect_server.home, prefect_server.api_url) as client:
        yield client
        switch_off(client)
        assert automations_on(client) == {}
        assert targets_on(client) == {}


def test_each_topic_reaches_the_web_hook(
    api: httpx.Client, mailbox: tuple[str, Mailbox], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from blocks.budget import Budget
    from flows.cost_report import check_budgets
    from flows.train_nanogpt import train_nanogpt

    address, told = mailbox
    monkeypatch.setenv("PREFECT_API_URL", str(api.base_url))
    assert "name a target" in crucible("notify", "on", fails=True)
    crucible("notify", "on", "--webhook", address)
    crucible("notify", "on")  # again: nothing is made twice
    names = [automation["name"] for automation in api.post("/automations/filter", json={}).json()]
    assert len(names) == len(set(names))
    assert automations_on(api).keys() == {*topics(), "test"}
    assert "off" not in crucible("notify", "ls").split()
    assert crucible("notify", "test") == "webhook: delivered\n"
    assert told.body("Crucible: test") is not None

    emit("notice", "spotty", "EC2 takes it back")
    assert told.body("Crucible job spotty: notice") == "EC2 takes it back"

    lost = Outcome(end_reason=EndReason.LOST, message="no heartbeat for 45 s", decided_by="supervisor 1")
    spotty = Job.create(store_at(tmp_path.as_uri()), JobSpec(job_id="spotty"))
    PrefectLauncher(tmp_path.as_uri(), "", "").retire(spotty, Launch(number=3, pool="modal", reason=""), lost)
    assert told.body("Crucible job spotty: lost") == "attempt 3 on modal: no heartbeat for 45 s"

    due = datetime.now(UTC) - timedelta(minutes=20)
    late = deployed_run(Scheduled(scheduled_time=due), work_pool_name=new_pool(api))
    (message,) = [sent for sent in QueueWatch().look() if POOL in sent]
    assert told.body(f"Crucible queue {POOL}/default: runs wait") == message
    api.delete(f"/flow_runs/{late}")

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
    with pytest.raises(Ended, match="which is over"):
        train_nanogpt(job="too-late", finish_by=over, store=store.uri)
    body = told.body("Crucible run too-late: Failed")
    assert body is not None
    assert "which is over" in body
    assert not store.exists("jobs/too-late/job.json"), "refused before anything was made"

    crucible("notify", "off")
    assert automations_on(api) == {}


def test_a_target_that_cannot_be_reached_is_reported(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifications, "DELIVERY_SECONDS", 2.0)
    with pytest.raises(ConfigError, match="crucible notify on"):
        send_test(api)
    switch_on(api, [Target.webhook(f"http://127.0.0.1:{unused_port()}/")], ["failed"])
    assert automations_on(api).keys() == {"failed", "test"}
    assert send_test(api, seconds=120.0) == {"webhook": "no answer; is its address right?"}


def test_slack_and_mail_are_blocks_that_prefect_takes_and_delivers(
    api: httpx.Client, mailbox: tuple[str, Mailbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both services have one address each, which apprise knows: here it is a web hook on this machine."""
    slack = "https://hooks.slack.com/services/T0000AAAA/B0000AAAA/abcdefghijklmnopqrstuvwx"
    mail = Target.email(["ada@example.com"], "ci@example.com", "SG.key")
    switch_on(api, [Target.slack(slack), mail], ["budget"])
    to_slack, by_mail = SlackWebhook.load(BLOCK_NAME), SendgridEmail.load(BLOCK_NAME)
    assert to_slack.url.get_secret_value() == slack  # type: ignore[union-attr]
    assert by_mail.to_emails == ["ada@example.com"]  # type: ignore[union-attr]
    address, told = mailbox
    monkeypatch.setattr(NotifySlack, "webhook_url", address.rstrip("/"))
    monkeypatch.setattr(NotifySendGrid, "notify_url", address)
    to_slack.notify("it failed", "Crucible job a")  # type: ignore[union-attr]
    by_mail.notify("it failed", "Crucible job b")  # type: ignore[union-attr]
    (posted, sent) = told.everything()
    assert posted["attachments"][0]["title"] == "Crucible job a"
    assert "it failed" in posted["attachments"][0]["text"]
    assert sent["personalizations"][0]["to"][0]["email"] == "ada@example.com"
    assert (sent["from"]["email"], sent["subject"]) == ("ci@example.com", "Crucible job b")
    assert "it failed" in sent["content"][0]["value"]
    assert len(automations_on(api)["budget"]["actions"]) == 2
    for wrong in (lambda: Target.slack("https://example.com"), lambda: Target.email(["ada"], "b@c", "k")):
        with pytest.raises(ConfigError):
            wrong()
    with pytest.raises(ConfigError, match="failed, "):
        switch_on(api, [], ["weather"])
