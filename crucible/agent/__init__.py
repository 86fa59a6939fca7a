"""The agent: the process inside a machine that runs one attempt, from its claim to its outcome.

It starts the workload as a child process, carries its checkpoints to the store while training goes on, writes
heartbeats, watches for notices, meters time and money, and commits what was saved before the machine goes. It is the
only one on the machine that talks to the store. It imports neither torch nor Prefect nor a cloud SDK.

    attempt.py             runs an attempt: one thread owns its state and carries out what follows
    states.py              states, events and the pure transition between them
    watching.py            the threads that poll notices, write heartbeats and look at the job's records
    uploads.py             the thread that carries finished checkpoints to the store
    saving.py              how often the workload saves
    restoring.py           the newest commit that verifies, and the record of the start
    health.py              whether this machine's GPUs are fit to train; nvml.py reads them
    machine_metrics.py     how busy the machine is
    plan.py                how to run an attempt here; the attempt's scratch folder
    workload.py            the child process: its environment, its signals, its end
    output.py              keeps all that it prints; last_lines.py says why it failed
    nodes.py               several nodes: who they are, and the first one's watch over the others
    member.py              the agent of a node that is not the first; torchrun.py starts a node's processes
    exit_classification.py why an attempt ended, also by what the pool and the other nodes know
    metrics.py             reads what the workload reports
    cost_meter.py          what the attempt has cost so far
    observer.py            who is shown what happens
    notices.py             requests to stop; sources.py where they come from, notices_*.py the clouds' metadata
    entrypoint.py          first process of a container: turns SIGTERM into a stop request
"""
