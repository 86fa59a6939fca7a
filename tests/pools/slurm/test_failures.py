# ruff: noqa: E501 - as Slurm writes it
"""What Slurm's states, reasons and refusals are taken for, by what its commands printed (22.05)."""

from __future__ import annotations

import pytest

from crucible.pools.slurm.failures import PERMANENT, JobView, failure_of, parse_job, refusal, waiting

SHOWN = """\
JobId={id} JobName=crucible-x
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   JobState={state} Reason={reason} Dependency=(null)
   Requeue=0 Restarts=0 BatchFlag=1 Reboot=0 ExitCode={code}
   RunTime=00:00:00 TimeLimit=01:00:00 TimeMin=N/A
   PreemptEligibleTime=2026-11-28T16:46:16 PreemptTime={preempted}
   Partition=spot AllocNode:Sid=localhost:16833
   NodeList=n1
   BatchHost=n1
   Socks/Node=* NtasksPerN:B:S:C=0:0:*:* CoreSpec=*
   WorkDir=/home/me/my project
   StdOut=/home/me/my project/slurm-1.out
"""


def shown(state: str, code: str = "0:0", reason: str = "None", preempted: str = "None") -> JobView:
    return parse_job(SHOWN.format(id=7, state=state, code=code, reason=reason, preempted=preempted))


def test_a_job_is_read_as_scontrol_prints_it() -> None:
    job = shown("RUNNING")
    assert (job.id, job.state, job.reason, job.node, job.partition) == ("7", "RUNNING", "", "n1", "spot")
    assert (job.time_limit, job.output, job.preempted) == ("01:00:00", "/home/me/my project/slurm-1.out", False)
    assert not job.over
    assert not job.pending


@pytest.mark.parametrize(
    ("job", "state", "words"),
    [
        (shown("PREEMPTED", "75:0"), "Preempted", "preempted job 7 on n1"),
        (shown("FAILED", "75:0", preempted="2026-11-28T16:50:00"), "Preempted", "higher priority"),
        (shown("COMPLETED", preempted="2026-11-28T16:50:00"), "Preempted", "higher priority"),
        (shown("NODE_FAIL", "0:1", "NodeDown"), "NodeLost", "failed (NODE_FAIL)"),
        (shown("BOOT_FAIL"), "NodeLost", "did not boot"),
        (shown("TIMEOUT", "0:15", "TimeLimit"), "TimeLimitReached", "its time limit (01:00:00)"),
        (shown("DEADLINE"), "TimeLimitReached", "time limit"),
        (shown("OUT_OF_MEMORY", "0:125", "OutOfMemory"), "OutOfMemory", "memory_mib"),
        (shown("CANCELLED", "0:15"), "JobCancelled", "scancel"),
        (shown("FAILED", "0:53", "RaisedSignal:53(Real-time_signal_19)"), "JobNotLaunched", "my project/slurm-1.out"),
        (shown("FAILED", "0:11", "JobLaunchFailure"), "JobNotLaunched", "JobLaunchFailure"),
        (shown("FAILED", "127:0", "NonZeroExitCode"), "CommandNotFound", "set venv in the pool"),
        (shown("FAILED", "0:9"), "JobExited", "out of memory perhaps"),
        (shown("FAILED", "137:0"), "JobExited", "out of memory perhaps"),
        (shown("FAILED", "3:0", "NonZeroExitCode"), "JobExited", "exit code 3 on n1"),
        (shown("COMPLETED"), "JobExited", "exit code 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.state}-{value.exit_code}-{value.exit_signal}",
)
def test_every_end_of_a_job_has_a_state_and_words(job: JobView, state: str, words: str) -> None:
    assert job.over
    failure = failure_of(job, "Traceback: the last line")
    assert failure.state_name == state
    assert words in str(failure)
    assert failure.cancels == (state == "JobCancelled")
    assert (state in PERMANENT) == (state == "CommandNotFound")


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "PENDING", "CONFIGURING"])
def test_a_job_that_still_does_something_is_not_over(state: str) -> None:
    assert not shown(state).over


