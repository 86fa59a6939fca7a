"""The supervisor inside a machine: one attempt, from its claim to its outcome.

The agent starts the workload as a child process, carries its checkpoints to the store while training goes on, beats,
watches for notices, meters time and money, and sees to it that what was saved is committed before the machine goes. It
is the only one on the machine that talks to the store. It imports neither torch nor Prefect nor a cloud SDK.

    attempt.py      the attempt from claim to outcome
    observer.py     who hears what happens
    workload.py     the child process: its environment, its signals, its end
    saving.py       carries finished checkpoints to the store and chooses the interval
    metrics.py      reads what the workload reports
    notices.py      what can ask an attempt to stop, and notices_ec2.py for EC2's metadata
    init.py         first process of a container: turns SIGTERM into a stop request
    parent_death_guard.py  lets the workload die with the agent
"""
