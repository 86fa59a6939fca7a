"""The pool `skypilot`: every attempt of a flow run is a cluster of one machine that SkyPilot brings up, on any of its
clouds, and takes down again.

bridge.py         SkyPilot's SDK in its own environment, one JSON object per line; knows nothing of Crucible
client.py         starts the bridge and asks it
environment.py    where SkyPilot's environment is; makes it
configuration.py  the pool's variables, and the task that they make
offers.py         from the name of an offer to infra, instance type, GPUs and spot
failures.py       what SkyPilot's errors and ends mean for a flow run
worker.py         the Prefect worker
pool.py           the pool and its deployments on a Prefect server
"""
