"""The `crucible` command: one module per group of commands, each with `register(app)`.

Modules import only typer at their top and everything heavy inside the command functions, so that `crucible --help` and
`crucible estimate` answer at once. Exit codes: 0 done, 1 a `CrucibleError` (one line on stderr), 2 wrong usage,
130 interrupted with Ctrl-C.
"""
