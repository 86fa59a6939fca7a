"""Serve an exported model with an OpenAI-compatible server: `python -m crucible.serving NAME`.

It is the workload of a job like any other, so that attempts, costs, caps, logs and stops are those of jobs.
`engines.py` says which server runs; `__main__.py` starts it, watches it, and stops it when nobody asks for anything.
"""
