"""Slurm's commands as the worker uses them. Their text output is read, whose form has been the same for years; the
fields of `--json` change between releases."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crucible.pools.slurm.failures import JobView, SlurmFailure, SubmissionRefused, parse_job, refusal
from crucible.pools.slurm.shell import Done, Shell

_NAME = re.compile(r"[A-Za-z_]\w*")
_NO_FOLDER = 91
_UNKNOWN_JOB = "Invalid job id"
_OVER_ALREADY = r"invalid job id|already (completing|completed|finished)"
_LAST_LINES = 20


@dataclass(frozen=True)
class Listed:
    """A job as `squeue` lists it."""

    id: str
    state: str
    comment: str


@dataclass(frozen=True)
class Submission:
    """What `sbatch` is given. `environment` and `script` go in through standard input."""

    name: str
    """Jobs of one name never run side by side (`--dependency=singleton`)."""
    comment: str
    """Which attempt it is; readable by everybody on the cluster."""
    options: Sequence[str]
    script: str
    environment: Mapping[str, str]
    workdir: str
    log_folder: str


@dataclass(frozen=True)
class Cluster:
    """One Slurm cluster, reached through a shell."""

    shell: Shell

    async def find(self, name: str, comment: str) -> str | None:
        """The id of the job with this name and comment, running or ended not long ago; None if there is none."""
        listed = await self.list("--name", name)
        return next((job.id for job in reversed(listed) if job.comment == comment), None)

    async def list(self, *options: str) -> list[Listed]:
        """The user's own jobs in Slurm's memory. Raises `SlurmFailure`."""
        command = shlex.join(["squeue", "--noheader", "--states=all", *options, "--format=%i|%T|%k"])
        done = await self._checked(f'{command} --user="$(id -un)"')
        rows = [line.strip().split("|", 2) for line in done.output.splitlines() if line.count("|") >= 2]
        return [Listed(*row) for row in rows]

    async def submit(self, wanted: Submission) -> str:
        """Submit a job; returns its id.

        Raises:
            SlurmFailure: it was not submitted, or nobody can say whether it was (`ClusterUnreachable`).
        """
        if bad := [name for name in wanted.environment if not _NAME.fullmatch(name)]:
            raise SubmissionRefused(f"job variable env: {bad[0]!r} is not the name of an environment variable")
        exports = [f"export {name}={shlex.quote(value)}" for name, value in wanted.environment.items()]
        workdir, logs = path_in_shell(wanted.workdir), path_in_shell(wanted.log_folder)
        fixed = ["--parsable", "--no-requeue", "--dependency=singleton", "--export=ALL"]
        named = [f"--job-name={wanted.name}", f"--comment={wanted.comment}"]
        text = [
            *exports,
            f"mkdir -p {logs} && cd {workdir} || exit {_NO_FOLDER}",
            f"logs=$(cd {logs} && pwd)",
            f'{shlex.join(["sbatch", *fixed, *named])} --output="$logs/%x-%j.out" --chdir="$PWD" '
            f"{shlex.join(wanted.options)} <<'{_END}'",
            wanted.script.rstrip("\n"),
            _END,
        ]
        done = await self.shell.run("\n".join(text))
        if done.code == _NO_FOLDER:
            raise SubmissionRefused(
                f"workdir {wanted.workdir!r} or log_folder {wanted.log_folder!r} is not there on the cluster: "
                f"{' '.join(done.errors.split())}"
            )
        lines = done.output.split()
        if done.code or not lines or not lines[-1].partition(";")[0].isdigit():
            raise self._refusal(done)
        return lines[-1].partition(";")[0]

    async def show(self, job_id: str) -> JobView | None:
        """A job as it is now; None once Slurm has forgotten it. Raises `SlurmFailure`."""
        done = await self.shell.run(f"scontrol show job {shlex.quote(job_id)}")
        if _UNKNOWN_JOB in done.errors + done.output:
            return None
        if done.code:
            raise self._refusal(done)
        return parse_job(done.output)

    async def signal_batch(self, job_id: str, signal: str) -> None:
        """A signal to the batch script alone; nothing kills the job after it. An ended one is no error."""
        done = await self.shell.run(shlex.join(["scancel", "--batch", f"--signal={signal}", job_id]))
        if done.code and not re.search(_OVER_ALREADY, done.errors, re.I):
            raise self._refusal(done)

    async def cancel(self, job_id: str) -> None:
        """SIGTERM to all of a job's processes, SIGKILL after the cluster's KillWait. An ended one is no error."""
        await self._checked(shlex.join(["scancel", job_id]))

    async def last_output(self, job: JobView) -> str:
        """The last lines that a job has printed; empty where they cannot be read from here."""
        if not job.output:
            return ""
        try:
            return (await self.shell.run(f"tail -n {_LAST_LINES} {shlex.quote(job.output)}")).output.strip()
        except SlurmFailure:
            return ""

    async def _checked(self, text: str) -> Done:
        done = await self.shell.run(text)
        if done.code:
            raise self._refusal(done)
        return done

    def _refusal(self, done: Done) -> SlurmFailure:
        return refusal(done.code, done.errors or done.output, self.shell.login_node, reached=done.reached)


_END = "CRUCIBLE_BATCH_SCRIPT"


def path_in_shell(path: str) -> str:
    """A path for a shell's text; a leading `~/` is the user's home on the machine with the shell."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)
