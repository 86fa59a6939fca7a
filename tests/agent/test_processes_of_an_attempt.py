"""Agent, workload and a container's first process: who takes whom along, and whose signals reach whom."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crucible.agent.sources import MachineLifetime, StopFile
from crucible.agent.workload import Workload
from crucible.checkpoints.commits import Checkpoints
from crucible.contract import Variable
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason
from tests.agent.harness import scripted
from tests.agent.runner import PROJECT, alive, python
from tests.faults.small_jobs import launched
from tests.waiting import until

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process to its parent")


@pytest.fixture
def agent(job: Job, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An agent in a process of its own, its workload at step 7 with a child, step 5 committed."""
    at = {"6": f"orphan {tmp_path}/child", "7": f"wait {tmp_path}/never"}
    options = json.dumps({"steps": 20, "every": 5, "at": at})
    launched(job, 1)
    process = python("attempt", job.root.uri, job.job_id, "1", str(tmp_path), options)
    try:
        until(lambda: (tmp_path / "child").exists() and Checkpoints(job).list())
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@linux
def test_the_workload_and_its_children_die_with_the_agent(
    agent: subprocess.Popen[bytes], job: Job, tmp_path: Path
) -> None:
    """Were they left, they would train on for nobody, and hold the GPU against the next attempt."""
    child = int((tmp_path / "child").read_text())
    workload = int(Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[1])
    assert alive(child)
    assert alive(workload)
    os.kill(agent.pid, signal.SIGKILL)
    until(lambda: not alive(workload) and not alive(child))
    assert job.attempt(1).read_outcome() is None
    assert [c.step for c in Checkpoints(job).list()] == [5]


def test_ctrl_c_at_the_agent_saves(agent: subprocess.Popen[bytes], job: Job) -> None:
    os.kill(agent.pid, signal.SIGINT)
    assert agent.wait(120) == 0
    outcome = job.attempt(1).read_outcome()
    assert outcome is not None
    assert (outcome.end_reason, outcome.committed_step) == (EndReason.INTERRUPTED, 7)


# The workload's process


def ended(command: list[str], tmp_path: Path, **environment: str) -> tuple[Workload, list[str]]:
    lines: list[str] = []
    workload = Workload(command, {"PATH": os.environ["PATH"], **environment}, tmp_path, lines.append)
    until(lambda: not workload.running())
    return workload, lines


def test_output_is_passed_on_line_by_line(tmp_path: Path) -> None:
    script = "import sys; print('out'); print('err', file=sys.stderr); sys.stdout.buffer.write(b'\\xff\\n\\nlast')"
    workload, lines = ended([sys.executable, "-c", script], tmp_path)
    assert workload.end().end_reason is EndReason.COMPLETED
    assert sorted(lines) == sorted(["out", "err", "�", "", "last"])


def test_the_last_words_of_a_failure_are_kept(tmp_path: Path) -> None:
    script = "print('starting'); raise ValueError('bad learning rate')"
    workload, _ = ended([sys.executable, "-c", script], tmp_path)
    assert workload.end().message == "the workload failed with exit code 1: ValueError: bad learning rate"
    workload, _ = ended([sys.executable, "-c", "raise SystemExit(4)"], tmp_path)
    assert workload.end().message == "the workload failed with exit code 4: it printed nothing"
    script = "print('[crucible] finished, nothing saved'); raise SystemExit(1)"
    workload, _ = ended([sys.executable, "-c", script], tmp_path)
    assert (workload.end().end_reason, workload.end().message) == (EndReason.FAILED, "finished, nothing saved")


def test_a_handler_that_raises_does_not_stop_the_reading(tmp_path: Path) -> None:
    """Nobody reading means a full pipe, and a workload that hangs in its next print."""

    def broken(line: str) -> None:
        raise RuntimeError("no logger")

    script = "for _ in range(40): print('x' * 4000)\nraise SystemExit(3)"
    workload = Workload([sys.executable, "-c", script], {"PATH": os.environ["PATH"]}, tmp_path, broken)
    until(lambda: not workload.running())
    assert workload.end().exit_code == 3


def test_signals_reach_the_workload_as_they_are(tmp_path: Path) -> None:
    """Whatever stands between agent and workload passes them on, and the exit code back."""
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    lines: list[str] = []
    workload = Workload([sys.executable, "-c", script], {"PATH": os.environ["PATH"]}, tmp_path, lines.append)
    until(lambda: lines)
    workload.ask_to_stop()
    until(lambda: not workload.running())
    assert (workload.end().end_reason, workload.end().exit_code) == (EndReason.INTERRUPTED, 75)


@pytest.mark.parametrize(
    ("number", "reason"),
    [(signal.SIGKILL, EndReason.KILLED), (signal.SIGTERM, EndReason.KILLED), (signal.SIGABRT, EndReason.FAILED)],
)
def test_death_by_signal_is_told_apart(tmp_path: Path, number: signal.Signals, reason: EndReason) -> None:
    workload, _ = ended([sys.executable, "-c", f"import os; os.kill(os.getpid(), {number.value})"], tmp_path)
    end = workload.end()
    assert (end.end_reason, end.exit_code) == (reason, -number.value)
    assert number.name in end.message


# The first process of a container


