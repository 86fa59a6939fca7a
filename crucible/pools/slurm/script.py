"""The batch script of an attempt. It is the job's first process: it learns why Slurm ends the job, and passes it on.

When Slurm preempts a job it signals the job's steps at the beginning of the grace, and the batch script only at its
end. So the script starts a step that does nothing but listen and passes the signal on to the script; the script asks
Slurm why, and writes the stop file that the agent watches. This works whatever the cluster's administrators have set.

The listening step sleeps a minute at a time: where a node's daemon is killed, that sleep outlives it.

The end of the job by its time limit is known from the start, and the agent leaves before it.

The first of several nodes runs this script and with it the attempt; one `srun` starts a further node's agent on each of
the others, which Slurm signals directly.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from crucible.contract import Variable
from crucible.pools.slurm.cluster import path_in_shell

LONGEST_MARGIN_SECONDS = 120
"""How long before its end a job stops to save; a fifth of the time limit where that is less."""
LEAVE_SECONDS = 20
"""How long the further nodes have to leave once the attempt is over."""
LISTEN_SECONDS = 60
FURTHER_NODE = "python -m tasks.node"


@dataclass(frozen=True)
class BatchScript:
    """What a batch script is made from. Nothing in it is secret: everybody's administrators can read it."""

    command: str
    venv: str = ""
    """Folder of the virtual environment on the shared file system; empty: what the prologue puts on the path."""
    prologue: str = ""
    container: str = ""
    """Command in front of the attempt's own, such as `apptainer exec --nv image.sif`."""
    preemption_seconds: int = 30
    """From the beginning of a preemption's grace to SIGKILL."""
    kill_seconds: int = 30
    """From SIGTERM to SIGKILL otherwise (the cluster's KillWait)."""
    grace_seconds: int = 120
    """How long the worker waits when it asks for the end."""

    def text(self) -> str:
        """The script."""
        path = ""
        if self.venv:
            path = f"VIRTUAL_ENV={path_in_shell(self.venv)}\nPATH=$VIRTUAL_ENV/bin:$PATH\nexport PATH VIRTUAL_ENV"
        return _SCRIPT.format(
            prologue=self.prologue.strip(),
            path=path,
            command=f"{self.container} {self.command}".strip(),
            preemption=self.preemption_seconds,
            kill=self.kill_seconds,
            grace=self.grace_seconds,
            others=self._others(),
            margin=LONGEST_MARGIN_SECONDS,
            leave=LEAVE_SECONDS,
            listen=LISTEN_SECONDS,
            stop_file=Variable.STOP_FILE.value,
            ends_at=Variable.MACHINE_ENDS_AT.value,
            margin_variable=Variable.LIFETIME_MARGIN_SECONDS.value,
        )

    def _others(self) -> str:
        """What a node but the first one runs, as one word of the shell."""
        folder = 'work=$work-$SLURM_PROCID; mkdir -p -m 700 "$work"\n' if self.container else ""
        return shlex.quote(
            f"{folder}{Variable.NODE_RANK}=$((SLURM_PROCID + 1)); export {Variable.NODE_RANK}\n"
            f"unset {Variable.STOP_FILE}\n"
            f'mkdir -p -m 700 "$CRUCIBLE_HOME"\n'
            f"exec {self.container} {FURTHER_NODE}"
        )


def container_command(runtime: str, image: str, options: list[str]) -> str:
    """Apptainer's command for an image; the stop file's folder and the working directory are visible in it."""
    return f'{shlex.join([runtime, "exec", *options])} --bind "$work" {path_in_shell(image)}'


_SCRIPT = """\
#!/bin/sh
# One attempt of a flow run, submitted by Crucible's worker. What is secret is in the environment, not here.
{prologue}
{path}
work=$(mktemp -d "${{TMPDIR:-/tmp}}/crucible-job-XXXXXX") || exit 1
{stop_file}=$work/stop.json
export {stop_file}

# What the attempt needs on this node goes to its own disk, not to a home that all nodes share.
if [ -z "$CRUCIBLE_HOME" ]; then
  CRUCIBLE_HOME=${{TMPDIR:-/tmp}}/crucible-$(id -u)
  mkdir -p -m 700 "$CRUCIBLE_HOME" && [ -O "$CRUCIBLE_HOME" ] || CRUCIBLE_HOME=$work/home
  export CRUCIBLE_HOME
fi

# When the time limit ends the job. A job without one runs until it is done.
end=$SLURM_JOB_END_TIME  # newer releases set it
if [ -z "$end" ]; then
  end=$(squeue -h -j "$SLURM_JOB_ID" -o %e 2>/dev/null)
  case $end in [0-9]*) end=$(date -d "$end" +%s) ;; *) end= ;; esac
fi
if [ -n "$end" ]; then
  margin=$(( (end - $(date +%s)) / 5 ))
  [ "$margin" -lt {margin} ] || margin={margin}
  [ "$margin" -gt 1 ] || margin=1
  {ends_at}=$end {margin_variable}=$margin
  export {ends_at} {margin_variable}
fi

write_stop() {{  # source, reason, seconds until SIGKILL
  printf '{{"source": "%s", "reason": "%s", "deadline": %s}}' "$1" "$2" $(( $(date +%s) + $3 )) >"$work/stop.partial" &&
    mv "$work/stop.partial" "${stop_file}"
}}
explain() {{
  for pause in 0 1 1; do  # a busy controller answers late, or not at once
    sleep $pause
    case $(scontrol show job "$SLURM_JOB_ID" 2>/dev/null) in
    *PreemptTime=[0-9]*) write_stop slurm "Slurm preempts job $SLURM_JOB_ID" {preemption}; return ;;
    *Reason=TimeLimit*|*JobState=TIMEOUT*)
      write_stop slurm "Slurm job $SLURM_JOB_ID reached its time limit" {kill}; return ;;
    *JobState=COMPLETING*|*JobState=CANCELLED*)
      write_stop person "Slurm job $SLURM_JOB_ID was cancelled with scancel" {kill}; return ;;
    esac
  done
  write_stop slurm "Slurm job $SLURM_JOB_ID was asked to stop" {grace}
}}
trap explain TERM
trap 'write_stop person "cancelled in Prefect" {grace}' USR1

srun --overlap --nodes=1 --ntasks=1 --gres=none --quiet --nodelist="$SLURMD_NODENAME" sh -c '
  trap "kill -TERM $1; exit 0" TERM
  while :; do sleep {listen} & wait $!; done' listen $$ >/dev/null 2>&1 &
listener=$!

others=
if [ "${{SLURM_JOB_NUM_NODES:-1}}" -gt 1 ]; then
  CRUCIBLE_NODES=$SLURM_JOB_NUM_NODES
  export CRUCIBLE_NODES work
  further=$((CRUCIBLE_NODES - 1))
  srun --relative=1 --nodes=$further --ntasks=$further --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=0 --quiet \
    ${{SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}} sh -c {others} </dev/null &
  others=$!
fi

{command} &
child=$!
while :; do
  wait "$child"
  code=$?
  kill -0 "$child" 2>/dev/null || break  # a signal ends the wait, not the attempt
done
if [ -n "$others" ]; then  # they leave when they see that the attempt is over
  (sleep {leave}; kill "$others") 2>/dev/null &
  wait "$others"
fi
kill "$listener" 2>/dev/null
rm -rf "$work"
exit "$code"
"""
