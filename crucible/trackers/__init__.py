"""Trackers: the curves of jobs in TensorBoard, MLflow, Weights & Biases and Trackio.

    config.py      which tracker, where: a `Tracker` block or a name such as `wandb`
    points.py      which rows of a job's metrics are final, so that no step is ever sent twice
    follow.py      reads a job's records and carries new rows to one tracker
    backends/      one file a tracker
    process.py     the process that does it, started by whoever supervises the job
    records.py     how far each tracker is, and the link to the run
    view.py        event files of several jobs for one TensorBoard

A tracker reads what is in the store and nothing else. It runs in a process of its own beside the supervisor, never on
the machine that trains: one that is down, slow or broken costs one log line, and it catches up later. The job's id is
the run's id, so that five attempts are one run.
"""
