"""`crucible cleanup`: free what nobody needs any more."""

from __future__ import annotations

from typing import Annotated

import typer

from crucible.cli.records import JsonOption, StoreOption, open_store, print_json
from crucible.errors import ConfigError
from crucible.formatting import counted, print_table, size

KINDS = "checkpoints, logs, packages, uploads, shared or scratch"


def register(app: typer.Typer) -> None:
    app.command("cleanup")(cleanup)


def cleanup(
    days: Annotated[float, typer.Option(min=0, max=36500, help="Jobs that ended before keep their best model.")] = 30,
    package_days: Annotated[
        float, typer.Option(min=0, max=36500, help="Keep packages of code and data used within so many days.")
    ] = 7,
    quota_gb: Annotated[float, typer.Option(min=0.001, help="For each project; a warning at 80 %.")] = 100,
    only: Annotated[list[str] | None, typer.Option(help=f"Only {KINDS}; may be repeated.")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Remove it. Without: only say what would go.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what could be freed, and with --apply free it.

    Old jobs keep their best model, records, metrics and model cards. Running jobs and what a model card names stay.
    Packages of code and data that no job names go, and unfinished uploads and folders of killed attempts.
    """
    from crucible.cleanup.plan import GB, CleanupRequest, clean_up, plan_cleanup
    from crucible.cleanup.removal import Kind
    from crucible.home import crucible_home

    try:
        kinds = frozenset(map(Kind, only)) if only else frozenset(Kind)
    except ValueError as error:
        raise ConfigError(f"--only: {error}; it must be {KINDS}") from None
    opened = open_store(store)
    request = CleanupRequest(days=days, package_days=package_days, quota_bytes=quota_gb * GB, kinds=kinds)
    plan = plan_cleanup(opened, request, crucible_home() / "scratch")
    result = clean_up(plan) if apply else None
    removals = plan.removals if result is None else result.removed
    freed = sum(removal.bytes for removal in removals)
    if as_json:
        entries = [{"kind": r.kind, "name": r.name, "bytes": r.bytes, "why": r.why} for r in removals]
        uses = [{"project": u.project, "bytes": u.bytes, "percent": round(u.percent, 1)} for u in plan.use]
        print_json(
            {
                "removed": apply,
                "bytes": freed,
                "removals": entries,
                "projects": uses,
                "warnings": [*plan.warnings, *plan.left_alone],
            }
        )
        return
    if removals:
        print_table(["kind", "what", "size", "why"], [[r.kind, r.name, size(r.bytes), r.why] for r in removals], (2,))
    for warning in [*plan.warnings, *(f"left alone: {what}" for what in plan.left_alone)]:
        typer.echo(f"warning: {warning}", err=True)
    done = "removed" if apply else "would be removed; --apply does it"
    typer.echo(f"{counted(len(removals), 'thing')}, {size(freed)}, {done} ({opened.uri})")
