"""Checkpoints in the store.

manifest.py      what a checkpoint is: its name, its files, its losses
local_files.py   the files of a checkpoint folder on this machine
commits.py       commit, list and verify
restore.py       download the newest one that verifies
retention.py     delete those that nobody needs
initial.py       the weights that a job starts from
forking.py       the copy of a checkpoint that a new job starts at
sharing.py       one file of a checkpoint or a model, for others
"""
