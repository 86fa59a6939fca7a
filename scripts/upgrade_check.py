"""Try a newer Prefect in a scratch environment and print what breaks: `make upgrade-check`.

    python -m scripts.upgrade_check [--prefect 3.9.1] [--keep FOLDER]

The scratch environment has the newest Prefect 3 (or the one named) with its AWS and Docker integrations, within the
other bounds of `constraints.txt`; everything else comes from the environment that runs this. Exits with 1 if a check
fails. `pyproject.toml` allows the versions that passed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
TRIED = ("prefect", "prefect-aws", "prefect-docker")
WAIT_SECONDS = 180.0
FLOW = """
from prefect import flow

@flow
def greet(name: str = "you"):
    print("hello", name)
"""
DEPLOYMENTS = """
deployments:
  - {name: greeting, entrypoint: "greet.py:greet", work_pool: {name: local}}
  - {name: often, entrypoint: "greet.py:greet", work_pool: {name: local}, schedules: [{interval: 60, active: true}]}
"""
PATCHES = """
import json
from crucible.prefect_compat import statuses
print(json.dumps({s.patch.name: s.difference for s in statuses()}))
"""
WORKERS = """
from prefect.plugins import load_prefect_collections
failed = [f"{name}: {found!r}" for name, found in load_prefect_collections().items() if isinstance(found, Exception)]
assert not failed, failed
import crucible.pools.aws.worker, crucible.pools.docker.worker, crucible.pools.local.worker, crucible.pools.modal.worker
import crucible.pools.skypilot.worker, crucible.pools.slurm.worker
from crucible.pools.aws.observer import REPLACED, make_observer
from prefect_aws.observers.ecs import ecs_observer
names = [entry.handler.__name__ for entry in ecs_observer.event_handlers["task"]]
assert REPLACED in names, f"prefect-aws has no handler {REPLACED} any more: {names}"
make_observer()
"""


@dataclass(frozen=True)
class Scratch:
    """A virtual environment with the Prefect that is tried, and a home of its own."""

    folder: Path

    @property
    def python(self) -> str:
        return str(self.folder / "venv" / "bin" / "python")

    @property
    def environment(self) -> Mapping[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "CRUCIBLE_"))}
        own = {"HOME": str(self.folder), "CRUCIBLE_HOME": str(self.folder / "crucible"), "PYTHONPATH": str(PROJECT)}
        return {**kept, **own, "PATH": os.pathsep.join([str(Path(self.python).parent), kept.get("PATH", "")])}

    def run(self, *arguments: str) -> str:
        """Run Python here; returns what it prints. Raises `AssertionError` with its last lines if it fails."""
        done = subprocess.run(
            [self.python, *arguments],
            cwd=self.folder,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise AssertionError("\n".join((done.stdout + done.stderr).strip().splitlines()[-15:]))
        return done.stdout

    def make(self, version: str | None) -> str:
        """Install the Prefect to try; returns its version."""
        subprocess.run([sys.executable, "-m", "venv", self.folder / "venv"], check=True)
        bounds = (PROJECT / "constraints.txt").read_text().splitlines()
        constraints = self.folder / "constraints.txt"
        constraints.write_text("\n".join(line for line in bounds if not line.startswith("prefect")))
        wanted = [f"prefect=={version}" if version else "prefect>=3,<4", *TRIED[1:]]
        self.run("-m", "pip", "install", "--quiet", "--no-compile", "--constraint", str(constraints), *wanted)
        packages = next((self.folder / "venv" / "lib").glob("python*/site-packages"))
        rest = [entry for entry in sys.path if entry.endswith("site-packages")]
        (packages / "rest.pth").write_text("\n".join(rest) + "\n")
        names = json.dumps(TRIED)
        return self.run(
            "-c", f"from importlib.metadata import version; print(*(n + ' ' + version(n) for n in {names}))"
        )


def patches(scratch: Scratch) -> str:
    found: dict[str, str | None] = json.loads(scratch.run("-c", PATCHES))
    off = [f"{name}: {difference}" for name, difference in found.items() if difference]
    assert not off, "; ".join(off)
    return ", ".join(found) or "none left"


def worker_types(scratch: Scratch) -> str:
    scratch.run("-c", WORKERS)
    return "crucible-local, crucible-ecs, docker-gpu, modal"


def server_schedule_and_worker(scratch: Scratch) -> str:
    """The server starts, an active schedule yields runs, and the worker completes one, started by its bare name."""
    project = scratch.folder / "project"
    project.mkdir()
    (project / "greet.py").write_text(FLOW)
    (project / "prefect.yaml").write_text(DEPLOYMENTS)
    crucible = ("-m", "crucible.cli.main")
    try:
        scratch.run(*crucible, "up", "--project", str(project))
        scratch.run("-m", "prefect", "deployment", "run", "greeting", "--watch")
        _wait(
            lambda: "SCHEDULED" in _runs(scratch, "often") or "COMPLETED" in _runs(scratch, "often"), "a scheduled run"
        )
    finally:
        scratch.run(*crucible, "down")
    return "server, schedule, worker and bare deployment name"


def _runs(scratch: Scratch, flow: str) -> str:
    query = (
        "from prefect import get_client\n"
        "from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName\n"
        f"wanted = DeploymentFilter(name=DeploymentFilterName(any_=[{flow!r}]))\n"
        "with get_client(sync_client=True) as client:\n"
        "    print(*(run.state_type.value for run in client.read_flow_runs(deployment_filter=wanted)))"
    )
    return scratch.run("-c", query)


def _wait(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not true():
        assert time.monotonic() < deadline, f"no {what} within {WAIT_SECONDS:.0f} s"
        time.sleep(2)


CHECKS: tuple[Callable[[Scratch], str], ...] = (patches, worker_types, server_schedule_and_worker)


def main() -> int:
    """Run every check; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefect", help="version to try; default: the newest Prefect 3")
    parser.add_argument("--keep", type=Path, help="make the environment in this new folder and leave it there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="upgrade-check-") as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Scratch(folder.resolve())
        print(f"trying {scratch.make(arguments.prefect).strip()}", flush=True)
        failed = 0
        for check in CHECKS:
            try:
                print(f"works   {check.__name__}: {check(scratch)}", flush=True)
            except AssertionError as error:
                failed += 1
                print(f"BREAKS  {check.__name__}: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
