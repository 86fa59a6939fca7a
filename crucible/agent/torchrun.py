"""Start a command once per process of this node, by torchrun: `python -m crucible.agent.torchrun -- COMMAND…`.

torchrun joins the nodes (c10d rendezvous) and starts the processes. What an agent needs besides stands here:

* 75 (saved, start again) is no failure: torchrun knows only 0, so each process is watched by one that keeps its code.
* A stop signal goes to every process, and the processes may take as long as the agent lets them.
* Ranks go by the nodes' numbers, so that the process that saves is on the node that owns the attempt. torchrun orders
  the nodes by address and process id.

`CRUCIBLE_NODES`, `CRUCIBLE_NODE_RANK`, `CRUCIBLE_NODE_PROCESSES` and `CRUCIBLE_RENDEZVOUS` say what to start; without
them it is one process. The exit code is 0 or 75 if every process ended with one of these, else the first other one.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from crucible.contract import EXIT_DONE, EXIT_SAVED, Variable
from crucible.parent_death_guard import guarded

STOPPED = 128 + signal.SIGTERM
"""Of a node that was asked to stop before its processes had started."""
JOIN_SECONDS = 1800
"""How long a node's launcher waits for those of the others; the first node's agent gives up before."""
_KILL_AFTER_SECONDS = 24 * 3600
"""torchrun's own limit, far beyond: the agent knows how long the processes may take to save."""
_FOLDER = "CRUCIBLE_LAUNCH_FOLDER"
_LOOK_SECONDS = 0.2
_OUTPUT_SECONDS = 3.0
_PYTHON = re.compile(r"(python|pypy)[0-9.]*")


def main(arguments: list[str]) -> int:
    """Run the command after `--`, as the launcher or, started by torchrun, as one of its processes."""
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    if not command:
        print("usage: python -m crucible.agent.torchrun -- COMMAND [ARGUMENT …]", file=sys.stderr)
        return 2
    if folder := os.environ.get(_FOLDER):
        return _Rank(Path(folder), command).run()
    with tempfile.TemporaryDirectory(prefix="crucible-launch-") as made:
        return _Launcher(Path(made), command, os.environ).run()


