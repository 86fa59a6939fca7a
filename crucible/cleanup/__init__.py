"""What a store holds that nobody needs any more, and removing it.

plan.py       everything that may go, and carrying it out
jobs.py       checkpoints and logs of jobs that ended long ago
leftovers.py  unfinished uploads, expired shares, and folders of attempts that were killed on this machine
quota.py      how much each project holds

Packages of code and data are found by `crucible.code.pruning`. Whether something may go follows from the records alone,
and nothing that is removed changes what follows for the rest: a clean-up that is interrupted and run again ends in the
same place.
"""