@pytest.mark.parametrize(
    ("reason", "hopeless", "words"),
    [
        ("Priority", False, "higher priority"),
        ("Resources", False, "free resources"),
        ("(Resources)", False, "free resources"),
        ("Dependency", False, "earlier attempt"),
        ("PartitionDown", False, "is down"),
        ("JobHeldUser", False, "scontrol release"),
        ("JobHeldAdmin", False, "administrator"),
        ("ReqNodeNotAvail,_UnavailableNodes:n1", False, "not available"),
        ("QOSMaxJobsPerUserLimit", False, "a limit of its account or user"),
        ("AssocGrpGRES", False, "a limit of its account or user"),
        ("AssocGrpGRESMinutes", False, "hours of its account are used up"),
        ("None", False, "just been submitted"),
        ("SomethingNew", False, "SomethingNew"),
        ("PartitionTimeLimit", True, "time_limit_minutes"),
        ("PartitionConfig", True, "more than the partition allows"),
        ("QOSMaxWallDurationPerJobLimit", True, "more than one job may have"),
        ("QOSMaxGRESPerJob", True, "more than one job may have"),
        ("QOSMinGRES", True, "ask for more"),
        ("InvalidAccount", True, "account"),
        ("Job's_account_not_known,_so_it_can't_use_this_partition_(closed_allows_lab)", True, "set account"),
        ("InvalidQOS", True, "qos"),
        ("BadConstraints", True, "constraint"),
        ("launch_failed_requeued_held", True, "could not start it"),
    ],
)
def test_why_a_job_waits_and_whether_that_can_end(reason: str, hopeless: bool, words: str) -> None:
    why = waiting(reason)
    assert why.hopeless is hopeless
    assert words in why.words


REFUSED = "sbatch: error: Batch job submission failed: "


@pytest.mark.parametrize(
    ("said", "state", "words"),
    [
        (
            f"sbatch: error: invalid partition specified: nosuch\n{REFUSED}Invalid partition name specified",
            "SubmissionRefused",
            "no such partition",
        ),
        (f"{REFUSED}Invalid account or account/partition combination specified", "SubmissionRefused", "set account"),
        (f"{REFUSED}Invalid qos specification", "SubmissionRefused", "set qos"),
        (f"{REFUSED}Requested node configuration is not available", "SubmissionRefused", "change gpus"),
        (f"{REFUSED}Invalid generic resource (gres) specification", "SubmissionRefused", "no such GPUs"),
        (
            f"sbatch: error: Memory specification can not be satisfied\n{REFUSED}Requested node configuration is not available",
            "SubmissionRefused",
            "memory_mib",
        ),
        (f"{REFUSED}Invalid feature specification", "SubmissionRefused", "constraint"),
        (f"{REFUSED}Requested reservation is invalid", "SubmissionRefused", "reservation"),
        (
            f"{REFUSED}Requested time limit is invalid (missing or exceeds some limit)",
            "SubmissionRefused",
            "time_limit_minutes",
        ),
        (
            f"{REFUSED}Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
            "SubmissionRefused",
            "your account",
        ),
        (f"{REFUSED}User's group not permitted to use this partition", "SubmissionRefused", "may not use"),
        ("sbatch: unrecognized option '--nosuch'", "SubmissionRefused", "does not know"),
        ("sbatch: error: Invalid --time specification", "SubmissionRefused", "Invalid --time"),
        (
            f"sbatch: error: QOSMaxSubmitJobPerUserLimit\n{REFUSED}Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
            "SubmissionDelayed",
            "too many",
        ),
        (f"{REFUSED}Required partition not available (inactive or drain)", "SubmissionDelayed", "closed"),
        (f"{REFUSED}Slurm temporarily unable to accept job, sleeping and retrying", "SubmissionDelayed", "not now"),
        (f"{REFUSED}Unable to contact slurm controller (connect failure)", "ClusterUnreachable", "does not answer"),
        ("slurm_load_jobs error: Socket timed out on send/recv operation", "ClusterUnreachable", "does not answer"),
        ("sh: 5: sbatch: not found", "SlurmMissing", "set login_node"),
        ("bash: line 5: sbatch: command not found", "SlurmMissing", "set login_node"),
        ("sbatch: fatal: Unable to process configuration file", "SlurmMissing", "no working Slurm"),
    ],
    ids=lambda value: value.rpartition("failed: ")[2][:40],
)
def test_a_refusal_is_told_from_a_delay_and_from_an_outage(said: str, state: str, words: str) -> None:
    failure = refusal(1, said)
    assert failure.state_name == state
    assert words in str(failure)
    assert (state in PERMANENT) == (state in ("SubmissionRefused", "SlurmMissing"))


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("me@login1: Permission denied (publickey).", "LoginRefused"),
        ("Host key verification failed.", "LoginRefused"),
        ("ssh: Could not resolve hostname nosuch.invalid: Name or service not known", "LoginRefused"),
        ("ssh: Could not resolve hostname login1: Temporary failure in name resolution", "ClusterUnreachable"),
        ("ssh: connect to host login1 port 22: Connection refused", "ClusterUnreachable"),
        ("ssh: connect to host login1 port 22: Connection timed out", "ClusterUnreachable"),
    ],
)
def test_ssh_that_says_no_is_told_from_a_host_that_is_away(said: str, state: str) -> None:
    assert refusal(255, said, "me@login1", reached=False).state_name == state


def test_an_error_of_sbatch_over_ssh_is_not_taken_for_one_of_ssh() -> None:
    assert refusal(255, "sbatch: unrecognized option '--x'", "me@login1").state_name == "SubmissionRefused"
