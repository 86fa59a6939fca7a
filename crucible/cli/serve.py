"""`crucible serve`: an OpenAI-compatible server for a model that was trained here."""

from __future__ import annotations

from typing import Annotated

import typer

from crucible.cli.records import JobArgument, StoreOption, open_job, open_store, store_option


def register(app: typer.Typer) -> None:
    app.command()(serve)


def serve(
    job: JobArgument,
    step: Annotated[int | None, typer.Option(help="The model evaluated at this step; default: the newest.")] = None,
    port: Annotated[int, typer.Option(help="The server's port.", min=1, max=65535)] = 8000,
    host: Annotated[
        str, typer.Option(help="The address it listens on; anyone who reaches it may use it.")
    ] = "127.0.0.1",
    idle: Annotated[str, typer.Option(help="Stop when nobody has asked for so long: 30min, 2h.")] = "30min",
    max_cost_usd: Annotated[float | None, typer.Option(help="Stop before it costs more.")] = None,
    max_hours: Annotated[float | None, typer.Option(help="Stop after so many hours.")] = None,
    name: Annotated[str, typer.Option(help="The name of the job that serves.")] = "",
    follow: Annotated[bool, typer.Option("--follow/--detach", help="Stay until it stops, or return at once.")] = True,
    store: StoreOption = None,
) -> None:
    """Serve a job's model with an OpenAI-compatible server, as a job of its own."""
    import tempfile
    from pathlib import Path

    from crucible.cli import run, script_options
    from crucible.local import access
    from crucible.local.serving import ServeRequest, plan_serving
    from crucible.moments import time_span

    request = ServeRequest(
        step=step,
        name=name,
        host=host,
        port=port,
        idle_seconds=time_span(idle, "idle").total_seconds(),
        max_cost_usd=max_cost_usd,
        max_hours=max_hours,
        store=store or "default",
    )
    with tempfile.TemporaryDirectory(prefix="crucible-serve-") as folder:
        planned = plan_serving(open_job(open_store(store), job), request, Path(folder))
        with access.connect_here() as api:
            flow_run, opened = script_options.start(api, planned, request.store)
    typer.echo(f"model     {job}, at http://{host}:{port}/v1 once it has started", err=True)
    typer.echo(f"stop it   crucible jobs stop {planned.job}{store_option(opened)}", err=True)
    if follow:
        run.conclude(run.follow_run(flow_run, opened, planned.job), opened, planned.job, flow_run, as_json=False)
