"""A model that is served: what clients get, and how the server ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from crucible.contract import EXIT_SAVED
from crucible.errors import ConfigError
from crucible.jobs.job import Job
from crucible.jobs.records import JobSpec
from crucible.local.serving import ServeRequest, fetch_model, plan_serving
from crucible.store import Store
from tests.conftest import unused_port
from tests.waiting import until

STAND_IN = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, text, *values):
        pass
if "broken" in sys.argv:
    sys.exit("no such model")
if "wrong" in sys.argv:
    sys.exit(-1)
print('"POST /v1/completions HTTP/1.1" 200', flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler).serve_forever()
"""
"""What the watching needs of a server: a health check, and lines about requests."""


@contextmanager
def serving(folder: Path, model: str, port: int, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m crucible.serving` with the stand-in as `transformers serve`."""
    package = folder / "transformers" / "cli"
    package.mkdir(parents=True)
    (folder / "openai.py").touch()
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "transformers.py").write_text(STAND_IN)
    environment = {**os.environ, "PYTHONPATH": str(folder), "CRUCIBLE_METRICS_FILE": str(folder / "metrics.jsonl")}
    command = [sys.executable, "-m", "crucible.serving", model, "--port", str(port), *arguments]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, env=environment, stdout=log) as process:
        try:
            yield process
        finally:
            process.kill()


def printed(folder: Path) -> str:
    return (folder / "log").read_text()


def test_it_stops_when_nobody_asks(tmp_path: Path) -> None:
    with serving(tmp_path, "shakespeare", unused_port(), "--idle-seconds", "0.5") as process:
        assert process.wait(120) == 0

    assert "nobody asked for 0 s, after 1 requests" in printed(tmp_path)
    assert '"requests": 1.0' in (tmp_path / "metrics.jsonl").read_text()


def test_a_server_that_fails_says_why(tmp_path: Path) -> None:
    with serving(tmp_path, "broken", unused_port()) as process:
        assert process.wait(120) == 1

    assert printed(tmp_path).splitlines()[-1] == "error: the server ended with exit code 1: no such model"


def test_an_exit_code_above_those_of_signals_is_shown(tmp_path: Path) -> None:
    with serving(tmp_path, "wrong", unused_port()) as process:
        assert process.wait(120) == 1

    assert printed(tmp_path).splitlines()[-1] == "error: the server ended with exit code 255: it printed nothing"


def test_a_killed_server_ends_the_workload_by_the_same_signal(tmp_path: Path) -> None:
    with serving(tmp_path, "shakespeare", unused_port()) as process:
        until(lambda: " serves shakespeare at " in printed(tmp_path))
        server = psutil.Process(process.pid).children(recursive=True)[-1]
        server.kill()
        assert process.wait(120) == -signal.SIGKILL

    assert "killed by SIGKILL" in printed(tmp_path)


def test_a_request_to_stop_ends_the_server_too(tmp_path: Path) -> None:
    with serving(tmp_path, "shakespeare", unused_port()) as process:
        until(lambda: " serves shakespeare at " in printed(tmp_path))
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert process.wait(120) == EXIT_SAVED

    assert psutil.wait_procs(children, timeout=60)[1] == []


def test_the_run_has_the_model_its_card_and_no_more(store: Store, tmp_path: Path) -> None:
    job = Job.create(store, JobSpec(job_id="shakespeare"))
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md", "a/b.pt"):
        job.store.write(f"models/step-00000060/{name}", b"{}")
    with pytest.raises(ConfigError, match="no evaluated model"):
        fetch_model(job, None, tmp_path)
    with pytest.raises(ConfigError, match="no model of step 10"):
        fetch_model(job, 10, tmp_path)

    run = plan_serving(job, ServeRequest(step=60, port=8123, max_hours=2.0), tmp_path / "folder")

    assert {path.removeprefix("shakespeare/") for path in run.packed.selection.files} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
    assert run.job.startswith("serve-shakespeare-")
    assert run.parameters()["pool"] == "local"
    assert "--port 8123" in run.parameters()["command"]
