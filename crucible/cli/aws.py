"""`crucible aws up | plan | pools | worker | status | stop-all | down`: GPU pools on AWS."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from crucible.pools.aws.session import Aws
    from crucible.pools.aws.stack import Plan, Progress, StackState

app = typer.Typer(no_args_is_help=True, help="GPU pools on AWS: EC2 spot and on-demand through ECS.")

Region = Annotated[str | None, typer.Option(help="AWS region; default as the AWS CLI has it.", show_default=False)]
Profile = Annotated[str | None, typer.Option(help="AWS profile; default as the AWS CLI has it.", show_default=False)]
Name = Annotated[str, typer.Option("--stack", help="Name of the stack; several can live side by side.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Types = Annotated[str | None, typer.Option(help="GPU instance types, one to six, separated by commas.")]
MaxSpot = Annotated[int | None, typer.Option(help="The most spot instances at once.", min=0)]
MaxOnDemand = Annotated[int | None, typer.Option(help="The most on-demand instances at once.", min=0)]
Project = Annotated[str | None, typer.Option(help="Cost tag crucible:project.")]
Owner = Annotated[str | None, typer.Option(help="Cost tag crucible:owner.")]
Budget = Annotated[float | None, typer.Option("--budget", help="Monthly EC2 budget in USD to be warned about.", min=1)]
Email = Annotated[str | None, typer.Option(help="Who gets the budget's mails.")]
Vpc = Annotated[str | None, typer.Option(help="Existing VPC; default is one of its own.")]
Subnets = Annotated[str | None, typer.Option(help="With --vpc: its subnets, separated by commas.")]
Cidr = Annotated[str | None, typer.Option(help="Address range of the VPC that is created.")]
Parameter = Annotated[list[str] | None, typer.Option("--set", help="Any parameter of the template: Name=value.")]
Image = Annotated[str | None, typer.Option(help="Container image; default is the newest in the stack's repository.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(root: typer.Typer) -> None:
    root.add_typer(app, name="aws")


@app.command()
def up(
    region: Region = None,
    profile: Profile = None,
    name: Name = "crucible",
    types: Types = None,
    max_spot: MaxSpot = None,
    max_on_demand: MaxOnDemand = None,
    project: Project = None,
    owner: Owner = None,
    budget: Budget = None,
    email: Email = None,
    vpc: Vpc = None,
    subnets: Subnets = None,
    cidr: Cidr = None,
    settings: Parameter = None,
    image: Image = None,
    yes: Yes = False,
) -> None:
    """Create or update the stack, release the emergency stop, and put its pools on the Prefect server."""
    from crucible.pools.aws import emergency_stop, stack
    from crucible.pools.aws.parameters import stack_parameters
    from crucible.pools.aws.session import connect

    parameters = stack_parameters(
        types=types,
        max_spot=max_spot,
        max_on_demand=max_on_demand,
        project=project,
        owner=owner,
        budget=budget,
        email=email,
        vpc=vpc,
        subnets=subnets,
        cidr=cidr,
        settings=settings or [],
    )
    aws = connect(region, profile)
    _introduce(aws)
    plan = stack.plan(aws, name, parameters)
    _show(plan)
    if plan.changes:
        if not yes:
            try:
                typer.confirm("Make these changes?", abort=True)
            except typer.Abort:  # no, Ctrl-C, or nobody there to ask
                stack.discard(aws, plan)
                raise
        state = stack.apply(aws, plan, _Ticker(len(plan.changes)))
    else:
        state = stack.require(aws, name)
    emergency_stop.release(aws, state)
    typer.echo(f"Stack {name} in {aws.region} is {state.status}.")
    for key in ("StoreUri", "ImageRepository", "WorkerRoleArn"):
        typer.echo(f"  {key:16} {state.outputs[key]}")
    _register_pools(aws, state, image)


@app.command()
def plan(
    region: Region = None,
    profile: Profile = None,
    name: Name = "crucible",
    types: Types = None,
    max_spot: MaxSpot = None,
    max_on_demand: MaxOnDemand = None,
    project: Project = None,
    owner: Owner = None,
    budget: Budget = None,
    email: Email = None,
    vpc: Vpc = None,
    subnets: Subnets = None,
    cidr: Cidr = None,
    settings: Parameter = None,
) -> None:
    """Show what `up` with the same options would change, and change nothing."""
    from crucible.pools.aws import stack
    from crucible.pools.aws.parameters import stack_parameters
    from crucible.pools.aws.session import connect

    parameters = stack_parameters(
        types=types,
        max_spot=max_spot,
        max_on_demand=max_on_demand,
        project=project,
        owner=owner,
        budget=budget,
        email=email,
        vpc=vpc,
        subnets=subnets,
        cidr=cidr,
        settings=settings or [],
    )
    aws = connect(region, profile)
    _introduce(aws)
    planned = stack.plan(aws, name, parameters)
    _show(planned)
    stack.discard(aws, planned)


@app.command()
def pools(
    region: Region = None,
    profile: Profile = None,
    name: Name = "crucible",
    image: Image = None,
    env: Annotated[list[str] | None, typer.Option("--env", help="NAME=value for every task.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=value of another setting, such as aws_credentials.")
    ] = None,
) -> None:
    """Put the pools ec2-spot and ec2-on-demand on the Prefect server, or bring them up to date."""
    from crucible.pools.aws import stack
    from crucible.pools.aws.session import connect

    aws = connect(region, profile)
    _register_pools(aws, stack.require(aws, name), image, env or [], settings or [])


@app.command()
def worker(
    pool: Annotated[str, typer.Argument(help="ec2-spot or ec2-on-demand; run one worker for each.")],
    region: Region = None,
    profile: Profile = None,
    name: Name = "crucible",
) -> None:
    """Run the Prefect worker of a pool here, set up for the stack: region and event queue."""
    from crucible.pools.aws import stack
    from crucible.pools.aws.session import connect
    from crucible.pools.aws.worker import run_worker

    aws = connect(region, profile)
    run_worker(pool, stack.require(aws, name), profile)


@app.command()
def status(
    region: Region = None, profile: Profile = None, name: Name = "crucible", image: Image = None, as_json: Json = False
) -> None:
    """Show machines, tasks, why machines do not come, spot warnings, and what is not set up right."""
    from crucible.pools.aws import stack
    from crucible.pools.aws.session import connect
    from crucible.pools.aws.status import status as ask

    aws = connect(region, profile)
    now = ask(aws, stack.require(aws, name), prefect_api_url=_prefect_api_url(), image=image)
    if as_json:
        typer.echo(now.to_json())
        return
    typer.echo(f"Stack {now.stack}, account {now.account}, {now.region}: {now.status}; store {now.store}")
    for group in now.groups:
        stopped = "" if group.launching else "  EMERGENCY STOP: nothing is launched; `crucible aws up` releases it"
        typer.echo(f"{group.pool:14} {len(group.instances)} of at most {group.maximum} instances{stopped}")
        for instance in group.instances:
            typer.echo(f"    {instance['id']}  {instance['type']:13} {instance['zone']:12} {instance['state']}")
        for trouble in group.troubles:
            typer.echo(f"    {trouble}")
    typer.echo(f"{len(now.tasks)} tasks")
    for task in now.tasks:
        typer.echo(f"    {task['id']}  {task['status']:13} {task['pool']:14} {task['flow_run']} {task['job']}")
    for warning in now.spot_warnings:
        typer.echo(f"    {warning['time']}  {warning['instance']}  {warning['warning']}")
    for check in now.checks:
        mark = {True: "ok", False: "FIX", None: "?"}[check.ok]
        typer.echo(f"{mark:5}{check.name:20} {check.message}")


@app.command("stop-all")
def stop_all(region: Region = None, profile: Profile = None, name: Name = "crucible", yes: Yes = False) -> None:
    """Emergency stop: pause the pools, stop every task (each may save), terminate every instance."""
    from crucible.pools.aws import stack
    from crucible.pools.aws.session import connect

    aws = connect(region, profile)
    state = stack.require(aws, name)
    if not yes and not typer.confirm(f"Stop every task and instance of {name} in {aws.region}?"):
        raise typer.Exit(1)
    _emergency_stop(aws, state)
    typer.echo("Nothing of the stack is running. `crucible aws up` resumes.")


@app.command()
def down(region: Region = None, profile: Profile = None, name: Name = "crucible", yes: Yes = False) -> None:
    """Stop everything and delete the stack. The bucket with datasets, checkpoints and records stays."""
    from crucible.pools.aws import stack
    from crucible.pools.aws.errors import AwsError
    from crucible.pools.aws.session import connect

    aws = connect(region, profile)
    state = stack.describe(aws, name)
    if state is None:
        typer.echo(f"There is no stack {name} in {aws.region}.")
        return
    if not yes and not typer.confirm(f"Delete stack {name} in {aws.region}, stopping all that runs in it?"):
        raise typer.Exit(1)
    if state.usable:
        _emergency_stop(aws, state)
    elif state.status.endswith("_IN_PROGRESS") and state.status != "REVIEW_IN_PROGRESS":
        raise AwsError(f"stack {name} is {state.status}: wait for that to end, then try again")
    stack.delete(aws, name, _Ticker(0))
    typer.echo(f"Stack {name} is deleted.")
    if store := state.outputs.get("StoreUri"):
        typer.echo(f"{store} is kept, and costs what it holds; to delete it too: aws s3 rb --force {store}")


def _introduce(aws: Aws) -> None:
    typer.echo(f"Account {aws.account} in {aws.region}, as {aws.caller}")


def _show(plan: Plan) -> None:
    if not plan.changes:
        typer.echo("No changes: the stack is as the template and the options say.")
        return
    typer.echo(f"{'Create' if plan.creates else 'Update'} stack {plan.stack}:")
    for change in sorted(plan.changes, key=lambda c: (c.action != "Remove", c.action, c.resource)):
        sign = {"Add": "+", "Remove": "-"}.get(change.action, "~")
        what = f": {', '.join(change.properties)}" if change.properties else ""
        loss = "  (replaced; what it holds is lost)" if change.replacement else ""
        typer.echo(f"  {sign} {change.resource:26} {change.type}{what}{loss}")
    count = {action: sum(c.action == action for c in plan.changes) for action in ("Add", "Modify", "Remove")}
    typer.echo(f"{count['Add']} to add, {count['Modify']} to change, {count['Remove']} to remove")


class _Ticker:
    """One line per finished resource, numbered if the plan knows how many there are."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0

    def __call__(self, progress: Progress) -> None:
        if progress.status.endswith("_IN_PROGRESS") or progress.type == "AWS::CloudFormation::Stack":
            return
        self.done += 1
        counter = f"{self.done:3}/{self.total}" if self.total else f"{self.done:3}"
        why = f": {progress.reason}" if progress.reason and progress.status.endswith("_FAILED") else ""
        typer.echo(f"  {counter} {progress.status:16} {progress.resource}{why}")


