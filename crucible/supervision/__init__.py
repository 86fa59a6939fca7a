"""What follows an attempt: one supervisor per job, restartable at any moment.

supervisor.py        launches attempts, watches their records
retry_policy.py      what follows an attempt: a pure function of the job's history
placement_policy.py  the protocol of whoever knows better where the next attempt goes
heartbeat.py         a supervising process's own sign of life
watchdog.py          starts a supervising flow run again whose process died
"""
