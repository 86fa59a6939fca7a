"""Checkpoints in the store.

manifest.py      what a checkpoint is: its name, its files, its losses
local_files.py   the files of a checkpoint folder on this machine
commits.py       commit, list and verify
restore.py       download the newest one that verifies
retention.py     delete those that nobody needs
"""
