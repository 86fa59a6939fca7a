"""One local set-up from nothing to nothing, by the commands that a user types.

Only the server's tables are there already: the shared server of all tests has made them, by the same command.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from crucible.local.access import connect
from crucible.local.services import DEFAULT_PORT
from crucible.local.state import Home, State

FLOW = '''
from prefect import flow

@flow
def greet(name: str = "you"):
    """Says hello."""
    import tasks.storage  # from Crucible's own folder, as every flow may
    print("hello", name)
'''
DEPLOYMENTS = """
deployments:
  - {name: greeting, entrypoint: "flows/greet.py:greet", work_pool: {name: local}}
  - name: hourly
    entrypoint: flows/greet.py:greet
    work_pool: {name: local}
    schedules: [{interval: 3600, active: true}]
"""


PROXY = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9"}
"""A proxy that cannot reach this machine; nobody listens there."""
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class User:
    """A user with a home folder and a project of their own, in surroundings that break naive programs."""

    home: Path
    project: Path

    @property
    def env(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "CRUCIBLE_"))}
        path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
        return {**kept, "HOME": str(self.home), "PATH": path, **PROXY, "LC_ALL": "C", "TMPDIR": str(self.temporary)}

    @property
    def temporary(self) -> Path:
        """On another file system than the home, where there is one."""
        return SHARED_MEMORY if SHARED_MEMORY.is_dir() else self.home

    def types(self, *command: str, fails: bool = False, **variables: str) -> str:
        """Run a command in the home folder; return its stdout, or its stderr where it must fail."""
        env = {**self.env, **variables}
        done = subprocess.run(
            command, cwd=self.home, env=env, capture_output=True, encoding="utf-8", check=False, umask=0o077
        )
        assert (done.returncode != 0) == fails, f"{command} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "deadlock" not in done.stderr, done.stderr  # of imports by several threads at once
        return done.stderr if fails else done.stdout

    def up(self, **options: Any) -> str:
        return self.types("crucible", "up", "--project", str(self.project), **options)

    @property
    def crucible(self) -> Home:
        return Home(self.home / ".crucible")

    @property
    def state(self) -> State:
        return State.load(self.crucible)

    def api(self) -> httpx.Client:
        return connect(self.crucible, self.state.api_url or "")

    def flow_runs(self, deployment: str) -> list[dict[str, Any]]:
        with self.api() as api:
            wanted = {"deployments": {"name": {"any_": [deployment]}}}
            return list(api.post("/flow_runs/filter", json=wanted).raise_for_status().json())


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[User]:
    """A user whose `crucible up` has run while another program held the usual port."""
    folder = tmp_path_factory.mktemp("user")
    user = User(folder / "Zoë's 100% home", folder / "project")
    (user.project / "flows").mkdir(parents=True)
    user.crucible.prefect.mkdir(parents=True)
    shutil.copy(migrated_database, user.crucible.prefect / "prefect.db")
    (user.project / "flows" / "greet.py").write_text(FLOW)
    (user.project / "prefect.yaml").write_text(DEPLOYMENTS)
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just left does not count
        try:
            squatter.bind(("127.0.0.1", DEFAULT_PORT))
            squatter.listen()
        except OSError:
            pass  # another program holds it already, which is what is wanted
        try:
            user.up()
            yield user
        finally:
            user.types("crucible", "down")


def test_the_usual_port_was_taken_so_another_one_is_used(user: User) -> None:
    port = httpx.URL(user.state.api_url or "").port
    assert port is not None
    assert DEFAULT_PORT < port < 32768


def test_a_deployment_runs_by_its_bare_name(user: User) -> None:
    user.types("prefect", "deployment", "run", "greeting", "--param", "name=world")
    while (run := user.flow_runs("greeting")[0])["state_type"] not in ("COMPLETED", "FAILED", "CRASHED"):
        time.sleep(0.5)
    assert run["state_type"] == "COMPLETED", run["state"]
    assert run["parameters"] == {"name": "world"}
    assert "hello world" in user.crucible.log("worker").read_text()


def test_an_active_schedule_yields_runs(user: User) -> None:
    """With a SQLAlchemy that Prefect's own bounds admit, the server looks healthy and this never happens."""
    while not (runs := user.flow_runs("hourly")):
        time.sleep(0.5)
    assert {run["state_type"] for run in runs} == {"SCHEDULED"}


def test_the_default_store_is_a_block(user: User) -> None:
    with user.api() as api:
        document = api.get("/block_types/slug/crucible-store/block_documents/name/default").raise_for_status().json()
    assert document["data"]["root"] == (user.crucible.root / "store").as_uri()


