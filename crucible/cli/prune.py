"""`crucible prune`: remove code packages and data that no job needs any more."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from crucible.cli.records import JsonOption, StoreOption, open_store, print_json
from crucible.cli.run import PANEL
from crucible.formatting import counted, print_table, size


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=PANEL)(prune)


def prune(
    days: Annotated[float, typer.Option(min=0, max=36500, help="Keep what a run used within so many days.")] = 7.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go, and remove nothing.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove packages of code and files of data from the store that no job and no sweep names.

    Jobs, checkpoints and datasets stay as they are.
    """
    from crucible.code.pruning import find_unused, remove

    opened = open_store(store)
    found = find_unused(opened, timedelta(days=days))
    if not dry_run:
        for entry in found:
            remove(opened, entry)
    if as_json:
        entries = [{"name": e.name, "bytes": e.bytes, "used_at": e.used_at.isoformat()} for e in found]
        print_json({"removed": not dry_run, "bytes": sum(e.bytes for e in found), "unused": entries})
        return
    if found and dry_run:
        rows = [[e.name[:40], size(e.bytes), f"{e.used_at:%Y-%m-%d %H:%M}"] for e in found]
        print_table(["unused", "size", "last used"], rows)
    done = "would be removed" if dry_run else "removed"
    typer.echo(f"{counted(len(found), 'object')}, {size(sum(e.bytes for e in found))}, {done} from {opened.uri}")
