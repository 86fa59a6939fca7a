"""The local set-up: a Prefect server, a worker and a watchdog on this machine, started and stopped as one.

Prefect imports `deployment_names` from this package in every process that imports Prefect, so nothing here may be
imported at the top that is slow to load.
"""
