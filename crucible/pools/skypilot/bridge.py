"""SkyPilot's SDK behind a pipe: a request per line in, an answer per line out, both JSON.

    {"id": 1, "do": "clusters", "with": {"names": null}}
    {"id": 1, "value": [{"name": "crucible-…", "status": "UP", …}]}

Runs in SkyPilot's own environment, so it imports the standard library and `sky` alone. Each request has a thread of its
own: most of them wait for SkyPilot's API server.
"""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

LAST_LINES = 20


def launch(name: str, task: dict[str, Any], idle_minutes: int) -> str:
    """Begin to bring up a cluster that runs the task; returns the request's id. The cluster ends itself when idle."""
    import sky

    made = sky.Task.from_yaml_config(task)
    return str(sky.launch(made, cluster_name=name, idle_minutes_to_autostop=idle_minutes, down=True))


def wait(request: str) -> None:
    """Until a request is over; raises what it failed with."""
    import sky

    sky.get(request)


def launching(name: str) -> list[str]:
    """Ids of the requests to launch that cluster that are not over yet."""
    import sky

    found = sky.api_status(cluster_name=name)
    return [str(one.request_id) for one in found if "launch" in one.name and one.status in _NOT_OVER]


_NOT_OVER = ("PENDING", "WAITING", "RUNNING")


def clusters(names: list[str] | None = None, refresh: bool = False) -> list[dict[str, Any]]:
    """The clusters as SkyPilot has them on record; `refresh`: after it has asked the cloud."""
    import sky

    mode = sky.StatusRefreshMode.AUTO if refresh else sky.StatusRefreshMode.NONE
    return [_cluster(record) for record in sky.get(sky.status(names, refresh=mode))]


def _cluster(record: Any) -> dict[str, Any]:
    known = record if isinstance(record, dict) else record.model_dump()
    status = known.get("status")
    return {
        "name": known["name"],
        "status": str(getattr(status, "value", status)),
        "launched_at": known.get("launched_at"),
        "resources": known.get("resources_str") or "",
        "reason": known.get("init_status_reason") or known.get("last_event") or "",
    }


def job(name: str) -> str | None:
    """The state of the newest job on a cluster; None if it has none."""
    import sky

    states = list(sky.get(sky.job_status(name)).values())
    return None if not states or states[-1] is None else str(getattr(states[-1], "value", states[-1]))


def last_lines(name: str) -> str:
    """The end of what the newest job on a cluster has printed."""
    import sky

    text = io.StringIO()
    sky.tail_logs(name, None, follow=False, tail=LAST_LINES, output_stream=text)
    return text.getvalue()


def down(name: str) -> None:
    """Take a cluster down, whatever it does."""
    import sky

    sky.get(sky.down(name))


def cancel(request: str) -> None:
    """Give up a request that is not over."""
    import sky

    sky.get(sky.api_cancel([request]))


def facts() -> dict[str, Any]:
    """SkyPilot's version, and the clouds that it has access to."""
    import sky
    from sky.client import sdk

    clouds = sky.get(sdk.enabled_clouds())
    return {"version": sky.__version__, "clouds": sorted(str(cloud).lower() for cloud in clouds)}


REQUESTS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (launch, wait, launching, clusters, job, last_lines, down, cancel, facts)
}


def main() -> int:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what SkyPilot prints goes where its log lines go
    lock = threading.Lock()

    def answer(request: dict[str, Any]) -> None:
        try:
            reply = {"value": REQUESTS[request["do"]](**request["with"])}
        except BaseException as error:  # noqa: BLE001 - whatever it is, somebody waits for an answer
            reply = {"error": _described(error)}
        with lock:
            answers.write(json.dumps({"id": request["id"], **reply}) + "\n")
            answers.flush()

    for line in sys.stdin:
        threading.Thread(target=answer, args=(json.loads(line),), daemon=True).start()
    return 0


def _described(error: BaseException) -> dict[str, Any]:
    history = getattr(error, "failover_history", None) or []
    return {
        "type": type(error).__name__,
        "message": str(error),
        "history": [f"{type(one).__name__}: {one}" for one in history],
    }


if __name__ == "__main__":
    sys.exit(main())
