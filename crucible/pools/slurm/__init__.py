"""The pool `slurm`: every attempt of a flow run is a batch job on a Slurm cluster.

shell.py          runs command lines here or, over ssh, on a login node
cluster.py        Slurm's commands as the worker uses them; reads their text output
script.py         the batch script of an attempt: why Slurm ends it, and when, passed on to the agent
configuration.py  the pool's variables
failures.py       what Slurm's states, reasons and refusals mean for a flow run
worker.py         the Prefect worker
pool.py           the pool and its deployment on a Prefect server; setup.py writes it from what the cluster says
"""
