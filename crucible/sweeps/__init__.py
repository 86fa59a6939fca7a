"""Sweeps: a search over configurations whose trials are jobs.

    space.py        what may be changed, and everything that can be wrong with it
    sampling.py     the values of a trial
    schedules.py    rungs: who is trained further
    planner.py      what comes next, as a function of the results
    records.py      the records in the store
    searchable.py   which settings a search may change
    search.py       a search as a person asks for it
    kinds.py        what a trial is: a configuration of the trainer, or a script
    trials.py       where a trial stands, from its job's records
    limits.py       when a sweep stops, and what it reports then
    sweep.py        all of it together
    leaderboard.py  the table of trials

Nothing here knows Prefect; Optuna and pandas are imported only where they are used.
"""

from crucible.sweeps.records import SweepLimits, SweepSpec, SweepStatus, TrialRecord
from crucible.sweeps.space import Space
from crucible.sweeps.sweep import Sweep
from crucible.sweeps.trials import Trial

__all__ = ["Space", "Sweep", "SweepLimits", "SweepSpec", "SweepStatus", "Trial", "TrialRecord"]
