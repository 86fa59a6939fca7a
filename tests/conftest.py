"""Fixtures shared by all tests: a real Prefect server, a file store, and an S3 store on a local stand-in."""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
import typer.testing

from crucible.datasets.meta import DatasetMeta
from crucible.local import access, services, up
from crucible.local.state import PROJECT, Home, State
from crucible.store import Store, store_at

LONGEST_FIRST = (
    "tests/flows/test_pipeline.py",
    "tests/pools/docker/test_on_engine.py",
    "tests/flows/test_tune.py",
    "tests/examples/test_examples.py",
    "tests/local/test_up.py",
    "tests/pools/aws/test_ecs_pool.py",
    "tests/pools/modal/test_modal_worker.py",
    "tests/flows/test_tune_script.py",
    "tests/evaluation/test_flow.py",
    "tests/training/test_processes.py",
    "tests/training/test_interruptions.py",
)
"""Files that take minutes: begun late, one of them would be all that still runs at the end.

Of the first four, two need no server at first: the shared one takes a while to make its tables.
"""


def _keep_away_from_the_user() -> Path:
    """Keep every test, and whatever it starts, away from the user's own Prefect and Crucible set-up."""
    sandbox = Path(tempfile.mkdtemp(prefix="crucible-tests-"))
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "CRUCIBLE_"))]:
        del os.environ[name]
    # Threads wait for each other by spinning: beside other tests, a small model takes four times the CPU time with two.
    os.environ["OMP_NUM_THREADS"] = "1"
    # Hundreds of processes import this project; images of containers often say that each is to compile it anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    # `make test &` in a script runs with SIGINT ignored; whatever the tests start would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["PREFECT_HOME"] = str(sandbox / "prefect")
    os.environ["CRUCIBLE_HOME"] = str(sandbox / "crucible")
    # What the server of the tests asks for, and what Prefect's clients in the processes of the tests offer it.
    for side in ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"):
        os.environ[side] = "tests:not-a-secret"
    return sandbox


# At once, not in `pytest_configure`: Prefect reads the user's profile when it is imported, and for a path on pytest's
# command line that folder's own conftest.py imports it before anything is configured.
_SANDBOX = _keep_away_from_the_user()


def pytest_unconfigure() -> None:
    shutil.rmtree(_SANDBOX, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """xdist hands out the files in the order of their first tests."""
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))


