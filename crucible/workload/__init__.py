"""What a training script of your own may import: exact resume in two lines, with or without Crucible around.

    run = crucible.workload.resume_or_start(model, optimizer)  # once everything is made
    ...
    run.maybe_save(step)  # at the end of every step

`crucible.workload.huggingface`, `crucible.workload.lightning`: callbacks for trainers that have a loop of their own.
Importing this needs only the standard library.
"""

from crucible.workload.run import Run, resume_or_start

__all__ = ["Run", "resume_or_start"]
