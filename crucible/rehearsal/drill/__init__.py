"""The drill: a real training, interrupted on purpose by a seeded plan, compared with one that nobody disturbed.

scene.py      what the drill can see and reach: the job's records, the processes behind them
faults.py     what can be done to them
plan.py       which faults, in which order, from a seed
stage.py      the local set-up the drill runs on, its own from server to store
workload.py   what is trained: Crucible's own trainer, or anything else that can be compared with itself
script.py     a script of your own; running_script.py finds it as it saves, tensors.py compares what it saved
drill.py      the run and its result
"""
