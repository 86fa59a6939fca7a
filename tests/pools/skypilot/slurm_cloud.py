"""SkyPilot's own Slurm cloud on this machine: a real Slurm, reached over ssh through a real sshd, as a user of its own.

Needs root, Debian's packages slurm-wlm, munge, openssh-server and rsync, a Python 3.10 (which SkyPilot puts its
runtime on), and SkyPilot in an environment of its own (`crucible sky setup`). SkyPilot writes to the user's home, so
the user is made for this alone. What SkyPilot's own script would download (uv) is put in its place: the machine may
be offline.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from crucible.errors import ServiceError
from crucible.local.services import free_port
from crucible.rehearsal.slurm.cluster import PARTITION, LocalCluster

USER = "crucible-sky"
NAME = "rehearsal"
INFRA = f"slurm/{NAME}/{PARTITION}"
_PROFILE = Path("/etc/profile.d/crucible-sky.sh")
_HOSTS = Path("/etc/hosts")
_PROGRAMS = ("sshd", "ssh", "ssh-keygen", "rsync", "useradd")


class SlurmCloud:
    """What a worker needs to find it: `environment`, and a folder in which everything is."""

    def __init__(self, root: Path, cluster: LocalCluster) -> None:
        self.root, self.cluster = root, cluster
        self.home = root / "home"
        """Of SkyPilot's API server and clients: their `~/.sky`, `~/.ssh` and `~/.slurm`."""
        self.port = free_port(26_580)
        """Of an API server of its own: a person's stays as it is."""

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
            "SKYPILOT_API_SERVER_LOCAL_PORT": str(self.port),
        }


@contextmanager
def slurm_cloud(root: Path) -> Iterator[SlurmCloud]:
    """Bring it up; take it down at the end. Raises `ServiceError` naming what is missing."""
    python = _python310()
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if missing := [program for program in _PROGRAMS if shutil.which(program, path=path) is None]:
        raise ServiceError(
            f"{', '.join(missing)} missing: apt-get install --no-install-recommends openssh-server rsync"
        )
    if os.geteuid() != 0:
        raise ServiceError("needs root: a user of its own, and Slurm's daemons")
    made = LocalCluster(root / "slurm")
    made.nodes = [
        "crucible-sky-1",
        "crucible-sky-2",
    ]  # SkyPilot looks their addresses up; no other cluster's are touched
    with made as cluster:
        cloud = SlurmCloud(root, cluster)
        user_home = root / "user"
        subprocess.run(
            ["useradd", "--password", "*", "--create-home", "--home-dir", str(user_home), "--shell", "/bin/bash", USER],
            check=True,
        )
        hosts = _HOSTS.read_text()
        sshd = None
        try:
            added = "".join(f"127.0.0.{number} {node}\n" for number, node in enumerate(cluster.nodes, 1))
            _HOSTS.write_text(hosts.rstrip("\n") + "\n" + added)
            _put_programs(root / "bin", python)
            _PROFILE.write_text(f'if [ "$(id -un)" = {USER} ]; then PATH={root}/bin:$PATH; fi\n')
            port = _authorize(cloud, user_home)
            sshd = _start_sshd(root, port, cluster.environment["SLURM_CONF"])
            yield cloud
        finally:
            if sshd is not None:
                sshd.terminate()
                sshd.wait()
            _PROFILE.unlink(missing_ok=True)
            kept = [line for line in _HOSTS.read_text().splitlines(True) if line not in added.splitlines(True)]
            _HOSTS.write_text("".join(kept))
            for process in psutil.process_iter(["username"]):
                if process.info["username"] == USER:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
            subprocess.run(["userdel", "--force", USER], check=False, capture_output=True)


def _python310() -> str:
    """One that works: a version manager's placeholder may be first on the path."""
    for known in (shutil.which("python3.10"), *map(str, Path("/root/.pyenv/versions").glob("3.10.*/bin/python3.10"))):
        if known is not None:
            done = subprocess.run([known, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True)
            if done.returncode == 0:
                return done.stdout.strip()
    raise ServiceError("no python3.10: SkyPilot puts its runtime on it")


def _put_programs(folder: Path, python: str) -> None:
    """A `curl` that answers for uv's installer alone, and python3.10."""
    folder.mkdir(parents=True)
    uv = Path(sys.prefix, "bin", "uv")
    (folder / "curl").write_text(
        "#!/bin/sh\n"
        'case "$*" in *astral.sh/uv*) '
        f"""echo 'mkdir -p "$UV_INSTALL_DIR" && cp {uv} "$UV_INSTALL_DIR/uv"'; exit 0 ;; esac\n"""
        'exec /usr/bin/curl "$@"\n'
    )
    (folder / "curl").chmod(0o755)
    (folder / "python3.10").symlink_to(python)
    for folder_above in Path(python).parents:  # the user that is made for this must find the way there
        if not folder_above.stat().st_mode & 0o001:
            raise ServiceError(f"{python} is out of other users' reach: chmod o+x {folder_above}")


def _authorize(cloud: SlurmCloud, user_home: Path) -> int:
    """A key for the API server's user, and its ~/.slurm/config; returns sshd's port."""
    port = free_port(24_000)
    ssh = cloud.home / ".ssh"
    ssh.mkdir(parents=True)
    key = ssh / "rehearsal"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    theirs = user_home / ".ssh"
    theirs.mkdir(mode=0o700)
    (theirs / "authorized_keys").write_text(key.with_suffix(".pub").read_text())
    for path in (theirs, theirs / "authorized_keys"):
        shutil.chown(path, USER, USER)
    (theirs / "authorized_keys").chmod(0o600)
    config = cloud.home / ".slurm" / "config"
    config.parent.mkdir()
    config.write_text(
        f"Host {NAME}\n    HostName 127.0.0.1\n    Port {port}\n    User {USER}\n    IdentityFile {key}\n"
        "    StrictHostKeyChecking no\n    UserKnownHostsFile /dev/null\n"
    )
    return port


def _start_sshd(root: Path, port: int, slurm_conf: str) -> subprocess.Popen[bytes]:
    host_key = root / "host_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host_key)], check=True)
    Path("/run/sshd").mkdir(exist_ok=True)  # its empty folder for privilege separation
    config = root / "sshd_config"
    # SkyPilot runs srun, and uv, in shells that read no profile.
    given = [f"SLURM_CONF={slurm_conf}"]
    given += [f"{name}={value}" for name, value in os.environ.items() if name.startswith(("SSL_CERT_", "UV_"))]
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {host_key}\nPidFile {root}/sshd.pid\n"
        f"AllowUsers {USER}\nPasswordAuthentication no\nUsePAM no\nStrictModes no\nMaxStartups 100\nMaxSessions 100\n"
        f"SetEnv {' '.join(given)}\nSubsystem sftp internal-sftp\n"
    )
    return subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(config)], stderr=(root / "sshd.log").open("wb"))
