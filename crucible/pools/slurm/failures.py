"""What Slurm's states, reasons and refusals mean for a flow run: pure functions over what its commands print."""

from __future__ import annotations

import re
from dataclasses import dataclass

from crucible.pools.common.failures import NothingRuns, PoolFailure

EXIT_SAVED = 75
_COMMAND_MISSING = (126, 127)
_OUTPUT_MISSING = 53
"""The signal number with which Slurm ends a job whose output file it cannot write."""


class SlurmFailure(PoolFailure):
    """Base of all failures on the way to a job and of all its bad ends; the class names the flow run's state."""

    def __init_subclass__(cls) -> None:
        cls.state_name = cls.__name__


class ClusterUnreachable(SlurmFailure):
    """The login node or Slurm's controller does not answer. Running jobs go on meanwhile."""


class LoginRefused(SlurmFailure):
    """ssh does not let the worker in, or does not know the host."""


class SlurmMissing(SlurmFailure):
    """There are no Slurm commands where the worker looks for them."""


class SubmissionRefused(SlurmFailure):
    """Slurm will never take this job: no such partition, account, feature; more than a limit allows."""


class SubmissionDelayed(SlurmFailure):
    """Slurm does not take the job now: too many are submitted, or the partition is closed for a while."""


class NeverStarts(SlurmFailure):
    """The job is in the queue, with a reason that does not go away by itself. It was cancelled there."""


class Preempted(SlurmFailure):
    """Slurm took the job's resources for a job of higher priority."""


class NodeLost(SlurmFailure):
    """The job's node failed, or did not boot."""


class TimeLimitReached(SlurmFailure):
    """The job still ran at its time limit."""


class OutOfMemory(SlurmFailure):
    """The job used more memory than it asked for."""


class CommandNotFound(SlurmFailure):
    """The job's command is not there on the node."""


class JobNotLaunched(SlurmFailure):
    """Slurm had a node for the job, but could not start it there."""


class JobExited(SlurmFailure):
    """The job's command ended without a final state of its flow run."""


class JobCancelled(SlurmFailure):
    """Somebody cancelled the job with scancel."""

    cancels = True


class JobForgotten(SlurmFailure, NothingRuns):
    """Slurm knows nothing of the job: it ended a while ago, or never was."""


PERMANENT = frozenset(
    kind.state_name for kind in (LoginRefused, SlurmMissing, SubmissionRefused, NeverStarts, CommandNotFound)
)
"""Names of states that another attempt would only repeat: a person has to fix something first."""


@dataclass(frozen=True)
class JobView:
    """A job as `scontrol show job` prints it."""

    id: str
    state: str
    reason: str = ""
    exit_code: int = 0
    exit_signal: int = 0
    preempted: bool = False
    node: str = ""
    partition: str = ""
    time_limit: str = ""
    output: str = ""
    """Path of the file with what it prints, on the cluster."""

    @property
    def pending(self) -> bool:
        return self.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")

    @property
    def over(self) -> bool:
        return self.state in _OVER


_OVER = frozenset(
    (
        *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY"),
        *("DEADLINE", "REVOKED"),
    )
)


def parse_job(text: str) -> JobView:
    """The job in the output of `scontrol show job ID`."""
    found = dict(re.findall(r"(\S+?)=(.*?)(?=\s+[\w/:&]+=|\s*$)", text, re.M))
    code, _, number = found.get("ExitCode", "0:0").partition(":")
    return JobView(
        id=found.get("JobId", ""),
        state=found.get("JobState", "").split()[0] if found.get("JobState") else "",
        reason=_without_none(found.get("Reason", "")),
        exit_code=int(code or 0),
        exit_signal=int(number or 0),
        preempted=found.get("PreemptTime", "None")[:1].isdigit(),
        node=found.get("BatchHost", "") or _without_none(found.get("NodeList", "")),
        partition=found.get("Partition", ""),
        time_limit=found.get("TimeLimit", ""),
        output=found.get("StdOut", ""),
    )


def _without_none(text: str) -> str:
    return "" if text in ("None", "(null)") else text


