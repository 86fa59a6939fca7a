"""`crucible drill`: interrupt a real training on purpose and see that nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from crucible.rehearsal.drill.drill import Drill, DrillResult
    from crucible.rehearsal.drill.stage import Stage
    from crucible.rehearsal.drill.workload import ScriptFindings


def register(app: typer.Typer) -> None:
    app.command("drill")(drill)


def drill(
    kills: Annotated[int, typer.Option(min=1, help="How many times to interrupt the training.")] = 6,
    seed: Annotated[int, typer.Option(help="Decides which faults strike, in which order, at which steps.")] = 7,
    pool: Annotated[
        str, typer.Option(help="Which pool to drill: local, docker-gpu, ec2-spot, ec2-on-demand, modal or slurm.")
    ] = "local",
    faults: Annotated[
        str, typer.Option(help="Only these faults, with commas, such as pause-agent,pause-in-start. Default: all.")
    ] = "",
    s3: Annotated[bool, typer.Option("--s3", help="Keep everything in S3 (a local stand-in, over HTTP).")] = False,
    script: Annotated[
        Path | None,
        typer.Option(help="A folder with a crucible.yaml: drill the script in it.", file_okay=False, exists=True),
    ] = None,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND…", help="With --script: run this instead of what crucible.yaml names."),
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Work here and keep it; default: a temporary folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a small job through a real server, worker and pool while a seeded plan interrupts it, and compare the final
    weights with those of an undisturbed run.

    It has a server, a worker and a store of its own; what you have running is left alone. Exit code 1 when a committed
    step was lost, the weights differ, or a fault could not strike. A script of yours may end with other weights, if it
    resumes less exactly than Crucible's trainer; the result says so.
    """
    import json
    import signal
    import tempfile

    from rich.console import Console
    from rich.live import Live

    from crucible.errors import ConfigError
    from crucible.rehearsal.drill.drill import Drill
    from crucible.rehearsal.drill.plan import chosen
    from crucible.rehearsal.drill.script import OwnScript

    stage_of_pool = _stages().get(pool)
    if stage_of_pool is None:
        raise ConfigError(f"pool: {pool!r} cannot be drilled; choose {', '.join(_stages())}")
    if s3 and pool not in ("local", "modal", "slurm"):
        raise ConfigError(f"--s3: {pool} has a store of its own in the drill; leave the option out")
    if command and script is None:
        raise ConfigError("a command is only used with --script FOLDER")
    own = OwnScript(script, command or []) if script else None
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # its set-up is taken down as by Ctrl-C
    with tempfile.TemporaryDirectory(prefix="crucible-drill-", ignore_cleanup_errors=True) as temporary:
        place = (folder or Path(temporary)).absolute()
        console.print(f"seed {seed}, {kills} faults, in {place}")
        with Live(console=console, refresh_per_second=2) as live:
            live.update("bringing up a server, a worker and a store")
            with stage_of_pool(place, s3) as stage:
                if own:
                    stage.faults = own.faults(stage.faults)
                if faults:
                    stage.faults = chosen(stage.faults, faults)
                result = Drill(stage, kills, seed, lambda running: live.update(_table(running)), own).run()
            live.update(_table(result))
        if not console.is_terminal:
            console.print()  # rich leaves the last line of a live display open in a pipe
    if as_json:
        typer.echo(json.dumps(result.as_json()))
    else:
        typer.echo(_summary(result))
    if not result.passed:
        raise typer.Exit(1)


