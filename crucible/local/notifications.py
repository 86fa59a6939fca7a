"""Notifications: Prefect automations on Crucible's events, and the blocks that they send through.

The automations are the files in `infrastructure/automations`. None exists on a server until you name a target
(`crucible notify on`): a Slack web hook, mail addresses, or any web hook. Each automation then sends to all targets.
The blocks are Prefect's own, so that the UI can edit them.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import yaml

from crucible.errors import ConfigError, ServiceError
from crucible.local.block_documents import find_block, save_block
from crucible.local.state import PROJECT

FOLDER = PROJECT / "infrastructure" / "automations"
PREFIX = "crucible-"
BLOCK_NAME = "crucible-notify"
TEST = "test"
"""The automation that `crucible notify test` triggers."""
BUDGETS = "budget"
"""The automation that needs the schedule of `check-budgets`."""
TARGETS = {"slack": "slack-webhook", "email": "sendgrid-email", "webhook": "custom-webhook"}
"""Prefect's block type of each kind of target."""
TRIGGER_SECONDS = 5.0
"""The server may need a moment until it knows a new automation: the test event is sent again after this long."""
DELIVERY_SECONDS = 20.0


@dataclass(frozen=True)
class Target:
    """Where notifications go."""

    kind: str
    data: dict[str, Any] = field(repr=False)

    @classmethod
    def slack(cls, url: str) -> Target:
        """A Slack incoming web hook. Raises `ConfigError` if the address is none."""
        if not url.startswith(("https://hooks.slack.com/services/", "https://hooks.slack-gov.com/services/")):
            raise ConfigError("--slack-webhook: expected https://hooks.slack.com/services/…, as Slack shows it")
        return cls("slack", {"url": url})

    @classmethod
    def webhook(cls, url: str) -> Target:
        """Any web hook: it gets a JSON object with `subject`, `body` and both in `text`."""
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"--webhook {url!r}: expected an address that begins with https:// or http://")
        message = {"subject": "{{subject}}", "body": "{{body}}", "text": "{{subject}}\n{{body}}"}
        return cls("webhook", {"name": "Crucible", "url": url, "json_data": message})

    @classmethod
    def email(cls, addresses: Sequence[str], sender: str, api_key: str) -> Target:
        """Mail through SendGrid, the only mail service that Prefect's automations can use."""
        if wrong := [address for address in (*addresses, sender) if "@" not in address]:
            raise ConfigError(f"{wrong[0]!r} is not a mail address")
        return cls("email", {"to_emails": list(addresses), "sender_email": sender, "api_key": api_key})


def topics() -> dict[str, str]:
    """What people can be notified of, each with its description."""
    return {name: made["description"] for name, made in _definitions().items() if name != TEST}


def switch_on(api: httpx.Client, targets: Sequence[Target], about: Sequence[str]) -> None:
    """Save the targets, and make the automations on `about` send to them and to those that were there before.

    An empty `about` means all topics. Raises `ConfigError` or `ServiceError`.
    """
    definitions = _definitions()
    if unknown := [name for name in about if name not in topics()]:
        raise ConfigError(f"--about {unknown[0]}: there are {', '.join(topics())}")
    for target in targets:
        save_block(api, TARGETS[target.kind], BLOCK_NAME, target.data)
    blocks = targets_on(api)
    wanted = {TEST, *(about or topics())}
    with _asking("change the automations"):
        existing = automations_on(api)
        for name, definition in definitions.items():
            found = existing.get(name)
            if name not in wanted:
                if found:
                    api.delete(f"/automations/{found['id']}").raise_for_status()
                continue
            (template,) = definition["actions"]
            made = definition | {
                "name": PREFIX + name,
                "actions": [template | {"block_document_id": block} for block in blocks.values()],
            }
            if found:
                api.put(f"/automations/{found['id']}", json=made).raise_for_status()
            else:
                api.post("/automations/", json=made).raise_for_status()
    keep_budget_checks(api)


def switch_off(api: httpx.Client) -> None:
    """Delete the automations and the targets' blocks."""
    with _asking("delete the automations"):
        for automation in automations_on(api).values():
            api.delete(f"/automations/{automation['id']}").raise_for_status()
        for block in targets_on(api).values():
            api.delete(f"/block_documents/{block}").raise_for_status()
        _schedule_budget_checks(api, active=False)


def keep_budget_checks(api: httpx.Client) -> None:
    """Switch the hourly `check-budgets` on if somebody is notified of budgets; every deployment switches it off."""
    with _asking("switch check-budgets on"):
        if BUDGETS in automations_on(api):
            _schedule_budget_checks(api, active=True)


