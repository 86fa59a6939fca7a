"""Checkpoints in the store: commit, list, verify, restore, retain."""
