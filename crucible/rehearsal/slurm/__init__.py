"""A real Slurm on this machine, from Debian's packages, for rehearsals, drills and tests.

cluster.py   the controller and its nodes, each a process that can be killed and started again
drill.py     the set-up of `crucible drill --pool slurm`
faults.py    what the drill does to it
session.py   `crucible rehearse slurm`
"""
