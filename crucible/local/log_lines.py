"""The newest log lines of a job's attempts, from the Prefect server."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

MOST_LINES = 200
LOGGER = "prefect.flow_runs"
"""Of the flow itself; workers have others."""
LAST = "Finished in state "
"""How Prefect's last line of a flow run begins."""
LAST_SECONDS = 10.0
_PREFECTS_OWN = re.compile(
    r"Running \d+ deployment pull step|Executing deployment step|Deployment step '|All deployment steps completed|"
    rf"Beginning flow run '|{LAST}"
)
"""Lines that Prefect writes in the flow's name, which say nothing about the script."""


@dataclass
class LogLines:
    """Reads what has been logged since the last call."""

    api: httpx.Client
    job: str
    _runs: list[str] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)
    _since: str = "1970-01-01T00:00:00Z"
    _whole: bool = False
    """Whether the newest attempt's last line was among those read."""

    def read_new(self) -> list[str]:
        """Lines of all attempts so far, oldest first; none while the server does not answer."""
        try:
            wanted = {"flow_runs": {"tags": {"all_": [f"job:{self.job}", "stage:train"]}}}
            found = self.api.post("/flow_runs/filter", json=wanted).raise_for_status().json()
            if not found:
                return []
            query: dict[str, Any] = {
                "logs": {
                    "flow_run_id": {"any_": [run["id"] for run in found]},
                    "timestamp": {"after_": self._since},
                },
                "sort": "TIMESTAMP_ASC",
                "limit": MOST_LINES,
            }
            logs = self.api.post("/logs/filter", json=query).raise_for_status().json()
        except httpx.HTTPError:
            return []
        new = [entry for entry in logs if entry["id"] not in self._seen and _is_flows_own(entry)]
        if logs:
            self._since = logs[-1]["timestamp"]
            self._seen = {entry["id"] for entry in logs if entry["timestamp"] == self._since}
        newest = max(found, key=lambda run: run["start_time"] or "")["id"]
        self._whole |= any(entry["flow_run_id"] == newest and entry["message"].startswith(LAST) for entry in logs)
        return [line for entry in new for line in entry["message"].splitlines()]

    def read_rest(self) -> list[str]:
        """The lines up to the last one of a job that has ended: its process delivers them a moment after its end is on
        record. Gives up after `LAST_SECONDS`."""
        deadline = time.monotonic() + LAST_SECONDS
        lines = self.read_new()
        while not self._whole and time.monotonic() < deadline:
            time.sleep(0.2)
            lines += self.read_new()
        return lines


def _is_flows_own(entry: dict[str, Any]) -> bool:
    return entry["name"] == LOGGER and not _PREFECTS_OWN.match(entry["message"])