@pytest.fixture
def first(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts `python -m crucible.agent.entrypoint -- …`, as a container does; orphans come to it, as to a real init."""
    started = []

    def become_reaper() -> None:
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER survives exec

    def start(*command: str, through: str = "", **environment: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [
                *((sys.executable, "-c", through) if through else ()),
                *(sys.executable, "-m", "crucible.agent.entrypoint", *command),
            ],
            cwd=PROJECT,
            env={**os.environ, Variable.STOP_FILE: str(tmp_path / "stop.json"), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=become_reaper if sys.platform == "linux" else None,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_sigterm_becomes_a_stop_file_and_the_command_goes_on(
    first: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    script = (
        "import os, pathlib, time\n"
        "stop = pathlib.Path(os.environ['CRUCIBLE_STOP_FILE'])\n"
        "print('ready', flush=True)\n"
        "while not stop.exists(): time.sleep(0.01)\n"
        "print('saving', flush=True)\n"
        "raise SystemExit(41)"
    )
    (tmp_path / "stop.json").write_text("left over from an earlier container")
    process = first("--", sys.executable, "-c", script, **{Variable.STOP_GRACE_SECONDS: "17"})
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    before = time.time()
    process.terminate()
    assert process.stdout.readline() == b"saving\n", "the command was not disturbed"
    assert process.wait(120) == 41
    notice = StopFile(tmp_path / "stop.json").poll()
    assert notice is not None
    assert notice.reason == "the container was asked to stop (SIGTERM)"
    assert notice.deadline is not None
    assert before + 17 <= notice.deadline <= time.time() + 17


def test_a_full_disk_does_not_keep_a_stop_request_from_the_command(
    first: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """Were the first process to die of it, the container would end at once, and nothing be saved."""
    script = (
        "import os, pathlib, time\n"
        "stop = pathlib.Path(os.environ['CRUCIBLE_STOP_FILE'])\n"
        "first = os.getppid()\n"
        "print('ready', flush=True)\n"
        "while not stop.exists() and os.getppid() == first: time.sleep(0.01)\n"
        "raise SystemExit(41)"
    )
    full = (
        "import os, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"  # a file can be made, and nothing be written to it
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = first("--", sys.executable, "-c", script, through=full)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.terminate()
    assert process.wait(120) == 41
    notice = StopFile(tmp_path / "stop.json").poll()
    assert notice is not None
    assert notice.deadline is not None


@pytest.mark.parametrize(("script", "code"), [("raise SystemExit(5)", 5), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_the_exit_code_is_the_commands(first: Callable[..., subprocess.Popen[bytes]], script: str, code: int) -> None:
    assert first("--", sys.executable, "-c", script).wait(120) == code


def test_proxies_that_docker_gives_a_container_do_not_come_between_it_and_its_machine(
    first: Callable[..., subprocess.Popen[bytes]],
) -> None:
    printing = "import os; print(os.environ['NO_PROXY'])"
    process = first("--", sys.executable, "-c", printing, HTTP_PROXY="http://proxy.example.com:3128")
    assert {"127.0.0.1", "host.docker.internal"} <= set(process.communicate()[0].decode().strip().split(","))


@linux
def test_orphans_are_reaped_while_the_command_runs(
    first: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    script = (
        "import os, subprocess, sys, time\n"
        "orphan = 'import os, sys; sys.exit() if os.fork() else open(sys.argv[1], \"w\").write(str(os.getpid()))'\n"
        "subprocess.run([sys.executable, '-c', orphan, sys.argv[1]])\n"
        "while not os.path.exists(sys.argv[2]): time.sleep(0.01)"
    )
    process = first("--", sys.executable, "-c", script, str(tmp_path / "orphan"), str(tmp_path / "go on"))
    until(lambda: (tmp_path / "orphan").exists() and (tmp_path / "orphan").read_text())
    until(lambda: not Path(f"/proc/{(tmp_path / 'orphan').read_text()}").exists())
    (tmp_path / "go on").touch()
    assert process.wait(120) == 0


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "words"),
    [
        ([], {}, 2, "usage:"),
        (["--"], {}, 2, "usage:"),
        (["--", "no-such-command"], {}, 127, "cannot start 'no-such-command'"),
        (["--", "true"], {Variable.STOP_GRACE_SECONDS: "soon"}, 2, "CRUCIBLE_STOP_GRACE_SECONDS is 'soon'"),
    ],
)
def test_misuse_is_told_in_one_line(
    first: Callable[..., subprocess.Popen[bytes]],
    arguments: list[str],
    environment: dict[str, str],
    code: int,
    words: str,
) -> None:
    process = first(*arguments, **environment)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code
    assert words in errors.decode()
    assert len(errors.decode().splitlines()) == 1


# Notices


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "{}", '{"source": "x"}', '"text"'])
def test_a_damaged_stop_file_still_means_stop(tmp_path: Path, text: str) -> None:
    source = StopFile(tmp_path / "stop.json")
    assert source.poll() is None
    (tmp_path / "stop.json").write_text(text)
    notice = source.poll()
    assert notice is not None
    assert str(tmp_path / "stop.json") in notice.reason
    assert notice.deadline is not None
    assert source.poll() == notice, "the same notice each time, so that it is recorded once"


def test_a_machine_with_an_end_says_so_in_time() -> None:
    now = time.time()
    assert MachineLifetime(now + 500, margin_seconds=120).poll() is None
    notice = MachineLifetime(now + 100, margin_seconds=120).poll()
    assert notice is not None
    assert notice.deadline == now + 100


def test_the_scripted_workload_runs_without_the_agent(tmp_path: Path) -> None:
    """What the other tests stand on."""
    environment = {
        "CRUCIBLE_CHECKPOINT_DIR": str(tmp_path / "checkpoints"),
        "CRUCIBLE_METRICS_FILE": str(tmp_path / "metrics.jsonl"),
        "CRUCIBLE_STOP_REASON_FILE": str(tmp_path / "reason"),
    }
    subprocess.run(scripted(steps=6, every=4), env=environment, check=True, timeout=120)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
