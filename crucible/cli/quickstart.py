"""`crucible quickstart`: from nothing to a trained GPT, in the way a user would do it by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from crucible.formatting import duration, money

if TYPE_CHECKING:
    import httpx

    from crucible.reports.summary import JobSummary
    from crucible.store import Store

DEPLOYMENT = "train-nanogpt"
RENTED = ("ec2-spot", "ec2-on-demand", "modal")


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Local set-up")(quickstart)


def quickstart(
    preset: Annotated[str, typer.Option(help="Which shipped configuration to train.")] = "cpu-small",
) -> None:
    """Start everything on this machine, train a small GPT through the pipeline, and show the result."""
    from datetime import datetime

    from crucible.cli.local import page_link
    from crucible.config import TrainConfig
    from crucible.local import access, services
    from crucible.local.state import Home
    from crucible.local.status import StatusLines
    from crucible.local.up import up
    from crucible.store import default_store_uri, store_at

    TrainConfig.preset(preset)  # raises before anything is started
    home = Home.current()
    with StatusLines() as lines:
        state = up(home, report=lines.report)
    assert state.api_url is not None
    job = f"quickstart-{datetime.now():%Y%m%d-%H%M%S}"
    flow_run = start(services.client_settings(home, state.api_url), preset, job)
    page = page_link(home, f"{services.ui_url(state.api_url)}/runs/flow-run/{flow_run}")
    typer.echo(f"\nWatch it in the Prefect UI: {page}\n")
    store = store_at(default_store_uri())
    try:
        with access.connect(home, state.api_url, seconds=10) as api:
            summary = watch(api, flow_run, store, job)
    except KeyboardInterrupt:
        typer.echo(f"\nThe training goes on without you. Stop it: crucible jobs stop {job}", err=True)
        raise
    conclude(store, summary, preset, page)


def start(settings: dict[str, str], preset: str, job: str) -> str:
    """Start the deployment with Prefect's own command and settings; return the flow run's id. Raises `ServiceError`."""
    import os
    import re
    import subprocess
    import sys

    from crucible.errors import ServiceError

    arguments = ["deployment", "run", DEPLOYMENT, "--param", f"preset={preset}", "--param", f"job={job}"]
    typer.echo(f"\n$ prefect {' '.join(arguments)}")
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *arguments],
        env={**{k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    created = re.search(r"UUID: ([0-9a-f-]{36})", done.stdout)
    if done.returncode or created is None:
        reason = (done.stderr.strip() or done.stdout.strip() or "it printed nothing").splitlines()[-1]
        raise ServiceError(f"prefect deployment run {DEPLOYMENT} failed: {reason}; see crucible doctor")
    return created[1]


def watch(api: httpx.Client, flow_run: str, store: Store, job: str) -> JobSummary:
    """Show a progress bar until the run has ended; return the completed job. Raises `ServiceError` if it failed."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    from crucible.cli.following import ServerNotices, show
    from crucible.errors import ServiceError
    from crucible.local.follow import follow

    server = ServerNotices(job, f"crucible jobs show {job}")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("waiting for the worker", total=None, figures="")
        stage = ""
        for standing in follow(api, flow_run, store, job):
            if notice := server.new(standing.unanswered):
                console.print(notice, soft_wrap=True, markup=False, highlight=False)
            show(progress, bar, standing)
            if not console.is_terminal and standing.stage != stage:
                stage = standing.stage
                console.print(stage)
    if standing.state != "COMPLETED" or standing.summary is None:
        raise ServiceError(f"the run ended as {standing.state.lower()}: {standing.message}")
    return standing.summary


def conclude(store: Store, summary: JobSummary, preset: str, page: str) -> None:
    """Print what came out, and what to do next."""
    from crucible.jobs.job import Job
    from crucible.reports.evaluation import read_evaluation

    evaluation = read_evaluation(Job(store, summary.job_id)) or {}
    measured = (
        f"{evaluation['val_loss']:.4f} over the whole validation split, {evaluation['bits_per_byte']:.3f} bits/byte"
    )
    attempts = f"{len(summary.attempts)} attempt" + ("s" if len(summary.attempts) > 1 else "")
    rows = {
        "validation loss": measured,
        "training": f"{summary.step:,} steps in {duration(summary.seconds)}, {attempts}",
        "cost": f"{money(summary.cost_usd)}{elsewhere(store, summary, preset)}",
        "model": as_path(evaluation["uri"]),
        "Prefect UI": page,
        "report": f"crucible jobs show {summary.job_id}",
        "next": f'prefect deployment run {DEPLOYMENT} --param \'dataset={{"source": "shakespeare"}}\'',
        "stop": "crucible down",
    }
    typer.echo(f"\nIt writes:\n\n{indented(evaluation['sample'])}\n")
    for name, value in rows.items():
        typer.echo(f"{name:<17}{value}")


def as_path(uri: str) -> str:
    """A file address as a path that can be copied; any other address as it is."""
    from urllib.parse import unquote

    return unquote(uri.removeprefix("file://")) if uri.startswith("file://") else uri


def elsewhere(store: Store, summary: JobSummary, preset: str) -> str:
    """What the same training would have cost on the cheapest rented machine that the catalog knows."""
    from crucible.errors import CrucibleError
    from crucible.estimate.request import EstimateRequest, run_estimate

    try:
        vocabulary = store.read_json(f"datasets/{summary.spec.dataset}/meta.json")["vocab_size"]
        request = EstimateRequest(
            preset=preset, changes=("device=auto",), vocab_size=vocabulary, optimize_for="cost", pools=RENTED
        )
        best = run_estimate(request).recommendation.best
    except CrucibleError:  # an estimate is a courtesy here; `crucible estimate` says what stands in its way
        return ""
    if best is None:
        return ""
    offer, cost = best.estimate.offer, best.estimate.usd
    return f" here; about {money(cost.likely)} on {offer.key}, the cheapest known offer (crucible estimate)"


def indented(text: str, lines: int = 12) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines()[:lines])
