"""Notices of an Azure virtual machine: its scheduled events.

A spot machine's eviction is the event `Preempt`, at least 30 s before its `NotBefore`. `Terminate` (5 to 15 minutes
ahead), `Redeploy` (10) and `Reboot` (15) end what runs as well. `Freeze` only pauses the machine for some seconds. An
event names the machines that it concerns: those of a whole availability set see it.

The first request may take up to two minutes, because it turns the service on for the machine; each look that fails is
followed by another.
Source: Microsoft, "Azure Metadata Service: Scheduled Events for Linux VMs", version 2019-01-01.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

from crucible.agent.notices import Notice
from crucible.agent.notices_metadata import MetadataNotices

DEFAULT_ENDPOINT = "http://169.254.169.254"
PREEMPT_SECONDS = 30.0
ENDING = ("Preempt", "Terminate", "Redeploy", "Reboot")
"""Events after which nothing that runs now runs any more, the most urgent first."""
_EVENTS = "metadata/scheduledevents?api-version=2019-01-01"
_NAME = "metadata/instance/compute/name?api-version=2019-06-01&format=text"
_HEADERS = {"Metadata": "true"}


class AzureMetadataNotices(MetadataNotices):
    """Watches one machine's scheduled events."""

    silent_retry_seconds = 3.0  # it is there: firmware says that this is Azure, and the notice is short

    def __init__(self, endpoint: str | None = None, *, interval_seconds: float = 3.0) -> None:
        super().__init__(endpoint or DEFAULT_ENDPOINT, interval_seconds=interval_seconds)
        self._name = ""

    def look(self) -> Notice | None:
        document = json.loads(self.request("GET", _EVENTS, _HEADERS))
        events = [event for event in document.get("Events", []) if event.get("EventType") in ENDING]
        if not events:
            return None
        if not self._name:
            with suppress(OSError):  # without a name, an event is better taken for ours
                self._name = self.request("GET", _NAME, _HEADERS).strip()
        ours = [event for event in events if self._concerns(event)]
        if not ours or self.standing is not None:
            return None
        event = min(ours, key=lambda event: ENDING.index(event["EventType"]))
        kind, at = str(event["EventType"]), event.get("NotBefore") or "once"
        what = "evicts this spot machine" if kind == "Preempt" else f"plans a {kind} of this machine"
        return Notice(source="azure", reason=f"Azure {what}, not before {at}", deadline=_deadline(event))

    def _concerns(self, event: dict[str, Any]) -> bool:
        machines = event.get("Resources") or []
        return not self._name or not machines or self._name in machines


def _deadline(event: dict[str, Any]) -> float:
    """Unix seconds of its `NotBefore`, such as `Mon, 19 Sep 2016 18:29:47 GMT`; it is empty once the event began."""
    try:
        return parsedate_to_datetime(event.get("NotBefore") or "").timestamp()
    except ValueError:
        return time.time() + (PREEMPT_SECONDS if event.get("EventStatus") != "Started" else 0.0)
