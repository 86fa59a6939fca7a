"""The rehearsed AWS: moto's server, machines, tasks and instance metadata, in one process and under one clock."""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moto.events.models import events_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from crucible.rehearsal.aws import change_sets, cloudformation, prices
from crucible.rehearsal.aws.machines import Machines
from crucible.rehearsal.aws.metadata import MetadataService
from crucible.rehearsal.aws.runs import Run
from crucible.rehearsal.aws.settings import ACCOUNT, Settings
from crucible.rehearsal.aws.tasks import Tasks
from crucible.rehearsal.gate import KeyGate, new_key

TICK_SECONDS = 0.05


class Cloud:
    """Comes up in the constructor; `close` ends every container. One per process: moto's state is global."""

    def __init__(self, settings: Settings) -> None:
        cloudformation.install()
        change_sets.install()
        prices.install()
        self.settings = settings
        self.timeline: list[dict[str, Any]] = []
        self.expired_keys: set[str] = set()
        self._lock = threading.RLock()
        self._began = time.monotonic()
        self._over = threading.Event()
        self._last_failure = ""
        # Tasks run real commands: other people on this machine must not be able to start one.
        self.worker_key, self.task_key = new_key(), new_key("ASIA")
        own_key = new_key()  # for what ECS does by itself, whoever's key has expired
        keys = {self.worker_key, self.task_key, own_key}
        app = KeyGate(DomainDispatcherApplication(create_backend_app), keys, self.expired_keys)
        self._server = make_server("127.0.0.1", settings.port, app, threaded=True, request_handler=_Silent)
        self._server.daemon_threads = True  # type: ignore[attr-defined]
        self._server.block_on_close = False  # type: ignore[attr-defined]  # clients keep their connections open
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.metadata = MetadataService()
        self.machines = Machines(settings, lambda: self.url, own_key, self.metadata, self._put_event, self.say)
        self.tasks = Tasks(settings, self.machines, self._image_environment(), self._put_event, self.say)
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True, name="aws-api").start()
        self._clock = threading.Thread(target=self._run, daemon=True, name="aws-clock")
        self._clock.start()

    def say(self, message: str) -> None:
        """Add to the timeline, which `crucible rehearse aws` prints and tests read."""
        self.timeline.append({"seconds": round(time.monotonic() - self._began, 3), "message": message})

    def within(self, do: Callable[[], Any]) -> Any:
        """Call `do` while the clock stands still."""
        with self._lock:
            return do()

    def running(self, flow_run_id: str | None = None, job: str | None = None) -> list[Run]:
        """Tasks whose container runs, the oldest first; of one flow run or one job's cost tag, if named."""
        found = [run for run in self.tasks.runs.values() if run.task.last_status == "RUNNING" and not run.host_gone]
        if flow_run_id:
            found = [run for run in found if _tags(run).get("prefect.io/flow-run-id") == flow_run_id]
        if job:
            found = [run for run in found if _tags(run).get("crucible:job") == job]
        return found

    def state(self) -> dict[str, Any]:
        """Everything that can be asked about, as JSON."""
        return {
            "instances": [
                {
                    "id": machine.instance_id,
                    "type": machine.instance_type,
                    "zone": machine.zone,
                    "lifecycle": machine.lifecycle,
                    "group": machine.group,
                    "registered": machine.registered,
                    "draining": machine.draining,
                }
                for machine in self.machines.machines.values()
            ],
            "tasks": [
                {
                    "id": run.id,
                    "arn": run.task.task_arn,
                    "status": run.task.last_status,
                    "instance": run.machine.instance_id if run.machine else None,
                    "lifecycle": run.machine.lifecycle if run.machine else None,
                    "gpus": run.gpus,
                    "tags": _tags(run),
                    "pid": run.container.pid if run.container else None,
                    "exit_code": run.task.containers[0].exitCode if run.task.containers else None,
                    "stop_code": getattr(run.task, "stop_code", None),
                    "stopped_reason": run.task.stopped_reason,
                }
                for run in self.tasks.runs.values()
            ],
            "drought": sorted(self.machines.market.drought),
            "no_quota": sorted(self.machines.market.no_quota),
            "expired_keys": sorted(self.expired_keys),
        }

    def close(self) -> None:
        """End every container and stop serving."""
        self._over.set()
        self._clock.join()
        self.tasks.close()
        self._server.shutdown()
        self._server.server_close()
        self.metadata.close()

    def _run(self) -> None:
        while not self._over.wait(TICK_SECONDS):
            with self._lock:
                try:
                    self.machines.tick(self.tasks.busy)
                    self.tasks.tick()
                except Exception as error:  # noqa: BLE001 - the clock must go on; the failure is shown, once
                    if repr(error) != self._last_failure:
                        self._last_failure = repr(error)
                        traceback.print_exc(file=sys.stderr)
                        self.say(f"the rehearsed cloud failed: {error!r}")

    def _put_event(self, source: str, detail_type: str, detail: dict[str, Any]) -> None:
        entry = {"Source": source, "DetailType": detail_type, "Detail": json.dumps(detail)}
        events_backends[ACCOUNT][self.settings.region].put_events([entry])

    def _image_environment(self) -> dict[str, str]:
        """What the image and the task role would give a container."""
        home = Path(sys.executable).parent
        return {
            "PATH": f"{home}:/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.task_key,
            "AWS_SECRET_ACCESS_KEY": "rehearsal",
            "AWS_REGION": self.settings.region,
            "AWS_DEFAULT_REGION": self.settings.region,
        }


def _tags(run: Run) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run.task.tags}


class _Silent(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        """Requests are no news."""