@pytest.fixture(scope="session", autouse=True)
def _commands_are_built_once() -> Iterator[None]:
    """Typer's runner builds all of an app's commands for each line: for Crucible's 90, a tenth of a second of CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", functools.cache(typer.main.get_command))
        yield


def unused_port() -> int:
    """A free port, tried from a random start so that tests running beside each other do not race for one."""
    return services.free_port(random.randrange(20_000, 30_000))


@dataclass(frozen=True)
class PrefectServer:
    """A running Prefect server, with a worker on its `local` pool when asked for."""

    home: Home
    api_url: str

    @property
    def env(self) -> dict[str, str]:
        """Environment for subprocesses that are to use this server: `prefect` commands, workers, scripts with flows."""
        return services.service_environment(self.home, self.api_url)

    @property
    def state(self) -> State:
        return State.load(self.home)

    def prefect(self, *arguments: str, cwd: Path = PROJECT, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `prefect ARGUMENTS` against this server."""
        command = [sys.executable, "-m", "prefect", *arguments]
        done = subprocess.run(command, cwd=cwd, env=self.env, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise AssertionError(f"{command} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def create_pool(self, name: str, **fields: Any) -> None:
        """A work pool, made by one request: `prefect work-pool create` takes three seconds of CPU."""
        with access.connect(self.home, self.api_url) as api:
            api.post("/work_pools/", json={"name": name, "type": "process", **fields}).raise_for_status()

    def start_worker(self) -> None:
        """Make sure that the worker of the `local` pool is running; it works in the repository's root."""
        self.ensure(services.worker(self.home, self.api_url))

    def ensure(self, service: services.Service) -> None:
        with self.home.locked():
            state = State.load(self.home)
            state.api_url = self.api_url
            up.ensure_all([service], self.home, PROJECT, state, lambda part, status: None)

    def worker_log(self) -> str:
        return self.home.log("worker").read_text()


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """One real server for the whole test run: use names of your own, others share its database.

    With pytest-xdist all processes share it. Each leaves a file while it may need the server; the last one stops it.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    home = Home(shared / "prefect-server")
    user = home.root / f"user-{os.getpid()}"
    with home.locked():
        user.touch()
        state = State.load(home)
        server = PrefectServer(home, state.api_url or f"http://{services.HOST}:{unused_port()}/api")
        state.api_url = server.api_url
        state.save(home)
    try:
        server.ensure(services.server(server.home, server.api_url))
        _keep_database(home)
        yield server
    finally:
        _deliver_to(server)
        user.unlink()
        with home.locked():
            if not any(home.root.glob("user-*")):
                up.stop_services(home, State.load(home), lambda part, status: None)


MIGRATED = "migrated.db"


def _keep_database(home: Home) -> None:
    """A copy of the server's database as it is at the beginning."""
    with home.locked():
        if not (copy := home.root / MIGRATED).exists():
            with closing(sqlite3.connect(home.prefect / "prefect.db")) as now, closing(sqlite3.connect(copy)) as then:
                now.backup(then)


@pytest.fixture(scope="session")
def migrated_database(prefect_server: PrefectServer) -> Path:
    """A Prefect server's database before anything is in it: 70 migrations less for every server that starts with it."""
    return prefect_server.home.root / MIGRATED


def _deliver_to(server: PrefectServer) -> None:
    """Send what flows of this process still have to tell while there is somebody to listen: at exit, Prefect would go
    on trying for more than a minute."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: server.api_url}):
        EventsWorker.drain_all(timeout=20)
        APILogWorker.drain_all(timeout=20)


@pytest.fixture(scope="module")
def _events_of_this_file() -> None:
    """Prefect's sender of events keeps the server that was set when it began: a file before this one may have had its
    own. It is dropped, and the next event starts another one."""
    from prefect.events.worker import EventsWorker

    EventsWorker.drain_all(timeout=1)


@pytest.fixture
def prefect_api(prefect_server: PrefectServer, _events_of_this_file: None) -> Iterator[str]:
    """Point Prefect in this process (`get_client()`, flows called directly) at the shared server."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect_server.api_url}):
        yield prefect_server.api_url


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store in a temporary folder."""
    return store_at((tmp_path / "store").as_uri())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of Crucible's for this test alone: catalog, history, last choices."""
    monkeypatch.setenv("CRUCIBLE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def meta() -> DatasetMeta:
    """A dataset of GPT-2's tokens, of which there is only this description."""
    split = {"tokens": 10_000, "bytes": 10_000, "shards": [{"file": "a", "tokens": 10_000, "sha256": "0"}]}
    values = {"digest": "d", "source": {"kind": "text"}, "vocab_size": 50257, "dtype": "uint16"}
    values |= {"tokenizer": {"kind": "gpt2", "file": "t", "sha256": "0"}, "splits": {"train": split, "val": split}}
    return DatasetMeta.parse(values, "test")


@dataclass(frozen=True)
class S3Place:
    """An empty bucket on a local S3 stand-in, reached over HTTP as the real one is."""

    uri: str
    options: dict[str, Any]
    """For `store_at(uri, **options)` in this process."""
    env: dict[str, str]
    """For subprocesses that call `store_at(uri)` or boto3."""


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    from crucible.rehearsal.s3 import S3Server

    server = S3Server(services.HOST, unused_port())
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3_place(s3_endpoint: str, request: pytest.FixtureRequest) -> S3Place:
    """An empty bucket for this test."""
    import boto3

    credentials = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    bucket = f"crucible-{abs(hash(request.node.nodeid)):x}"
    boto3.client("s3", endpoint_url=s3_endpoint, **credentials).create_bucket(Bucket=bucket)
    return S3Place(
        uri=f"s3://{bucket}/runs",
        options={"key": "test", "secret": "test", "endpoint_url": s3_endpoint},
        env={
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": s3_endpoint,
        },
    )


@pytest.fixture
def s3_store(s3_place: S3Place) -> Store:
    """An empty store in a bucket of the S3 stand-in."""
    return store_at(s3_place.uri, **s3_place.options)
