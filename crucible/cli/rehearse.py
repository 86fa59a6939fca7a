"""`crucible rehearse aws | slurm | fault`: the clouds on this laptop, left running for a person to try things on."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Rehearse a cloud on this machine: no account, no cost.")


def register(root: typer.Typer) -> None:
    root.add_typer(app, name="rehearse")


@app.command()
def aws(
    boot_seconds: Annotated[float, typer.Option(help="How long a machine takes to come.", min=0)] = 2.0,
    idle_seconds: Annotated[float, typer.Option(help="How long an idle machine is kept.", min=0)] = 60.0,
) -> None:
    """Bring up an AWS here, deploy the real stack into it, put its pools on your Prefect server, and run their workers.

    Stays until Ctrl-C, telling what happens, and takes everything down again. Needs `crucible up` before.
    """
    import signal
    import time

    from crucible.rehearsal.aws.session import rehearsed_aws

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # taken down as by Ctrl-C, workers included
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    with rehearsed_aws(boot_seconds=boot_seconds, idle_seconds=idle_seconds, say=typer.echo) as cloud:
        typer.echo("\nIn another terminal:")
        typer.echo("  prefect deployment run train-nanogpt --param pool=ec2-spot --param store=aws")
        typer.echo("  crucible rehearse fault notice          # or: reclaim, drought, late_stop, …")
        for name, value in cloud.environment.items():
            typer.echo(f"  export {name}={value}")
        typer.echo("  crucible aws status                     # with these variables, and any other AWS tool\n")
        shown = 0
        try:
            while True:
                timeline = cloud.timeline()
                for entry in timeline[shown:]:
                    typer.echo(f"{entry['seconds']:9.1f} s  {entry['message']}")
                shown = len(timeline)
                time.sleep(0.5)
        except KeyboardInterrupt:
            typer.echo("\nTaking it down.")


@app.command()
def slurm() -> None:
    """Bring up a real Slurm of two nodes here, put its pool on your Prefect server, and run its worker.

    Stays until Ctrl-C, and takes everything down again. Needs root, Debian's packages slurm-wlm and munge, and
    `crucible up` before.
    """
    import signal

    from crucible.rehearsal.slurm.cluster import PARTITION, URGENT
    from crucible.rehearsal.slurm.session import rehearsed_slurm

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # taken down as by Ctrl-C, the worker included
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with rehearsed_slurm(typer.echo) as cluster:
        typer.echo("\nIn another terminal:")
        for name, value in cluster.environment.items():
            typer.echo(f"  export {name}={value}")
        typer.echo("  prefect deployment run train-nanogpt --param pool=slurm")
        typer.echo("  squeue                                  # its batch job; scancel ID cancels it")
        typer.echo(
            f"  sbatch --partition={URGENT} --exclusive --nodes=2 --wrap 'sleep 5'   # preempts what {PARTITION} runs\n"
        )
        try:
            signal.pause()
        except KeyboardInterrupt:
            typer.echo("\nTaking it down.")


@app.command()
def fault(
    name: Annotated[str, typer.Argument(help="What goes wrong; leave out for the list.")] = "",
    settings: Annotated[list[str] | None, typer.Argument(help="name=value, such as seconds=30 or on=false.")] = None,
) -> None:
    """Let something go wrong in the AWS that `crucible rehearse aws` has brought up."""
    import inspect
    import json

    from crucible.rehearsal.aws.client import ask_for_fault
    from crucible.rehearsal.aws.faults import FAULTS
    from crucible.rehearsal.aws.session import running_control_url

    if not name:
        for known, function in FAULTS.items():
            options = [p for p in inspect.signature(function).parameters if p != "cloud"]
            typer.echo(f"{known:20} {inspect.getdoc(function)}  [{', '.join(options)}]")
        return
    arguments = {key: _value(text) for key, _, text in (setting.partition("=") for setting in settings or [])}
    typer.echo(json.dumps(ask_for_fault(running_control_url(), name, **arguments)))


def _value(text: str) -> object:
    """JSON where it is JSON (30, false), text otherwise."""
    import json

    try:
        return json.loads(text)
    except ValueError:
        return text