def _stages() -> dict[str, Callable[[Path, bool], AbstractContextManager[Stage]]]:
    """How the set-up for each pool is brought up; what it takes is imported only then."""

    def local(folder: Path, s3: bool) -> AbstractContextManager[Stage]:
        from crucible.rehearsal.drill.stage import local_stage

        return local_stage(folder, s3=s3)

    def docker(folder: Path, s3: bool) -> AbstractContextManager[Stage]:
        from crucible.rehearsal.drill.docker_stage import docker_stage

        return docker_stage(folder, s3=s3)

    def ec2(pool: str) -> Callable[[Path, bool], AbstractContextManager[Stage]]:
        def stage(folder: Path, s3: bool) -> AbstractContextManager[Stage]:
            from crucible.rehearsal.aws.stage import ec2_stage

            return ec2_stage(folder, pool)

        return stage

    def modal(folder: Path, s3: bool) -> AbstractContextManager[Stage]:
        from crucible.rehearsal.modal.drill import modal_stage

        return modal_stage(folder, s3=s3)

    def slurm(folder: Path, s3: bool) -> AbstractContextManager[Stage]:
        from crucible.rehearsal.slurm.drill import slurm_stage

        return slurm_stage(folder, s3=s3)

    return {
        "local": local,
        "docker-gpu": docker,
        "ec2-spot": ec2("ec2-spot"),
        "ec2-on-demand": ec2("ec2-on-demand"),
        "modal": modal,
        "slurm": slurm,
    }


def _table(drill: Drill | DrillResult) -> RenderableType:
    from rich.console import Group
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))  # 80 columns hold the longest fault and end
    for column in ("attempt", "fault", "at", "saved", "resumed", "repeated", "lost", "seconds", "end"):
        table.add_column(column, justify="left" if column in ("fault", "end") else "right", no_wrap=True)
    for strike in drill.strikes:
        struck = strike.struck_at is not None
        table.add_row(
            str(strike.attempt or ""),
            strike.fault,
            str(strike.step or "") if struck else "",
            str(strike.committed_step) if struck else "",
            _or_blank(strike.resumed_step),
            str(strike.steps_repeated) if strike.resumed_step is not None else "",
            str(strike.committed_steps_lost) if strike.resumed_step is not None else "",
            _or_blank(strike.seconds_to_new_step),
            strike.end_reason,
        )
    phase = getattr(drill, "phase", "")
    return Group(table, phase) if phase else table


def _or_blank(value: float | None) -> str:
    return "" if value is None else str(value)


def _summary(result: DrillResult) -> str:
    from itertools import groupby

    pools = " → ".join(pool for pool, _ in groupby(result.pools))
    lines = [
        f"{result.struck} of {result.kills} faults over {result.attempts} attempts, seed {result.seed}, "
        f"pool {result.pool}, store {result.store}",
        f"committed steps lost: {result.committed_steps_lost}   steps repeated: {result.steps_repeated} "
        f"of {result.steps}   time: {result.seconds:.0f} s (undisturbed {result.undisturbed_seconds:.0f} s)",
        f"cost of all attempts: ${result.cost_usd:.4f}   pools: {pools}",
        *(_of_script(result.script) if result.script else _weights(result)),
        "PASSED" if result.passed else "FAILED: " + "; ".join(result.failures),
    ]
    return "\n".join(lines)


def _weights(result: DrillResult) -> list[str]:
    same = "identical" if result.weights_sha256 == result.undisturbed_sha256 else "DIFFERENT"
    return [
        f"final weights: {same}",
        f"  disturbed   {result.weights_sha256 or 'none'}",
        f"  undisturbed {result.undisturbed_sha256}",
    ]


def _of_script(found: ScriptFindings) -> list[str]:
    from crucible.formatting import duration

    intervals = found.most_steps_repeated / max(1, found.interval_steps)
    whole = f"{len(found.broken)} NOT WHOLE" if found.broken else "all whole"
    return [
        f"{found.folder} saves every {found.interval_steps} steps ({duration(found.interval_seconds)}); "
        f"repeated after one fault: {found.most_steps_repeated} steps at most, {intervals:.1f} of its intervals",
        f"checkpoints committed: {found.checkpoints_read}, {whole}",
        "resume: exact, the final tensors are those of the undisturbed run"
        if found.exact
        else f"resume: NOT EXACT: {found.difference}",
    ]