def targets_on(api: httpx.Client) -> dict[str, str]:
    """The ids of the blocks that notifications go through, by kind of target."""
    with _asking("show its blocks"):
        found = {kind: find_block(api, block_type, BLOCK_NAME) for kind, block_type in TARGETS.items()}
    return {kind: str(block["id"]) for kind, block in found.items() if block}


def automations_on(api: httpx.Client) -> dict[str, dict[str, Any]]:
    """The automations of `crucible notify` that the server has, by topic. Those that a person made are left out."""
    known = {PREFIX + name: name for name in _definitions()}
    with _asking("show its automations"):
        every = api.post("/automations/filter", json={}).raise_for_status().json()
    return {known[automation["name"]]: automation for automation in every if automation["name"] in known}


def send_test(api: httpx.Client, seconds: float = 60.0) -> dict[str, str | None]:
    """Send a test message through the server to every target; why each failed, or None where it was delivered.

    Raises `ServiceError` if the server does not react within so many seconds, `ConfigError` if there is no target.
    """
    automation = automations_on(api).get(TEST)
    if automation is None:
        raise ConfigError("nobody is notified yet; name a target with: crucible notify on")
    kinds = {block: kind for kind, block in targets_on(api).items()}
    order = [kinds.get(action["block_document_id"], "another") for action in automation["actions"]]
    began, end, emit_at, reacted = datetime.now(UTC), time.monotonic() + seconds, 0.0, False
    results: dict[int, str | None] = {}
    with _asking("send a test"):
        while time.monotonic() < end and len(results) < len(order):
            events = _events_of(api, automation["id"], began)
            if events and not reacted:
                reacted, end = True, time.monotonic() + DELIVERY_SECONDS
            if not reacted and time.monotonic() >= emit_at:
                _emit_test(api)
                emit_at = time.monotonic() + TRIGGER_SECONDS
            results = {
                event["payload"]["action_index"]: _problem(event)
                for event in events
                if event["event"].endswith((".executed", ".failed"))
            }
            time.sleep(0.5)
    if not reacted:
        raise ServiceError(f"the server did not react within {seconds:.0f} s; see its log with: crucible doctor")
    # Prefect reports nothing of a web hook that cannot be reached, or that refuses.
    return {kind: results.get(index, "no answer; is its address right?") for index, kind in enumerate(order)}


def _emit_test(api: httpx.Client) -> None:
    event = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": "crucible.test",
        "resource": {"prefect.resource.id": "crucible.notify", "prefect.resource.name": "crucible"},
        "payload": {"message": "This is a test: notifications of this Prefect server arrive here."},
    }
    api.post("/events", json=[event]).raise_for_status()


def _events_of(api: httpx.Client, automation: str, since: datetime) -> list[dict[str, Any]]:
    """What the server reports of the automation: that it was triggered, and how each of its actions ended."""
    wanted = {"resource": {"id": [f"prefect.automation.{automation}"]}, "occurred": {"since": since.isoformat()}}
    found = api.post("/events/filter", json={"filter": wanted, "limit": 50}).raise_for_status().json()["events"]
    return [event for event in found if event["event"].endswith((".triggered", ".executed", ".failed"))]


def _problem(event: dict[str, Any]) -> str | None:
    """Why an action failed; None if it was carried out."""
    if event["event"].endswith("failed"):
        return " ".join(str(event["payload"].get(name, "")) for name in ("reason", "notification_log")).strip()
    return None


def _schedule_budget_checks(api: httpx.Client, *, active: bool) -> None:
    found = api.get("/deployments/name/check-budgets/check-budgets")
    if found.status_code == httpx.codes.NOT_FOUND:
        return  # another project's deployments
    deployment = found.raise_for_status().json()
    for schedule in deployment["schedules"]:
        if schedule["active"] is not active:
            path = f"/deployments/{deployment['id']}/schedules/{schedule['id']}"
            api.patch(path, json={"active": active}).raise_for_status()


def _definitions() -> dict[str, dict[str, Any]]:
    """The automations of the folder, by topic."""
    files = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in sorted(FOLDER.glob("*.yaml"))]
    every = [automation for file in files for automation in file["automations"]]
    return {automation["name"].removeprefix(PREFIX): automation for automation in every}


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """What the server refuses within it becomes a `ServiceError` that says what it did not do."""
    try:
        yield
    except httpx.HTTPError as error:
        raise ServiceError(f"the Prefect server did not {what}: {error}; see crucible doctor") from error
