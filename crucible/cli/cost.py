"""`crucible cost`: what was spent, attempt by attempt or summed by pool, project, owner and more."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crucible.errors import ConfigError
from crucible.formatting import UNKNOWN, counted, print_table, rough_duration

if TYPE_CHECKING:
    from datetime import datetime

    from crucible.billing.costs import AttemptCost


def register(app: typer.Typer) -> None:
    app.command("cost")(cost)


def cost(
    job: Annotated[str | None, typer.Argument(help="Only this job and its stages, attempt by attempt.")] = None,
    by: Annotated[
        str | None, typer.Option(help="Sum by job, sweep, project, owner, stage, pool, instance, gpu, day or month.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="Only attempts since 7d, 24h or 2026-05-01.")] = None,
    store: Annotated[str | None, typer.Option(help="Store with the jobs. Default: the local one.")] = None,
    reconcile: Annotated[
        bool, typer.Option("--reconcile", help="Compare with what AWS and Modal have billed (default: 7 days).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print one CSV line per attempt.")] = False,
) -> None:
    """Show what attempts have cost, what they would have cost on demand, and what would have been cheaper."""
    from datetime import UTC, datetime, timedelta

    from crucible.billing import costs
    from crucible.catalog.offers import load_catalog
    from crucible.moments import moment_ago
    from crucible.store import existing_store

    if as_json and as_csv:
        raise ConfigError("--json and --csv exclude each other; give one of them")
    group = by or ("job" if job is None else None)
    if group is not None and group not in costs.GROUPS:
        raise ConfigError(f"by is {group!r}: it must be one of {', '.join(costs.GROUPS)}")
    start = None if since is None else moment_ago(since, datetime.now(UTC))
    offers = {offer.key: offer for offer in load_catalog()}
    found = costs.attempt_costs(existing_store(store), offers, since=start, job=job, on_damage=_warn)
    if reconcile:
        _print_reconciled(found, start or datetime.now(UTC) - timedelta(days=7), datetime.now(UTC), as_json)
        return
    if as_csv:
        typer.echo(costs.as_csv(found), nl=False)
        return
    if as_json:
        groups = [] if group is None else [entry.to_dict(group) for entry in costs.breakdown(found, group)]
        total = f"{costs.total_micro_usd(found) / costs.MICRO:.6f}"
        values: dict[str, Any] = {"attempts": costs.as_rows(found), "groups": groups, "total_usd": total}
        values |= {"saved_share": costs.saved_share(found), "advice": costs.advice(found)}
        typer.echo(json.dumps(values, indent=1))
        return
    _print(found, group)


def _warn(message: str) -> None:
    typer.echo(f"note: {message}", err=True)


def _print(found: list[AttemptCost], group: str | None) -> None:
    from crucible.billing import costs

    if not found:
        typer.echo("no attempt has cost anything yet")
        return
    if group is None:
        headings = ["stage", "attempt", "pool", "instance", "began", "time", "USD/h", "USD", "end"]
        rows = [
            [
                entry.stage,
                str(entry.attempt),
                entry.pool,
                entry.instance or UNKNOWN,
                f"{entry.started_at:%Y-%m-%d %H:%M}",
                rough_duration(entry.seconds / 3600),
                f"{entry.usd_per_hour:.4f}",
                f"{entry.usd:.6f}",
                entry.end_reason,
            ]
            for entry in found
        ]
        print_table(headings, rows, numbers=(6, 7))
    else:
        rows = [
            [
                entry.name,
                str(entry.jobs),
                str(entry.attempts),
                rough_duration(entry.seconds / 3600),
                f"{entry.micro_usd / costs.MICRO:.6f}",
                f"{entry.share:.0%}",
                f"{entry.saved_share:.0%}",
            ]
            for entry in costs.breakdown(found, group)
        ]
        print_table([group, "jobs", "attempts", "time", "USD", "share", "saved"], rows, numbers=range(1, 7))
    total, saved = costs.total_micro_usd(found) / costs.MICRO, costs.saved_share(found)
    below = f", {saved:.0%} below on-demand" if saved else ""
    typer.echo(f"total ${total:.6f} over {counted(len(found), 'attempt')}{below}")
    for sentence in costs.advice(found):
        typer.echo(f"note: {sentence}")


def _print_reconciled(found: list[AttemptCost], since: datetime, until: datetime, as_json: bool) -> None:
    from dataclasses import asdict

    from crucible.reports.reconciliation import reconcile

    entries, messages = reconcile([cost for cost in found if cost.started_at >= since], since, until)
    if as_json:
        typer.echo(json.dumps({"jobs": [asdict(entry) for entry in entries], "messages": messages}, indent=1))
        return
    for entry in entries:
        typer.echo(
            f"{entry.cloud:6} {entry.job:32} attempts ${entry.attempts_usd:.6f}  billed ${entry.billed_usd:.6f}  "
            f"difference ${entry.difference_usd:+.6f}"
        )
    for message in messages:
        typer.echo(message, err=True)
