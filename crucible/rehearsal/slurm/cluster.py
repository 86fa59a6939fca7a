"""A Slurm cluster of virtual nodes on this machine: its real controller and node daemons, on 127.0.0.1.

Needs root and Debian's packages, which are never part of `pip install`:

    apt-get install --no-install-recommends slurm-wlm munge

Everything it has is in a folder of its own, munge's key and socket included, and it ends nothing but what it started.
The nodes claim GPUs that are none (`/dev/null`): jobs get CUDA_VISIBLE_DEVICES as on a real cluster, and train on CPUs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from random import randrange

import psutil

from crucible.errors import ServiceError
from crucible.local.services import free_port
from crucible.rehearsal import apt

PACKAGES = ("slurm-wlm", "munge")
PARTITION, SHORT, URGENT = "spot", "short", "urgent"
"""`spot` can be preempted, with a grace; `short` ends every job after a minute; `urgent` takes what it needs."""
PREEMPTION_GRACE_SECONDS = 20
KILL_WAIT_SECONDS = 15
NODE_TIMEOUT_SECONDS = 10
"""After which a node that does not answer counts as lost."""
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_SBIN = "/usr/sbin:/sbin"


class LocalCluster:
    """`with LocalCluster(folder) as cluster:`; `cluster.environment` leads Slurm's commands to it."""

    def __init__(self, folder: Path, nodes: int = 2, kill_wait_seconds: int = KILL_WAIT_SECONDS) -> None:
        self.folder, self.kill_wait_seconds = folder.absolute(), kill_wait_seconds
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self._munge = Path()

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> LocalCluster:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Bring it up, installing the packages where they are missing and this is root.

        Raises:
            ServiceError: it cannot be installed or started; says what is missing.
        """
        install()
        for name in ("state", "log", "spool"):
            shutil.rmtree(self.folder / name, ignore_errors=True)  # of a cluster that was here before
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        self._start_munge()
        self._configure()
        try:
            self.start_controller()
            for node in self.nodes:
                self.start_node(node)
            self.wait_until_idle()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End its jobs, then its daemons."""
        with contextlib.suppress(ServiceError):
            self.call("scancel", "--signal=KILL", "--state=RUNNING")
            self.call("scancel", "--state=RUNNING")
            self.call("scancel", "--state=PENDING")
        self._until(lambda: not self._jobs_left(), _STOP_SECONDS)
        for node in self.nodes:
            self.kill_node(node)
        self.stop_controller()
        _end(self._munge / "pid", signal.SIGTERM)
        shutil.rmtree(self._munge, ignore_errors=True)

    def call(self, *command: str, text: str | None = None) -> str:
        """One of Slurm's commands, with `text` as its input. Raises `ServiceError` when it fails."""
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment},
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise ServiceError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout.strip()

    # Its daemons

    def start_controller(self) -> None:
        self._daemon("slurmctld")

    def kill_controller(self) -> None:
        """SIGKILL; jobs go on without it. It writes its state every few seconds, so it may forget the newest job."""
        _end(self._pid_file("slurmctld"), signal.SIGKILL)

    def stop_controller(self) -> None:
        """SIGTERM: it writes its state before it ends. Jobs go on without it."""
        _end(self._pid_file("slurmctld"), signal.SIGTERM)

    def start_node(self, node: str) -> None:
        (self.folder / "spool" / node).mkdir(exist_ok=True)
        self._daemon("slurmd", "-N", node)

    def kill_node(self, node: str) -> None:
        """SIGKILL to the node's daemon and to all that runs there, as when its power fails."""
        conf = self.environment["SLURM_CONF"]
        stepds = [process for process in psutil.process_iter(["name"]) if process.info["name"] == "slurmstepd"]
        own = [stepd for stepd in stepds if _runs_on(stepd, node, conf)]
        victims = [*(child for stepd in own for child in _family(stepd)), *own]
        _end(self._pid_file(f"slurmd-{node}"), signal.SIGKILL)
        for process in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _await_ends(victims)

    def wait_until_idle(self) -> None:
        """Until all nodes can take jobs. Raises `ServiceError`."""

        def idle() -> bool:
            with contextlib.suppress(ServiceError):
                listed = self.call("sinfo", "-h", "-N", "-p", PARTITION, "-t", "idle", "-o", "%N").split()
                return len(listed) == len(self.nodes)
            return False

        if not self._until(idle, _START_SECONDS):
            logs = sorted((self.folder / "log").glob("*.log"))
            last = [line for log in logs for line in log.read_text(errors="replace").splitlines()[-2:]]
            raise ServiceError(f"the local Slurm did not come up within {_START_SECONDS:.0f} s: {' / '.join(last)}")

    # Jobs

    def preempt(self, node: str, seconds: float = 2.0) -> None:
        """Take a node for an urgent job of so many seconds; whatever runs there in `spot` is preempted."""
        self.call(
            *("sbatch", "--parsable", f"--partition={URGENT}", f"--nodelist={node}", "--exclusive"),
            *("--job-name=urgent", f"--output={self.folder}/log/urgent.out", "--wrap", f"sleep {seconds}"),
        )

    def jobs(self, name: str = "") -> list[tuple[str, str, str]]:
        """Ids, states and nodes of the jobs that are not over."""
        only = [f"--name={name}"] if name else []
        rows = self.call("squeue", "--noheader", *only, "--format=%i|%T|%N").splitlines()
        return [(parts[0], parts[1], parts[2]) for row in rows if len(parts := row.split("|")) == 3]

    def _jobs_left(self) -> bool:
        try:
            return bool(self.jobs())
        except ServiceError:
            return False

    # Setting up

    def _start_munge(self) -> None:
        self._munge = Path(tempfile.mkdtemp(prefix="cru-munge-"))  # a socket's path must be short
        key = self._munge / "munge.key"
        key.write_bytes(os.urandom(128))
        for path in (self._munge, key):
            shutil.chown(path, "munge", "munge")
        self._munge.chmod(0o755)
        key.chmod(0o400)
        parts = {"socket": "socket", "key-file": "munge.key", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        options = [f"--{option}={self._munge / name}" for option, name in parts.items()]
        user = ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups"]
        _checked([*user, "munged", "--num-threads=2", "--force", *options])

    def _configure(self) -> None:
        host = socket.gethostname().partition(".")[0]
        ports = [free_port(randrange(17_000, 30_000))]
        for _ in range(len(self.nodes)):
            ports.append(free_port(ports[-1] + 1))
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=4000 Gres=gpu:t4:2"
            for node, port in zip(self.nodes, ports[1:], strict=True)
        )
        values = {"folder": self.folder, "munge": self._munge, "host": host, "port": ports[0], "nodes": nodes}
        settings = {
            "grace": PREEMPTION_GRACE_SECONDS,
            "kill_wait": self.kill_wait_seconds,
            "node_timeout": NODE_TIMEOUT_SECONDS,
        }
        (self.folder / "slurm.conf").write_text(_SLURM_CONF.format(**values, **settings))
        # Count alone is taken for 0 by Slurm 22.05, which wants device files.
        (self.folder / "gres.conf").write_text("Name=gpu Type=t4 File=/dev/null,/dev/zero\n")

    def _daemon(self, *command: str) -> None:
        _checked([*command], self.environment)

    def _pid_file(self, name: str) -> Path:
        return self.folder / f"{name}.pid"

    @staticmethod
    def _until(holds: object, seconds: float) -> bool:
        assert callable(holds)
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True


