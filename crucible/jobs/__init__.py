"""A job's records in the store, and what can be read from them.

records.py        the records themselves, as they lie in the store
stage_records.py  the stages before and after a training
job.py            jobs and attempts: claiming, the fence, limits, supervisors
names.py          which names are usable, new ones, those of trials
numbered.py       records with numbers, of jobs and of sweeps
limits.py         what may be spent, as a person changes it
status.py         where a job stands
metrics.py        what the attempts reported, as one history
output.py         what an attempt printed, in parts
printed.py        what all attempts printed, as one stream
"""
