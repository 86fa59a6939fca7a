"""A folder of code as it travels: which files, packed by content, unpacked for every attempt, and its dependencies.

    selection.py     which files of a folder travel, and which stay behind
    packing.py       the selected files as one archive whose digest is its content's
    data.py          large files, carried one by one by their content
    pruning.py       packages and data that no record names any more
    dockerfile.py    whether the folder's Dockerfile counts
    command.py       whether the command can run in it
    suggest.py       a first crucible.yaml for it
    workplace.py     on the machine: a fresh copy of the code, with its data in place
    environments.py  on the machine: the dependencies, installed once for each content

Nothing here knows Prefect; the store is all that is needed.
"""
