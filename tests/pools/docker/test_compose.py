"""compose.yaml as a small team would bring it up, on a real engine: PostgreSQL, password, both workers, a training."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import httpx
import pytest

from crucible.checkpoints.commits import Checkpoints
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason
from crucible.pools.docker.images import PROJECT
from crucible.rehearsal.docker_engine import OwnEngine
from crucible.store import store_at
from tests.conftest import unused_port

pytestmark = pytest.mark.slow
POSTGRES = "crucible-postgres:16"
"""Made from this machine's own where the public image cannot be pulled."""
PATIENCE_SECONDS = 900.0
LONG_ENOUGH = {"max_iters": 4000, "eval_interval": 1000, "checkpoint_interval_seconds": 1}


@dataclass
class Box:
    """The services of compose.yaml, under a project name, on a port and in a folder of their own."""

    environment: dict[str, str]
    folder: Path

    def compose(self, *words: str) -> str:
        command = ["docker", "compose", "--project-directory", str(PROJECT), *words]
        done = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}\n{self.logs()}"
        return done.stdout

    def logs(self) -> str:
        command = ["docker", "compose", "--project-directory", str(PROJECT), "logs", "--no-color", "--tail", "40"]
        return subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, check=False
        ).stdout

    def api(self, user: str | None = None) -> httpx.Client:
        auth = ("admin", self.environment["CRUCIBLE_PASSWORD"]) if user is None else (user, "wrong")
        port = self.environment["CRUCIBLE_PORT"]
        return httpx.Client(base_url=f"http://127.0.0.1:{port}/api", auth=auth, trust_env=False)

    def health(self) -> dict[str, str]:
        """Health of every running service that has a check."""
        rows = self.compose("ps", "--format", "{{.Service}} {{.Health}}").splitlines()
        return dict(row.split(" ", 1) for row in rows if row.split(" ", 1)[1])


def _public_postgres() -> str:
    text = (PROJECT / "compose.yaml").read_text()
    return next(iter(re.findall(r"postgres:[\w.-]+@sha256:[0-9a-f]{64}", text)))


@pytest.fixture
def box(engine: OwnEngine | None, image: str, tmp_path: Path) -> Iterator[Box]:
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("NOT TESTED: `docker compose` is not there; install Docker's Compose plugin, version 2 or newer")
    public = subprocess.run(["docker", "pull", "--quiet", _public_postgres()], capture_output=True, check=False)
    if public.returncode and not docker.from_env().images.list(name=POSTGRES):
        if not Path("/usr/lib/postgresql").exists():
            pytest.skip("NOT TESTED: postgres cannot be pulled, and PostgreSQL is not installed to make an image from")
        subprocess.run([Path(__file__).with_name("postgres_image.sh"), POSTGRES], check=True)
    folder = tmp_path / "srv"
    folder.mkdir()
    shutil.chown(folder, 10001, 10001)
    socket = Path(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://"))
    made = Box(
        {
            "COMPOSE_PROJECT_NAME": f"crucible-{secrets.token_hex(3)}",
            "CRUCIBLE_IMAGE": image,
            "CRUCIBLE_PASSWORD": secrets.token_hex(),
            "CRUCIBLE_DATABASE_PASSWORD": secrets.token_hex(),
            "CRUCIBLE_FOLDER": str(folder),
            "CRUCIBLE_GPUS": "0",
            "CRUCIBLE_PORT": str(unused_port()),
            **({"CRUCIBLE_POSTGRES_IMAGE": POSTGRES} if public.returncode else {}),
            "DOCKER_SOCKET": str(socket),
            "DOCKER_GID": str(socket.stat().st_gid),
        },
        folder,
    )
    try:
        made.compose("up", "--detach")
        yield made
    finally:
        made.compose("down", "--volumes", "--timeout", "20")


def test_a_team_box_trains_behind_its_password_though_server_and_database_are_killed(box: Box) -> None:
    with box.api("stranger") as stranger:
        assert stranger.post("/flow_runs/count", json={}).status_code == 401
    with box.api() as api:
        deployment = api.get("/deployments/name/train-nanogpt/train-nanogpt").json()
        parameters = {"preset": "debug", "pool": "docker-gpu", "job": "shared", "config": LONG_ENOUGH}
        created = api.post(f"/deployments/{deployment['id']}/create_flow_run", json={"parameters": parameters})
        created.raise_for_status()
        store = store_at(f"file://{box.folder}/store")
        checkpoints = Checkpoints(Job(store, "shared"))
        wait_until(checkpoints.list, box)

        box.compose("kill", "database", "server")
        saved = max(checkpoint.step for checkpoint in checkpoints.list())
        wait_until(lambda: any(checkpoint.step > saved for checkpoint in checkpoints.list()), box)  # it goes on alone
        box.compose("start", "database", "server")

        def ended() -> bool:
            try:
                state = api.get(f"/flow_runs/{created.json()['id']}").json()["state"]
            except httpx.TransportError:
                return False
            return state["type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

        wait_until(ended, box)
        assert api.get(f"/flow_runs/{created.json()['id']}").json()["state"]["type"] == "COMPLETED", box.logs()
    reasons = [
        outcome.end_reason for attempt in Job.open(store, "shared").attempts() if (outcome := attempt.read_outcome())
    ]
    assert reasons == [EndReason.COMPLETED]
    wait_until(lambda: set(box.health().values()) == {"healthy"}, box)
    assert set(box.health()) == {"database", "server", "worker-local", "worker-docker"}


def wait_until(holds: Callable[[], object], box: Box) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, box.logs()
        time.sleep(0.3)
