"""Start a rehearsed AWS, and do things to it.

with AwsRehearsal.start(folder, working_directory=project) as aws:
    aws.deploy()                         # the real stack, into it
    subprocess.run([...], env={**os.environ, **aws.environment})
    aws.fault("notice", seconds=5)
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from crucible.errors import CrucibleError
from crucible.loopback import no_tls
from crucible.pools.aws.session import Aws
from crucible.pools.aws.stack import Progress, StackState
from crucible.rehearsal.aws.settings import ACCOUNT, Settings

START_SECONDS = 60.0


class RehearsalError(CrucibleError):
    """The rehearsed cloud did not start, or refused a fault."""


class NothingToHitError(RehearsalError):
    """No task or machine is there now that the fault could hit; try again a little later."""


class AwsRehearsal:
    """A rehearsed AWS in a process of its own, which ends with this object's process at the latest."""

    def __init__(
        self, process: subprocess.Popen[str], settings: Settings, url: str, control_url: str, worker_key: str
    ) -> None:
        self._process, self.settings, self.url, self.control_url = process, settings, url, control_url
        self._worker_key = worker_key
        self._control = httpx.Client(base_url=control_url, timeout=30, verify=no_tls())

    @classmethod
    def start(cls, folder: Path, *, working_directory: Path, **settings: Any) -> AwsRehearsal:
        """Bring it up; `settings` as in `Settings`. Container logs go to `folder`. Raises `RehearsalError`."""
        chosen = Settings.parse({"folder": folder, "working_directory": working_directory, **settings})
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "cloud.log"
        with log.open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "crucible.rehearsal.aws", chosen.model_dump_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # Ctrl-C is for us; it ends when we do
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            process.wait()
            raise RehearsalError(
                f"the rehearsed AWS did not start; see {log} (is moto installed? pip install moto[server])"
            )
        addresses = json.loads(line)
        return cls(process, chosen, **addresses)

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which boto3, s3fs and Prefect's workers talk to this cloud and no other."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self._worker_key,
            "AWS_SECRET_ACCESS_KEY": "rehearsal",
            "AWS_REGION": self.settings.region,
            "AWS_DEFAULT_REGION": self.settings.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def session(self) -> Aws:
        """What `crucible.pools.aws.session.connect` would give, for this cloud."""
        import boto3

        session = boto3.Session(
            aws_access_key_id=self._worker_key, aws_secret_access_key="rehearsal", region_name=self.settings.region
        )
        return Aws(session, self.settings.region, ACCOUNT, f"arn:aws:iam::{ACCOUNT}:user/rehearsal", self.url)

    def deploy(
        self,
        name: str = "crucible",
        parameters: Mapping[str, str] | None = None,
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> StackState:
        """Deploy the real stack here, with an image in its repository."""
        from crucible.pools.aws import stack

        aws = self.session()
        state = stack.apply(aws, stack.plan(aws, name, parameters or {}), on_progress)
        repository = state.outputs["ImageRepository"].split("/", 1)[1]
        aws.client("ecr").put_image(
            repositoryName=repository,
            imageTag="rehearsal",
            imageManifestMediaType="application/vnd.oci.image.manifest.v1+json",
            imageManifest=json.dumps({"schemaVersion": 2, "layers": [], "config": {"digest": "sha256:" + "0" * 64}}),
        )
        return state

    def store_secret(self, name: str, value: str) -> str:
        """Put a value into this cloud's Secrets Manager; returns the secret's ARN."""
        created = self.session().client("secretsmanager").create_secret(Name=name, SecretString=value)
        return str(created["ARN"])

    def state(self) -> dict[str, Any]:
        """Instances, tasks and switched-on faults, now."""
        return dict(self._control.get("/state").raise_for_status().json())

    def timeline(self) -> list[dict[str, Any]]:
        """What happened so far: seconds since the start, and words."""
        return list(self._control.get("/timeline").raise_for_status().json())

    def fault(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        """Let something go wrong (`crucible.rehearsal.aws.faults`). Raises `NothingToHitError`, `RehearsalError`."""
        return ask_for_fault(self.control_url, name, **arguments)

    def wait_for(self, found: Callable[[dict[str, Any]], Any], what: str, seconds: float = 60.0) -> Any:
        """Look at the state until `found` gives something true, and return that. Raises `RehearsalError`."""
        deadline = time.monotonic() + seconds
        while not (result := found(self.state())):
            if time.monotonic() > deadline:
                said = "\n".join(entry["message"] for entry in self.timeline()[-20:])
                raise RehearsalError(f"{what} did not happen within {seconds:g} s; the last messages:\n{said}")
            time.sleep(0.05)
        return result

    def container_log(self, task_id: str) -> str:
        """What a task printed."""
        return (self.settings.folder / "tasks" / task_id / "container.log").read_text(errors="replace")

    def close(self) -> None:
        """End it and all its containers."""
        self._control.close()
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def __enter__(self) -> AwsRehearsal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def ask_for_fault(control_url: str, fault: str, /, **arguments: Any) -> dict[str, Any]:
    """Let something go wrong in the cloud behind `control_url`. Raises `NothingToHitError`, `RehearsalError`."""
    try:
        answer = httpx.post(f"{control_url}/faults/{quote(fault)}", json=arguments, timeout=30, verify=no_tls())
    except httpx.TransportError as error:
        raise RehearsalError(
            f"the rehearsed AWS does not answer ({error}): start it with crucible rehearse aws"
        ) from error
    except ValueError as error:  # what JSON does not have: nan, inf
        raise RehearsalError(f"fault {fault}: {error}") from error
    if answer.status_code == httpx.codes.CONFLICT:
        raise NothingToHitError(answer.json()["error"])
    if answer.is_error:
        raise RehearsalError(f"fault {fault}: {answer.json()['error']}")
    return dict(answer.json())