def failure_of(job: JobView, last_output: str = "") -> SlurmFailure:
    """What the end of a job is for a flow run without a final state of its own. `job.over` holds."""
    printed = f"\nIts last output:\n{last_output}" if last_output else ""
    saved = "What was saved stands in the attempt's own record."
    where = f" on {job.node}" if job.node else ""
    how = f"signal {job.exit_signal}" if job.exit_signal else f"exit code {job.exit_code}"
    if job.preempted or job.state == "PREEMPTED":
        return Preempted(f"Slurm preempted job {job.id}{where} for one of higher priority. {saved}{printed}")
    if job.state in ("NODE_FAIL", "BOOT_FAIL", "REVOKED"):
        what = "did not boot" if job.state == "BOOT_FAIL" else "failed"
        return NodeLost(f"the node of Slurm job {job.id}{where} {what} ({job.state}). {saved}{printed}")
    if job.state in ("TIMEOUT", "DEADLINE"):
        return TimeLimitReached(
            f"Slurm job {job.id} reached its time limit ({job.time_limit or 'unknown'}) while it still ran; the agent "
            f"saves before that and the next attempt goes on. {saved}{printed}"
        )
    if job.state == "OUT_OF_MEMORY":
        return OutOfMemory(
            f"Slurm job {job.id} ran out of memory{where}; the job variable memory_mib asks for more. {saved}{printed}"
        )
    if job.state == "CANCELLED":
        return JobCancelled(f"Slurm job {job.id} was cancelled with scancel")
    if "JobLaunchFailure" in job.reason or job.exit_signal == _OUTPUT_MISSING or "launch" in job.reason.lower():
        return JobNotLaunched(
            f"Slurm could not start job {job.id}{where} ({job.reason or how}); the folder of its output "
            f"({job.output or 'log_folder'}) must be on the nodes, too"
        )
    if job.exit_code in _COMMAND_MISSING:
        return CommandNotFound(
            f"the command of Slurm job {job.id} was not found{where} (exit code {job.exit_code}): the virtual "
            f"environment must be on a file system that the nodes share; set venv in the pool{printed}"
        )
    if job.exit_signal == _SIGKILL or job.exit_code == 128 + _SIGKILL:
        return JobExited(
            f"the command of Slurm job {job.id} was killed{where}, out of memory perhaps; the job variable memory_mib "
            f"asks for more. {saved}{printed}"
        )
    return JobExited(
        f"the command of Slurm job {job.id} ended with {how}{where} before the flow run had a final state. "
        f"{saved}{printed}"
    )


_SIGKILL = 9


@dataclass(frozen=True)
class Waiting:
    """Why a job waits in the queue, and whether that can end by itself."""

    words: str
    hopeless: bool = False


_HOPELESS = {
    "PartitionTimeLimit": "its time limit is over the partition's maximum; ask for less with time_limit_minutes",
    "PartitionNodeLimit": "it asks for more nodes than the partition allows",
    "PartitionConfig": "it asks for more than the partition allows",
    "AccountNotAllowed": "its account may not use the partition; set account, or another partition",
    "QOSNotAllowed": "its QOS may not use the partition; set qos, or another partition",
    "InvalidAccount": "its account is not valid; set account to one of yours (sacctmgr show associations)",
    "InvalidQOS": "its QOS is not valid; set qos to one of yours (sacctmgr show associations)",
    "BadConstraints": "no node can satisfy what it asks for; change gpus, memory_mib, cpus or constraint",
    "DependencyNeverSatisfied": "it waits for a job that ended otherwise",
    "ReservationDeleted": "its reservation was deleted; set another, or none",
    "JobLaunchFailure": "Slurm could not start it on its node",
    "DeadLine": "its deadline cannot be met",
}
_WAITS = {
    "Priority": "jobs of higher priority come first",
    "Resources": "it waits for free resources",
    "Dependency": "an earlier attempt of the same job has not ended yet",
    "BeginTime": "its begin time has not come",
    "Licenses": "it waits for a license",
    "Reservation": "its reservation has not begun",
    "PartitionDown": "the partition is down; it starts when the administrators open it again",
    "PartitionInactive": "the partition is inactive; it starts when the administrators open it again",
    "NodeDown": "a node that it needs is down",
    "JobHeldUser": "it is held; release it with: scontrol release",
    "JobHeldAdmin": "an administrator holds it",
    "Cleaning": "what it ran before is being cleaned up",
    "Prolog": "its node is being prepared",
}
_NOT_ALLOWED = re.compile(r"account.{1,40}(can.t[ _]use[ _]this[ _]partition|not[ _]permitted)", re.I)
_PER_JOB = re.compile(r"(Assoc|QOS)Max\w*PerJob|(Assoc|QOS)Max\w*WallDuration|QOSMax\w*PerNode", re.I)
_ALLOCATION = re.compile(r"(Assoc|QOS)Grp\w*(Minutes|RunMinutes)", re.I)
_SHARED_LIMIT = re.compile(r"(Assoc|QOS)(Grp|Max)|MaxJobs|QOSUsage|QOSMin", re.I)


