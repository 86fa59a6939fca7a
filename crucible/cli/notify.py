"""`crucible notify on | off | test | ls`: Slack messages, mails or web hooks for what needs a person."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Notify people of lost runs, failed jobs, budgets and long queues.")


def register(root: typer.Typer) -> None:
    root.add_typer(app, name="notify", rich_help_panel="Local set-up")


@app.callback()
def _group() -> None:
    """Notify people of lost runs, failed jobs, budgets and long queues."""


@app.command("on")
def on(
    slack_webhook: Annotated[
        str | None, typer.Option(help="Slack incoming web hook: https://hooks.slack.com/services/…", show_default=False)
    ] = None,
    email: Annotated[
        list[str] | None,
        typer.Option(help="Mail address; may be repeated. Sent through SendGrid, with its key in SENDGRID_API_KEY."),
    ] = None,
    email_from: Annotated[
        str | None, typer.Option(help="Sender that SendGrid has verified; default: the first address.")
    ] = None,
    webhook: Annotated[
        str | None, typer.Option(help="Any web hook; it gets JSON with subject, body and text.", show_default=False)
    ] = None,
    about: Annotated[
        list[str] | None,
        typer.Option(help="Only this: failed, lost, notice, budget or queue; may be repeated. Default: all."),
    ] = None,
) -> None:
    """Send notifications to a target, besides those named before. Repeat it to change a target or the topics."""
    import os

    from crucible.errors import ConfigError
    from crucible.local.access import connect_here
    from crucible.local.notifications import Target, switch_on, targets_on

    targets = []
    if slack_webhook is not None:
        targets.append(Target.slack(slack_webhook))
    if email:
        api_key = os.environ.get("SENDGRID_API_KEY")
        if not api_key:
            raise ConfigError("SENDGRID_API_KEY is not set; mails go through SendGrid, and need its key")
        targets.append(Target.email(email, email_from or email[0], api_key))
    if webhook is not None:
        targets.append(Target.webhook(webhook))
    with connect_here() as api:
        if not targets and not targets_on(api):
            raise ConfigError("name a target: --slack-webhook URL, --email ADDRESS or --webhook URL")
        switch_on(api, targets, about or [])
        typer.echo(f"notifications go to: {', '.join(targets_on(api))}; try it with: crucible notify test")


@app.command("off")
def off() -> None:
    """Notify nobody any more: delete the automations and the targets."""
    from crucible.local.access import connect_here
    from crucible.local.notifications import switch_off

    with connect_here() as api:
        switch_off(api)
    typer.echo("nobody is notified any more")


@app.command("test")
def test() -> None:
    """Send a test message to every target, through the server, and report whether it was delivered."""
    from crucible.local.access import connect_here
    from crucible.local.notifications import send_test

    with connect_here() as api:
        results = send_test(api)
    for kind, problem in results.items():
        typer.echo(f"{kind}: {'delivered' if problem is None else f'failed: {problem}'}")
    if any(results.values()):
        raise typer.Exit(1)


@app.command("ls")
def ls() -> None:
    """List the targets, and what they are notified of."""
    from crucible.local.access import connect_here
    from crucible.local.notifications import automations_on, targets_on, topics

    with connect_here() as api:
        targets, active = targets_on(api), automations_on(api)
    typer.echo(f"targets: {', '.join(targets) or 'none; name one with crucible notify on'}")
    for name, description in topics().items():
        state = "on" if name in active and active[name]["enabled"] else "off"
        typer.echo(f"{state:<4} {name:<8} {description}")