def _register_pools(
    aws: Aws, state: StackState, image: str | None, env: Sequence[str] = (), settings: Sequence[str] = ()
) -> None:
    from crucible.cli.inputs import named_values
    from crucible.pools.aws.pools import PoolOptions, register, save_store_block
    from crucible.pools.aws.status import newest_image
    from crucible.pools.common.offered import parse_settings
    from crucible.pools.common.registration import require_server

    url = _prefect_api_url()
    if url is None:
        typer.echo(
            "No Prefect server is selected: run `crucible up` (or set PREFECT_API_URL), then `crucible aws pools`."
        )
        return
    require_server()
    repository = state.outputs["ImageRepository"]
    image = image or newest_image(aws, repository)
    if image is None:
        typer.echo(f"No image yet in {repository}: run `crucible images push`, then `crucible aws pools`.")
        return
    options = PoolOptions(
        image=image,
        project=state.parameters.get("Project", "crucible"),
        owner=state.parameters.get("Owner", "unknown"),
        environment=named_values("--env", list(env)),
        settings=parse_settings(named_values("--set", list(settings))),
    )
    for pool in register(state.outputs, state.parameters, options):
        typer.echo(f"Pool {pool} is ready on {url}; start its worker with: crucible aws worker {pool}")
    save_store_block("aws", _store_block(aws, state))
    typer.echo(f"Store block aws leads to {state.outputs['StoreUri']}: train-nanogpt --param store=aws")


def _store_block(aws: Aws, state: StackState) -> dict[str, str]:
    """The store's address. An endpoint other than AWS's own knows no machine roles, so its keys go in as well."""
    block = {"root": state.outputs["StoreUri"], "region": aws.region}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        keys = aws.session.get_credentials().get_frozen_credentials()
        block |= {"endpoint_url": endpoint, "access_key_id": keys.access_key, "secret_access_key": keys.secret_key}
    return block


def _emergency_stop(aws: Aws, state: StackState) -> None:
    from crucible.pools.aws import emergency_stop, pools

    if _prefect_api_url() is not None:
        try:
            for pool in pools.pause():
                typer.echo(f"  pool {pool} is paused")
        except Exception as error:  # noqa: BLE001 (whatever a gateway answers for the server: machines cost money)
            typer.echo(f"  the pools could not be paused ({error}); a worker may start tasks again", err=True)
    emergency_stop.stop_all(aws, state, lambda line: typer.echo(f"  {line}"))


def _prefect_api_url() -> str | None:
    from prefect.settings import get_current_settings

    return get_current_settings().api.url