def waiting(reason: str) -> Waiting:
    """What the reason of a job in the queue means."""
    name = reason.strip("()").partition(",")[0].strip()
    if name in _HOPELESS:
        return Waiting(_HOPELESS[name], hopeless=True)
    if name in _WAITS:
        return Waiting(_WAITS[name])
    if _NOT_ALLOWED.search(reason):  # a sentence, not one of Slurm's names
        return Waiting(_HOPELESS["AccountNotAllowed"], hopeless=True)
    if "launch" in name and "held" in name:
        return Waiting("Slurm could not start it on its node and holds it", hopeless=True)
    if _PER_JOB.search(name):
        return Waiting(f"it asks for more than one job may have ({name}); ask for less", hopeless=True)
    if name.startswith("QOSMin"):
        return Waiting(f"it asks for less than its QOS wants at least ({name}); ask for more", hopeless=True)
    if _ALLOCATION.search(name):
        return Waiting(f"the hours of its account are used up ({name}); it starts when there are new ones")
    if _SHARED_LIMIT.search(name):
        return Waiting(f"a limit of its account or user is reached ({name}); it starts when others have ended")
    if "ReqNodeNotAvail" in name:
        return Waiting(f"a node that it needs is not available ({reason})")
    return Waiting(f"Slurm says {reason}" if name and name != "None" else "it has just been submitted")


_REFUSALS: tuple[tuple[str, type[SlurmFailure], str], ...] = (
    (
        r"unable to contact slurm controller|socket timed out|zero bytes were transmitted|connection (refused|reset)"
        r"|unable to establish controller machine|protocol authentication error|\bmunge\b"
        r"|backup controller in standby",
        ClusterUnreachable,
        "Slurm's controller does not answer",
    ),
    (r"temporarily unable to accept|try again later|resource temporarily unavailable", SubmissionDelayed, "not now"),
    (
        r"(assoc|qos)\w*maxsubmit|(assoc|qos)\w*grpsubmit|job submit limit(?!, user's size)",
        SubmissionDelayed,
        "too many jobs are submitted already",
    ),
    (r"required partition not available|inactive or drain", SubmissionDelayed, "the partition is closed for now"),
    (r"invalid partition", SubmissionRefused, "there is no such partition; sinfo -s lists them"),
    (r"invalid account", SubmissionRefused, "the account may not be used there; set account to one of yours"),
    (r"invalid qos", SubmissionRefused, "there is no such QOS for you; set qos to one of yours"),
    (
        r"invalid generic resource|\bgres\b",
        SubmissionRefused,
        "the cluster has no such GPUs; sinfo -o '%P %G' lists them",
    ),
    (r"invalid feature", SubmissionRefused, "no node has that feature; change constraint (sinfo -o '%P %f')"),
    (r"reservation", SubmissionRefused, "the reservation cannot be used; change or leave out reservation"),
    (
        r"time limit is invalid|timelimit|exceeds .*time|walldurationperjob",
        SubmissionRefused,
        "the time limit is over the maximum; lower time_limit_minutes",
    ),
    (r"memory specification|maxmem", SubmissionRefused, "no node has so much memory; lower memory_mib"),
    (
        r"cpu count per node|more processors requested|node configuration is not available|node count",
        SubmissionRefused,
        "no node has what is asked for; change gpus, cpus, memory_mib or constraint",
    ),
    (r"group not permitted|user not found|permission denied", SubmissionRefused, "you may not use that partition"),
    (r"violates accounting|qosmax|assocmax", SubmissionRefused, "it asks for more than your account may have"),
    (r"unrecognized option|invalid option|unknown option", SubmissionRefused, "this Slurm does not know an option"),
)
_NOT_FOUND = re.compile(
    r"(sbatch|squeue|scontrol|scancel|sinfo): (command )?not found|process configuration file|configuration source",
    re.I,
)
_SSH_REFUSED = re.compile(
    r"permission denied|host key verification failed|could not resolve hostname(?!.*temporary failure)|no such identity"
    r"|bad configuration|too many authentication failures|identity file .* not accessible"
    r"|remote host identification has changed",
    re.I,
)


def refusal(code: int, said: str, login_node: str | None = None, *, reached: bool = True) -> SlurmFailure:
    """What a failed command means. `code` is its exit code, `said` what it printed as an error; `reached`: whether ssh
    got to the login node."""
    text = " ".join(said.split()) or f"exit code {code}"
    if login_node and not reached:
        if _SSH_REFUSED.search(said):
            return LoginRefused(
                f"ssh to login_node {login_node!r} was refused ({text}); `ssh {login_node} true` must work without a "
                "password from the worker's account"
            )
        return ClusterUnreachable(f"the login node {login_node} does not answer: {text}")
    if _NOT_FOUND.search(said):
        place = f"on {login_node}" if login_node else "on the worker's machine"
        return SlurmMissing(
            f"there are no working Slurm commands {place} ({text}); start the worker where sbatch "
            "works, or set login_node"
        )
    for pattern, kind, words in _REFUSALS:
        if re.search(pattern, said, re.I):
            return kind(f"{words}. Slurm said: {text}")
    return SubmissionRefused(f"Slurm refused the job: {text}")
