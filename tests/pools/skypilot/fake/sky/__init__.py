"""SkyPilot's SDK as the bridge calls it, with the answers and errors that 0.14.1 gave: clusters are files.

A folder in $FAKE_SKY holds one JSON file a cluster, what was launched, and `trouble.json`: by call, the error to raise.
"""

from __future__ import annotations

import enum
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__version__ = "0.14.1"
ROOT = Path(os.environ["FAKE_SKY"])


class StatusRefreshMode(enum.Enum):
    NONE = "NONE"
    AUTO = "AUTO"


class ClusterStatus(enum.Enum):
    INIT = "INIT"
    UP = "UP"


class JobStatus(enum.Enum):
    RUNNING = "RUNNING"
    FAILED = "FAILED"
    FAILED_SETUP = "FAILED_SETUP"
    SUCCEEDED = "SUCCEEDED"


class Task:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    @classmethod
    def from_yaml_config(cls, config: dict[str, Any]) -> Task:
        _trouble("task")
        return cls(config)


@dataclass
class Request:
    request_id: str
    name: str
    status: str


def _trouble(call: str, nodes: int = 1) -> None:
    file = ROOT / "trouble.json"
    wanted = json.loads(file.read_text()).get(call) if file.exists() else None
    if wanted is not None and nodes >= wanted["from_nodes"]:
        error = type(wanted["type"], (Exception,), {})(wanted["message"])
        error.failover_history = [Exception(one) for one in wanted.get("history", [])]
        raise error


def _clusters() -> dict[str, dict[str, Any]]:
    return {file.stem: json.loads(file.read_text()) for file in sorted((ROOT / "clusters").glob("*.json"))}


def launch(task: Task, cluster_name: str, *, idle_minutes_to_autostop: int | None = None, down: bool = False) -> str:
    print("what SkyPilot prints must not be taken for an answer")
    _trouble("launch")
    status = "INIT" if (ROOT / "slow").exists() else "UP"
    record = {"status": status, "job": "RUNNING", "launched_at": int(time.time()), "nodes": task.config["num_nodes"]}
    (ROOT / "clusters").mkdir(exist_ok=True)
    partial = ROOT / f"{cluster_name}.partial"
    partial.write_text(json.dumps(record))
    partial.replace(ROOT / "clusters" / f"{cluster_name}.json")
    with (ROOT / "launched").open("a") as log:
        log.write(json.dumps([cluster_name, task.config, idle_minutes_to_autostop, down]) + "\n")
    return f"launch-{cluster_name}"


def get(request: Any) -> Any:
    if not isinstance(request, str):
        return request
    _trouble("up", _clusters().get(request.removeprefix("launch-"), {}).get("nodes", 1))
    while (ROOT / "slow").exists():
        time.sleep(0.02)
    return (1, None)


def api_status(*, cluster_name: str) -> list[Request]:
    pending = (ROOT / "slow").exists() and cluster_name in _clusters()
    return [Request(f"launch-{cluster_name}", "sky.launch", "RUNNING")] if pending else []


def api_cancel(requests: list[str]) -> None:
    with (ROOT / "cancelled").open("a") as log:
        log.write("\n".join(requests) + "\n")


def status(names: list[str] | None, refresh: StatusRefreshMode) -> list[dict[str, Any]]:
    _trouble("status")
    found = _clusters()
    return [
        {
            "name": name,
            "status": ClusterStatus(record["status"]),
            "launched_at": record["launched_at"],
            "resources_str": "1x(gpus=L4:1, g2-standard-4)",
        }
        for name, record in found.items()
        if names is None or name in names
    ]


def job_status(name: str) -> dict[int, JobStatus]:
    return {1: JobStatus(_clusters()[name]["job"])}


def tail_logs(name: str, job_id: int | None, *, follow: bool, tail: int, output_stream: Any) -> int:
    output_stream.write("(task, pid=7) No module named prefect\n")
    return 100


def down(name: str) -> None:
    _trouble("down")
    try:
        (ROOT / "clusters" / f"{name}.json").unlink()
    except FileNotFoundError:
        raise type("ClusterDoesNotExist", (ValueError,), {})(f"Cluster {name!r} does not exist.") from None
    with (ROOT / "downed").open("a") as log:
        log.write(name + "\n")
