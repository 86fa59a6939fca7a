"""`python -m crucible.serving NAME`: serve the model in the folder NAME until nobody has asked for so long.

Exit code 0: idle; 75: asked to stop; 1: the server failed by itself, and the last line says why. If it was killed, this
process ends by the same signal, so that whoever supervises starts it again.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from crucible.contract import EXIT_SAVED, Variable, metrics_line
from crucible.parent_death_guard import guarded
from crucible.serving.engines import Engine, choose_engine

START_SECONDS = 900.0
LOOK_SECONDS = 0.5
HEALTH_SECONDS = 10.0
UNHEALTHY_LOOKS = 6
"""Health checks in a row without an answer, after which the server is taken for dead."""


class Server:
    """The server's process, and what its log says."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            guarded(list(engine.command)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
            errors="replace",
            start_new_session=True,  # the guard ends the whole group when this process dies
        )
        self.last_lines: deque[str] = deque(maxlen=20)
        self.requests = 0
        self.asked_at = time.monotonic()
        threading.Thread(target=self._read, name="server-log", daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if self._engine.request_mark in line:
                self.requests += 1
                self.asked_at = time.monotonic()
            self.last_lines.append(line.rstrip())
            print(line, end="", flush=True)

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        with suppress(ProcessLookupError):
            self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def main() -> int:
    """Serve; returns the exit code."""
    parser = argparse.ArgumentParser("python -m crucible.serving")
    parser.add_argument("model", metavar="NAME")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--idle-seconds", type=float, default=1800.0)
    options = parser.parse_args()
    try:
        engine = choose_engine(options.model, options.host, options.port)
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed here; pip install -c constraints.txt -e '.[serve]'", flush=True)
        return 1
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    # Its list of models reads this folder, and fails without it.
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    Path(os.environ.get("HF_HUB_CACHE", cache / "hub")).mkdir(parents=True, exist_ok=True)
    print(f"starting {engine.name} with {options.model}", flush=True)
    server = Server(engine)
    try:
        return _serve(server, options, stop, f"{engine.name} serves {options.model}")
    finally:
        server.stop()


def _serve(server: Server, options: argparse.Namespace, stop: threading.Event, what: str) -> int:
    address, began = f"http://{options.host}:{options.port}", time.monotonic()
    ready, unhealthy, counted, checked_at = False, 0, 0, 0.0
    while not stop.wait(LOOK_SECONDS):
        code = server.process.poll()
        if code is not None:
            return _ended(code, server)
        now = time.monotonic()
        if not ready or now - checked_at >= HEALTH_SECONDS:
            checked_at = now
            healthy = _healthy(address)
            if healthy and not ready:
                ready, server.asked_at = True, now
                print(f"{what} at {address}/v1", flush=True)
                _report(counted)
            unhealthy = 0 if healthy or not ready else unhealthy + 1
        if not ready and now - began > START_SECONDS:
            print(f"error: the server has not started within {START_SECONDS:.0f} s", flush=True)
            return 1
        if unhealthy >= UNHEALTHY_LOOKS:
            print(f"the server has not answered {unhealthy} health checks; it is killed", flush=True)
            return _ended(128 + signal.SIGKILL, server)
        if server.requests > counted:
            counted = server.requests
            _report(counted)
        if ready and now - server.asked_at > options.idle_seconds:
            print(f"nobody asked for {options.idle_seconds:.0f} s, after {counted} requests; it stops", flush=True)
            return 0
    print("asked to stop", flush=True)
    return EXIT_SAVED


def _ended(code: int, server: Server) -> int:
    number = code - 128 if code > 128 else -code
    if number in set(signal.Signals):
        print(f"the server was killed by {signal.Signals(number).name}", flush=True)
        server.stop()
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # how this process ends says how the server did
    last = server.last_lines[-1] if server.last_lines else "it printed nothing"
    print(f"error: the server ended with exit code {code}: {last}", flush=True)
    return 1


def _healthy(address: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{address}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, HTTPException):
        return False


def _report(requests: int) -> None:
    """The number of requests is the job's step."""
    if path := os.environ.get(Variable.METRICS_FILE):
        with open(path, "a", encoding="utf-8") as file:  # noqa: PTH123
            file.write(metrics_line(requests, time.time(), {"requests": float(requests)}))


if __name__ == "__main__":
    sys.exit(main())
