"""The set-up a drill runs on: a server, a worker, a watchdog and a store of its own, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crucible.agent.health import REHEARSED_UNFIT
from crucible.errors import ServiceError
from crucible.local import access_log
from crucible.local.state import PROJECT, Home, State
from crucible.rehearsal.aws.metadata import MetadataService
from crucible.rehearsal.drill.faults import PROCESS_FAULTS, Fault, make_unfit, unfit_file
from crucible.rehearsal.drill.pauses import freeze_agent, pauses
from crucible.store import Store, store_at

INSTANCE = "i-0drill"
LOCAL_FAULTS = [
    *PROCESS_FAULTS,
    Fault("unfit-machine", "SIGKILL to agent and trainer; the next machine's GPU is broken", make_unfit),
    *pauses(freeze_agent, "SIGSTOP to the agent"),
]


@dataclass
class Stage:
    """A set-up that is up. `parameters` go to `train-nanogpt`, `faults` are what can be done here."""

    home: Home
    environment: Mapping[str, str]
    store: Store
    faults: Sequence[Fault]
    parameters: dict[str, Any] = field(default_factory=dict)
    metadata: MetadataService | None = None

    def crucible(self, *arguments: str) -> str:
        """Run the `crucible` command here. Raises `ServiceError` with its last message when it fails."""
        return self._run("crucible", "crucible.cli.main", *arguments)

    def prefect(self, *arguments: str) -> str:
        """Run the `prefect` command here, with the same errors."""
        return self._run("prefect", "prefect", *arguments)

    def restart_server(self) -> None:
        """Kill the Prefect server and start it again."""
        record = State.load(self.home).services["server"]
        if (process := record.find()) is not None:
            process.kill()
            process.wait(10)
        self.crucible("up")

    def announce_reclaim(self, seconds: float) -> None:
        """The machine's metadata says that it will be taken away in so many seconds."""
        assert self.metadata is not None
        self.metadata.announce_reclaim(INSTANCE, at=time.time() + seconds)

    def replace_machine(self) -> None:
        """The announced machine is gone; the next attempt finds itself on a new one."""
        assert self.metadata is not None
        self.metadata.remove_instance(INSTANCE)
        _add_instance(self.metadata)

    def still_running(self) -> list[str]:
        """What should not be running any more once the job is over; nothing on this machine outlives `down`."""
        return []

    def _run(self, name: str, module: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=PROJECT,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise ServiceError(f"{name} {arguments[0]} failed: {lines[-1] if lines else 'it printed nothing'}")
        return done.stdout


@contextmanager
def local_stage(folder: Path, *, s3: bool = False) -> Iterator[Stage]:
    """Bring up a local set-up below `folder`, with the store on disk or on a local S3; take it down at the end."""
    home = Home(folder)
    with ExitStack() as stack:
        metadata = MetadataService()
        stack.callback(metadata.close)
        _add_instance(metadata)
        others = ("PREFECT_", "CRUCIBLE_", "AWS_")  # what leads to another set-up
        kept = {k: v for k, v in os.environ.items() if not k.startswith(others) or k == access_log.SETTING}
        environment = kept | {
            "CRUCIBLE_HOME": str(folder),
            "PREFECT_HOME": str(folder / "prefect-client"),
            "CRUCIBLE_STORE": (folder / "store").as_uri(),
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.endpoint(INSTANCE),
            REHEARSED_UNFIT: str(unfit_file(folder)),
        }
        options: dict[str, Any] = {}
        if s3:
            environment |= stack.enter_context(local_s3())
            options = {
                "endpoint_url": environment["AWS_ENDPOINT_URL"],
                "key": environment["AWS_ACCESS_KEY_ID"],
                "secret": environment["AWS_SECRET_ACCESS_KEY"],
            }
        store = store_at(environment["CRUCIBLE_STORE"], **options)
        stage = Stage(home, environment, store, LOCAL_FAULTS, {"pool": "local"}, metadata)
        stack.callback(_take_down, stage)
        stage.crucible("up")
        yield stage


@contextmanager
def local_s3() -> Iterator[dict[str, str]]:
    """moto's server with an empty bucket; yields the environment that leads boto3 and s3fs to it."""
    import boto3

    from crucible.rehearsal.gate import new_key
    from crucible.rehearsal.s3 import S3Server

    key = new_key()  # whoever could write into the store could have any command run
    server = S3Server("127.0.0.1", keys={key})
    server.start()
    try:
        host, port = server.get_host_and_port()
        environment = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": "rehearsal",
            "AWS_DEFAULT_REGION": "us-east-1",
            "CRUCIBLE_STORE": "s3://crucible-drill/runs",
        }
        boto3.client(
            "s3",
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            aws_access_key_id=key,
            aws_secret_access_key="rehearsal",
            region_name="us-east-1",
        ).create_bucket(Bucket="crucible-drill")
        yield environment
    finally:
        server.stop()


def _add_instance(metadata: MetadataService) -> None:
    metadata.add_instance(INSTANCE, instance_type="rehearsed", zone="laptop-1a", lifecycle="spot")


def _take_down(stage: Stage) -> None:
    try:
        stage.crucible("down")
    except ServiceError as error:
        print(f"warning: {error}", file=sys.stderr)
