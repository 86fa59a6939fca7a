"""Runs the adapter as the agent would, in a process group of its own, and a job's attempts one after the other."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crucible.contract import StopReason, finished_folders, step_of
from crucible.script_config import ScriptConfig
from crucible.script_presets import with_preset

NANO = Path(__file__).with_name("nano_script.py")
LONG_ENOUGH = 120.0
"""Seconds that a test waits for something before it gives up."""


def nano(*arguments: str, **fields: Any) -> ScriptConfig:
    """The nanoGPT-style script under its preset."""
    command = [sys.executable, "-S", str(NANO), *arguments]
    return ScriptConfig.model_validate(with_preset("nanogpt", {"command": command, **fields}))


def weights_after(step: int) -> str:
    """What the script's weights must be after so many steps."""
    weights = "start"
    for number in range(1, step + 1):
        weights = hashlib.sha256(f"{weights} {number}".encode()).hexdigest()
    return weights


class ScriptJob:
    """A job's attempts on machines that come and go: each has a fresh folder, and starts from the newest checkpoint."""

    def __init__(self, root: Path, script: ScriptConfig) -> None:
        self.root, self.script = root, script
        self.attempt = 0
        self.resume_from: Path | None = None
        self.output = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def here(self) -> Path:
        """The folder of the attempt."""
        return self.root / f"attempt-{self.attempt}"

    @property
    def cwd(self) -> Path:
        return self.here / "code"

    @property
    def checkpoints(self) -> Path:
        return self.here / "checkpoints"

    def start(self, files: dict[str, str] | None = None, **environment: str) -> None:
        """Begin the next attempt; `files` are in its code folder."""
        self.attempt += 1
        for folder in (self.cwd, self.checkpoints):
            folder.mkdir(parents=True)
        for name, text in (files or {}).items():
            (self.cwd / name).parent.mkdir(parents=True, exist_ok=True)
            (self.cwd / name).write_text(text)
        (self.here / "script.json").write_text(self.script.model_dump_json())
        contract = {
            "CRUCIBLE_CHECKPOINT_DIR": str(self.checkpoints),
            "CRUCIBLE_METRICS_FILE": str(self.here / "metrics.jsonl"),
            "CRUCIBLE_STOP_REASON_FILE": str(self.here / "stop-reason.json"),
            "CRUCIBLE_JOB_ID": "job",
            "CRUCIBLE_ATTEMPT": str(self.attempt),
        }
        if self.resume_from:
            contract["CRUCIBLE_RESUME_FROM"] = str(self.resume_from)
        with (self.here / "output.log").open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "crucible.adapter", "--script", str(self.here / "script.json")],
                cwd=self.cwd,
                env={**os.environ, **contract, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def wait(self) -> int:
        """The exit code of the adapter, once it has ended; what it saved is then what the next attempt starts from."""
        assert self._process is not None
        code = self._process.wait(LONG_ENOUGH)
        self._end()
        return code

    def run(self, files: dict[str, str] | None = None, **environment: str) -> int:
        """One whole attempt."""
        self.start(files, **environment)
        return self.wait()

    def stop(self, deadline_seconds: float | None = None) -> None:
        """Ask it to stop, as the agent does."""
        assert self._process is not None
        deadline = None if deadline_seconds is None else time.time() + deadline_seconds
        StopReason("test", "the machine goes", deadline).write(self.here / "stop-reason.json")
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """The machine is gone."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._end()

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for something to happen while the script runs."""
        assert self._process is not None
        until = time.monotonic() + LONG_ENOUGH
        while not condition():
            assert self._process.poll() is None, f"it has ended: {self.read_output()}"
            assert time.monotonic() < until, f"it did not happen: {self.read_output()}"
            time.sleep(0.005)

    def printed(self, text: str) -> bool:
        return text in self.read_output()

    def read_output(self) -> str:
        return (self.here / "output.log").read_text(errors="replace")

    def metrics(self) -> list[dict[str, Any]]:
        path = self.here / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def newest(self) -> Path | None:
        """The newest checkpoint of the job."""
        folders = finished_folders(self.checkpoints)
        return folders[-1] if folders else self.resume_from

    def newest_step(self) -> int:
        folder = self.newest()
        return (step_of(folder) if folder else None) or 0

    def _end(self) -> None:
        self.output = self.read_output()
        newest = self.newest()
        if newest and newest.parent == self.checkpoints:  # the machine's disk goes with it
            self.resume_from = self.root / "store" / newest.name
            shutil.copytree(newest, self.resume_from, dirs_exist_ok=True)


def nano_state(folder: Path) -> dict[str, Any]:
    """What is in the checkpoint of the nanoGPT-style script; it must be whole."""
    with zipfile.ZipFile(folder / "files" / "ckpt.pt") as archive:
        assert archive.testzip() is None
        found = json.loads(archive.read("data.json"))
    assert found["weights"] == weights_after(found["iter_num"])
    return dict(found)
