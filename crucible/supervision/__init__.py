"""What follows an attempt: one supervisor per job, restartable at any moment.

snapshot.py          one look at a job's records, typed
attempt_policy.py    what to do about an attempt that is not over: a pure function of a snapshot
retry_policy.py      what follows an attempt that is over: a pure function of the job's history
placement_policy.py  the protocol of whoever knows better where the next attempt goes
launcher.py          the protocols of what a supervisor needs from outside
supervisor.py        the main loop: takes a look, asks the policies, carries out what they decide
watch.py             watches an attempt until it has an outcome
stopping.py          saves and ends the attempt of a job that stops
context.py           a job as its supervisor holds it: records with retries, waits, listeners
stop_job.py          stopping a job from outside
heartbeat.py         a supervising process's own sign of life
queue_watch.py       reports runs that wait for long
restarter.py         starts a supervising flow run again whose process died
named_stores.py      the stores that flow runs name besides the default one
other_stores.py      the restarter's work in them
watchdog.py          keeps the restarter running
prefect_server.py    which Prefect server this is
"""