def test_env_says_what_the_profile_says(user: User) -> None:
    profiles = (user.home / ".prefect" / "profiles.toml").read_text()
    assert 'active = "crucible"' in profiles
    exports = dict(word.split("=", 1) for word in shlex.split(user.types("crucible", "env")) if word != "export")
    assert exports.pop("CRUCIBLE_HOME") == str(user.crucible.root)
    assert exports["PREFECT_API_URL"] == user.state.api_url
    for name, value in exports.items():
        assert f'{name} = "{value}"' in profiles


def test_doctor_finds_the_local_pool_ready(user: User) -> None:
    rows = {row["name"]: row for row in json.loads(user.types("crucible", "doctor", "--json"))}
    assert rows["local"]["ready"]
    assert {"docker-gpu", "ec2-spot", "ec2-on-demand", "modal"} <= set(rows)
    assert all(row["ready"] or row["fix"] for row in rows.values())


def test_up_again_changes_nothing_whatever_else_this_shell_reaches(user: User) -> None:
    before, deployed = user.state, user.crucible.log("deploy").stat().st_mtime_ns
    cloud = {"PREFECT_API_URL": "https://api.prefect.cloud/api/accounts/a/workspaces/b", "PREFECT_API_KEY": "pnu_1"}
    user.types("crucible", "up", "--project", str(user.project), **cloud, PREFECT_PROFILE="team")
    assert user.state == before
    assert user.crucible.log("deploy").stat().st_mtime_ns == deployed


def test_a_changed_flow_is_deployed_again(user: User) -> None:
    flow = user.project / "flows" / "greet.py"
    flow.write_text(flow.read_text().replace("Says hello.", "Says hello, politely."))
    user.up()
    with user.api() as api:
        deployment = api.get("/deployments/name/greet/greeting").raise_for_status().json()
    assert deployment["description"] == "Says hello, politely."


def test_a_flow_that_does_not_load_is_reported_with_its_log(user: User) -> None:
    flow = user.project / "flows" / "greet.py"
    sound = flow.read_text()
    flow.write_text("import nowhere_to_be_found\n")
    try:
        message = user.up(fails=True).strip().splitlines()[-1]
    finally:
        flow.write_text(sound)
    assert message.startswith("error: Deploying")
    assert "nowhere_to_be_found" in message
    assert str(user.crucible.log("deploy")) in message


def test_up_restores_what_was_killed_even_if_its_pid_is_in_use_again(user: User) -> None:
    before = user.state
    for name in ("server", "worker"):
        os.kill(before.services[name].pid, signal.SIGKILL)
    server = before.services["server"].model_copy(update={"pid": os.getpid()})
    before.services["server"] = server
    before.save(user.crucible)
    user.up()
    after = user.state
    assert after.services["server"].pid != os.getpid()
    assert after.api_url == before.api_url, "running work knows this address"
    assert all(after.is_running(name) for name in ("server", "worker", "watchdog"))
    assert len(user.flow_runs("greeting")) == 1, "the database was kept"


def test_nothing_is_written_into_the_project_and_nothing_secret_is_readable_by_others(user: User) -> None:
    """The checkout may be read-only, and other people may use this machine."""
    written = [path for path in user.project.rglob("*") if "__pycache__" not in path.parts and path.is_file()]
    assert {path.name for path in written} == {"greet.py", "prefect.yaml"}
    password = user.crucible.auth_file.read_text().strip()
    for path in [user.crucible.auth_file, user.home / ".prefect" / "profiles.toml"]:
        assert password in path.read_text()
        assert path.stat().st_mode & 0o077 == 0
    assert user.crucible.prefect.stat().st_mode & 0o077 == 0
    for log in user.crucible.log("server").parent.iterdir():
        assert password not in log.read_text(errors="replace")
    for process in psutil.process_iter(["cmdline"]):
        assert password not in " ".join(process.info["cmdline"] or [])


def test_down_leaves_no_process_and_goes_back_to_the_earlier_profile(user: User) -> None:
    processes = [record.find() for record in user.state.services.values()]
    user.types("crucible", "down")
    assert all(process is not None and not process.is_running() for process in processes)
    assert not [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get("HOME") == str(user.home)]
    assert 'active = "ephemeral"' in (user.home / ".prefect" / "profiles.toml").read_text()
    assert user.types("crucible", "env", fails=True).strip() == (
        "error: the local set-up is not running; start it with: crucible up"
    )