def install() -> None:
    """Make sure that Slurm's daemons are there, by apt-get where this is root. Raises `ServiceError`."""
    if os.geteuid() != 0:
        raise ServiceError("a local Slurm needs root: its daemons start processes for users")
    if all(_found(program) for program in ("slurmctld", "slurmd", "munged", "sbatch")):
        return
    try:
        apt.install(*PACKAGES)
    except ServiceError as error:
        raise ServiceError(f"Slurm could not be installed: {error}") from error


def _found(program: str) -> bool:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_SBIN}") is not None


def _checked(command: list[str], environment: dict[str, str] | None = None) -> None:
    path = f"{os.environ.get('PATH', '')}:{_SBIN}"
    # A daemon keeps what it inherits: nothing of the session that starts it, and no open pipes.
    kept = {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", **(environment or {})}
    with tempfile.TemporaryFile("w+") as errors:
        done = subprocess.run(
            command,
            env=kept,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            check=False,
        )
        errors.seek(0)
        if done.returncode:
            raise ServiceError(f"{command[0]} did not start: {errors.read().strip()}")


def _end(pid_file: Path, number: signal.Signals) -> None:
    """Signal the process on record and wait for its end."""
    with contextlib.suppress(OSError, ValueError, psutil.NoSuchProcess):
        process = psutil.Process(int(pid_file.read_text()))
        process.send_signal(number)
        _await_ends([process])
        pid_file.unlink(missing_ok=True)


def _await_ends(processes: list[psutil.Process]) -> None:
    """Until they have ended; the first process of a container may take its time to reap them."""

    def lives(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return False

    deadline = time.monotonic() + _STOP_SECONDS
    while any(lives(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.02)


def _runs_on(stepd: psutil.Process, node: str, conf: str) -> bool:
    """Whether a step daemon serves this node of this cluster: what it started knows."""
    wanted = {f"SLURMD_NODENAME={node}", f"SLURM_CONF={conf}"}
    for child in _family(stepd):
        with contextlib.suppress(OSError):
            if wanted <= set(Path(f"/proc/{child.pid}/environ").read_text(errors="replace").split("\0")):
                return True
    return False


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


_SLURM_CONF = """\
ClusterName=rehearsal
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={munge}/socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SrunPortRange=30001-32000
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
# No cgroups, no binding: runs in a container, too.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
# Virtual nodes: what they claim to have is believed.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
{nodes}
PartitionName=DEFAULT Nodes=ALL State=UP MaxTime=1-0 DefaultTime=60 PriorityTier=1 PreemptMode=CANCEL GraceTime={grace}
PartitionName=spot Default=YES
PartitionName=short MaxTime=1 DefaultTime=1
PartitionName=urgent PriorityTier=10 PreemptMode=OFF GraceTime=0
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
SchedulerParameters=sched_min_interval=100000,sched_interval=1,bf_interval=1,defer_batch
KillWait={kill_wait}
MinJobAge=300
SlurmctldTimeout=10
SlurmdTimeout={node_timeout}
InactiveLimit=0
JobRequeue=1
"""
