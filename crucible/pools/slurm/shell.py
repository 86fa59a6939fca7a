"""Command lines on the cluster: in a shell of this machine, or over ssh on a login node.

Everything goes in through the shell's standard input. A command line can be read by everybody on its machine, and the
environment of a flow run has secrets in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from dataclasses import dataclass

from crucible.pools.slurm.failures import ClusterUnreachable, SlurmMissing

TIMEOUT_SECONDS = 90.0
"""Slurm's own commands give up on an absent controller after about 10 s; an overloaded one may take longer."""
_CONNECT_SECONDS = 15
_BEGIN = "crucible-begins-here"
_KEPT = re.compile(
    r"(PATH|HOME|USER|LOGNAME|SHELL|LANG|LC_\w+|TZ|TMPDIR|SLURM_CONF|LD_LIBRARY_PATH|MODULE\w*|LMOD_\w+)"
)
"""What of the worker's own environment commands need. The rest, passwords perhaps among it, is not the job's."""

_OF_SSH = ("SSH_", "KRB5")
"""What `ssh` itself needs besides: the agent with the keys, or the ticket of a Kerberos login."""


@dataclass(frozen=True)
class Done:
    """How a command line ended."""

    code: int
    output: str
    errors: str
    reached: bool = True
    """Whether there was a shell at all; False: ssh said no."""


@dataclass(frozen=True)
class Shell:
    """Runs command lines where Slurm's commands are."""

    login_node: str | None = None

    async def run(self, text: str) -> Done:
        """Run a POSIX shell's text.

        Raises:
            ClusterUnreachable: it did not end within `TIMEOUT_SECONDS`.
            SlurmMissing: there is no `ssh` here.
        """
        environment = {name: value for name, value in os.environ.items() if _KEPT.fullmatch(name)}
        command = ["sh", "-s"]
        if self.login_node:
            environment |= {name: value for name, value in os.environ.items() if name.startswith(_OF_SSH)}
            # A login shell: on many clusters only /etc/profile puts Slurm's commands on the path.
            command = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}", "--"]
            command += [self.login_node, "exec sh -l -s"]
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except FileNotFoundError as error:
            raise SlurmMissing(f"login_node is set, but there is no {command[0]} on the worker's machine") from error
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                output, errors = await process.communicate(f"echo {_BEGIN}\n{text}\n".encode())
        except TimeoutError:
            raise ClusterUnreachable(f"a command on the cluster did not end within {TIMEOUT_SECONDS:.0f} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        # What a profile prints comes before.
        _, reached, shown = output.decode(errors="replace").partition(f"{_BEGIN}\n")
        return Done(process.returncode or 0, shown, errors.decode(errors="replace"), bool(reached))