class _Launcher:
    """Runs torchrun and outlives it, to say how the processes ended."""

    def __init__(self, folder: Path, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._folder, self._command, self._environment = folder, command, environment
        self._torchrun: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        os.mkfifo(self._folder / "output")
        reader = os.open(self._folder / "output", os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(reader, True)
        writer = os.open(self._folder / "output", os.O_WRONLY)
        copying = threading.Thread(target=_copy, args=(reader,), daemon=True)
        copying.start()
        own_log = self._folder / "torchrun.log"
        with own_log.open("wb") as log:
            try:
                self._torchrun = subprocess.Popen(
                    torchrun_command(self._command, self._environment),
                    env={**self._environment, **network(self._environment), _FOLDER: str(self._folder)},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            except OSError as error:
                print(f"cannot start {self._command[0]!r}: {error.strerror}", flush=True)
                return 127
        if self._stopping:
            self._torchrun.terminate()
        code = self._torchrun.wait()
        os.close(writer)
        copying.join(_OUTPUT_SECONDS)  # what a process left running may still hold its output
        codes = self._codes()
        failed = [found for found in codes if found not in (EXIT_DONE, EXIT_SAVED)]
        if failed and not (self._stopping and set(failed) == {STOPPED}):
            return failed[0]
        if self._stopping and (failed or not codes):
            return STOPPED
        if code == 0 or codes:
            return max(codes, default=EXIT_DONE)
        print(own_log.read_text(errors="replace"), flush=True)  # no process has run: torchrun itself says why
        return code if code > 0 else 128 - code

    def _stop(self, number: int, _frame: object) -> None:
        self._stopping = True
        (self._folder / "stop").touch()  # for a process that is only about to start
        pids = [int(path.read_text() or 0) for path in self._folder.glob("*.pid")]
        for pid in filter(None, pids):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if not pids and self._torchrun is not None:  # it waits for the other nodes
            self._torchrun.terminate()

    def _codes(self) -> list[int]:
        """The processes' exit codes, those of failures in the order in which they failed."""
        found = sorted(self._folder.glob("*.code"), key=lambda path: path.stat().st_mtime_ns)
        return [int(path.read_text()) for path in found]


class _Rank:
    """One process of the workload, and the exit code that torchrun is to see."""

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        self._folder, self._command = folder, command
        self._name = os.environ.get("LOCAL_RANK", "0")

    def run(self) -> int:
        parent, child = os.getppid(), None

        def pass_on(number: int, _frame: object) -> None:
            if child is not None:
                child.send_signal(number)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, pass_on)
        with (self._folder / "output").open("wb", buffering=0) as output:
            _write(self._folder / f"{self._name}.pid", str(os.getpid()))
            if (self._folder / "stop").exists():
                return self._ended(STOPPED)
            child = subprocess.Popen(
                guarded(list(self._command)),
                env=rank_environment(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its guard kills the whole of it when this process is gone
            )
        if (self._folder / "stop").exists():  # the signal may have come before there was somebody to get it
            child.terminate()
        while (code := child.poll()) is None:
            if os.getppid() != parent:
                os._exit(1)
            time.sleep(_LOOK_SECONDS)
        return self._ended(code if code >= 0 else 128 - code)

    def _ended(self, code: int) -> int:
        _write(self._folder / f"{self._name}.code", str(code))
        return EXIT_DONE if code == EXIT_SAVED else code


def torchrun_command(command: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The command line of torchrun, run by the Python that runs the command: it has the command's torch."""
    name = Path(command[0]).name
    torchrun = [command[0], "-m", "torch.distributed.run"] if _PYTHON.fullmatch(name) else ["torchrun"]
    if torchrun == ["torchrun"] and shutil.which("torchrun", path=environment.get("PATH")) is None:
        torchrun = [sys.executable, "-m", "torch.distributed.run"]
    nodes, rank = int(environment.get(Variable.NODES, "1")), int(environment.get(Variable.NODE_RANK, "0"))
    endpoint, _, meeting = environment.get(Variable.RENDEZVOUS, "localhost:0/alone").rpartition("/")
    conf = f"join_timeout={JOIN_SECONDS},read_timeout=300,is_host={'1' if rank == 0 else '0'}"
    return [
        *torchrun,
        f"--nnodes={nodes}",
        f"--nproc-per-node={environment.get(Variable.NODE_PROCESSES, '1')}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={endpoint}",
        f"--rdzv-id={meeting}",
        f"--rdzv-conf={conf}",
        *([f"--local-addr={address}"] if (address := environment.get(Variable.NODE_ADDRESS)) else []),
        "--max-restarts=0",
        f"--shutdown-timeout={_KILL_AFTER_SECONDS}",
        "--no-python",
        # -P: a module in the command's own folder must not stand in for one of ours.
        *(sys.executable, "-P", "-m", "crucible.agent.torchrun", "--", *command),
    ]


def rank_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables with the ranks in the order of the nodes' numbers."""
    node = environment.get(Variable.NODE_RANK, "0")
    rank = str(int(node) * int(environment["LOCAL_WORLD_SIZE"]) + int(environment["LOCAL_RANK"]))
    kept = {name: value for name, value in environment.items() if name != _FOLDER}
    return {**kept, "RANK": rank, "ROLE_RANK": rank, "GROUP_RANK": node}


def network(environment: Mapping[str, str]) -> dict[str, str]:
    """Which interface gloo and NCCL use, where it is not set: the one that has this node's address.

    Many machines resolve their own name to the loopback address, where no other node would find them.
    """
    address = environment.get(Variable.NODE_ADDRESS)
    if not address or int(environment.get(Variable.NODES, "1")) == 1:
        return {}
    import psutil

    found = (name for name, there in psutil.net_if_addrs().items() if any(a.address == address for a in there))
    interface = next(found, None)
    if interface is None:
        return {}
    wanted = ("GLOO_SOCKET_IFNAME",) if interface == "lo" else ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    return {name: interface for name in wanted if not environment.get(name)}


def _copy(reader: int) -> None:
    """Pass on what the processes print."""
    with open(reader, "rb") as source:
        for line in source:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial" + path.suffix[1:])
    partial.write_text(text)
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
