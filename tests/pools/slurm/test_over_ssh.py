"""A login node over ssh: real sshd and ssh on 127.0.0.1, in front of a real Slurm."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from crucible.errors import ServiceError
from crucible.local.services import free_port
from crucible.pools.slurm.cluster import Cluster, Submission
from crucible.pools.slurm.configuration import SlurmJobConfiguration
from crucible.pools.slurm.failures import ClusterUnreachable, LoginRefused, SlurmFailure
from crucible.pools.slurm.inventory import read_inventory
from crucible.pools.slurm.shell import Shell
from crucible.rehearsal import apt
from crucible.rehearsal.slurm.cluster import LocalCluster
from tests.waiting import until

pytestmark = pytest.mark.slow


def sshd_program() -> str | None:
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@pytest.fixture(scope="module")
def login(tmp_path_factory: pytest.TempPathFactory, cluster: LocalCluster) -> Iterator[str]:
    """The name of a login node that `ssh` finds: with configuration, keys and port of its own."""
    if sshd_program() is None or shutil.which("ssh") is None:
        try:
            apt.install("openssh-server")
        except ServiceError as error:
            pytest.skip(f"NOT TESTED, there is no sshd here: {error}")
    root = tmp_path_factory.mktemp("ssh")
    port = free_port(23_000)
    for key in ("host", "mine", "strangers"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / key)], check=True)
    (root / "authorized").write_text((root / "mine.pub").read_text())
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": root / "host",
        "PidFile": root / "pid",
        "AuthorizedKeysFile": root / "authorized",
        "StrictModes": "no",
        "UsePAM": "no",
        "PermitRootLogin": "prohibit-password",
        "PasswordAuthentication": "no",
        "SetEnv": f"SLURM_CONF={cluster.environment['SLURM_CONF']}",
    }
    (root / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    (root / "known").write_text(f"[127.0.0.1]:{port} {(root / 'host.pub').read_text()}")
    there = f"HostName 127.0.0.1\n    Port {port}\n    UserKnownHostsFile {root}/known\n    IdentitiesOnly yes\n"
    (root / "config").write_text(
        f"Host login\n    {there}    IdentityFile {root}/mine\n"
        f"Host stranger\n    {there}    IdentityFile {root}/strangers\n"
        f"Host unknown-key\n    HostName 127.0.0.1\n    Port {port}\n    UserKnownHostsFile /dev/null\n"
        f"Host closed\n    HostName 127.0.0.1\n    Port {free_port(port + 1)}\n"
    )
    # ssh looks for its configuration in the account's home and nowhere else.
    (root / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {root}/config "$@"\n')
    (root / "ssh").chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)  # its empty folder for privilege separation
    sshd = subprocess.Popen(
        [str(sshd_program()), "-D", "-e", "-f", str(root / "sshd_config")], stderr=(root / "log").open("wb")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{root}{os.pathsep}{os.environ['PATH']}")
        patch.delenv("SLURM_CONF")  # the login node's, not the worker's
        try:
            until(lambda: "listening" in (root / "log").read_text())
            yield "login"
        finally:
            sshd.terminate()
            sshd.wait()


def test_a_job_is_submitted_found_and_cancelled_through_the_login_node(login: str, tmp_path: Path) -> None:
    slurm = Cluster(Shell(login))
    made = SlurmJobConfiguration(
        command="sh -c 'echo got $TOKEN; exec sleep 600'",
        partition="spot",
        workdir=str(tmp_path),
        log_folder=str(tmp_path / "logs"),
    )
    comment = f"{uuid4()}:0:{uuid4()}"
    wanted = Submission(
        name=f"test-{uuid4().hex[:8]}",
        comment=comment,
        options=made.options(),
        script=made.script(),
        environment={"TOKEN": "very-\"secret'"},
        workdir=made.workdir,
        log_folder=made.log_folder,
    )

    async def submit() -> str:
        job_id = await slurm.submit(wanted)
        assert await slurm.find(wanted.name, comment) == job_id
        return job_id

    job_id = asyncio.run(submit())
    printed = tmp_path / "logs" / f"{wanted.name}-{job_id}.out"
    until(lambda: printed.exists() and "got very-\"secret'" in printed.read_text())

    async def cancel() -> str:
        await slurm.cancel(job_id)
        job = await slurm.show(job_id)
        assert job is not None
        return await slurm.last_output(job)

    assert "got very-" in asyncio.run(cancel())
    assert asyncio.run(read_inventory(Shell(login))).partition("short").longest_seconds == 60


@pytest.mark.parametrize(
    ("host", "kind", "words"),
    [
        ("stranger", LoginRefused, "ssh to login_node 'stranger' was refused (root@127.0.0.1: Permission denied"),
        ("unknown-key", LoginRefused, "Host key verification failed"),
        ("no-such-host.invalid", LoginRefused, "Could not resolve hostname"),
        ("closed", ClusterUnreachable, "the login node closed does not answer"),
    ],
    ids=["key", "host-key", "name", "port"],
)
def test_a_login_node_that_cannot_be_reached_is_told_in_one_message(
    login: str, host: str, kind: type[SlurmFailure], words: str
) -> None:
    with pytest.raises(kind) as caught:
        asyncio.run(Cluster(Shell(host)).list())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
