"""Runs a foreign script as a workload: `python -P -m crucible.adapter --script script.json`.

Between the agent and a script that knows nothing of Crucible. To the agent it is a workload that follows
`docs/workload-contract.md`; to the script it is nothing at all: the script's own checkpoint files are copied once they
are whole, put back before a restart, and what it prints or logs becomes metrics.

    adapter.py    the life of the script: restore, start, watch, stop, exit code
    child.py      the script's processes: start, signals, what they print
    lines.py      printed bytes to lines: progress bars, lines without end
    taking.py     takes checkpoint files when they are whole
    contract_saves.py  the same for a script that follows the contract by itself
    whole.py      whether a file is whole: zip, safetensors, anything else
    copying.py    copies of files and folders, as clones where the file system can
    steps.py      which step a checkpoint file is of; read_step.py looks into the file, in a process of its own
    restoring.py  puts a checkpoint's files back, and keeps a finished script's output
    metrics.py    metrics from what the script prints and from the files it writes
    tensorboard.py  reads TensorBoard's event files
    hooks/        sitecustomize.py: another seed after each restart, if asked for; Lightning's printed bar

It imports neither torch nor anything of the agent, and never loads a pickle.
"""
