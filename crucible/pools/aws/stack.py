"""The CloudFormation stack of `infrastructure/aws/crucible.yaml`: plan it, apply the plan, delete it.

A plan is a CloudFormation change set, so what is shown is what AWS itself says it would do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import crucible
from crucible.pools.aws.errors import AwsError, aws_errors
from crucible.pools.aws.session import Aws

TEMPLATE = Path(crucible.__file__).parents[1] / "infrastructure" / "aws" / "crucible.yaml"
DEFAULT_NAME = "crucible"
POLL_SECONDS = 2.0
NO_CHANGES = ("didn't contain changes", "No updates are to be performed")


@dataclass(frozen=True)
class StackState:
    """A stack as AWS describes it now."""

    name: str
    region: str
    status: str
    reason: str
    outputs: dict[str, str]
    parameters: dict[str, str]

    @property
    def usable(self) -> bool:
        """Whether its resources are there."""
        return self.status.endswith("_COMPLETE") and not self.status.startswith(("ROLLBACK", "DELETE"))


@dataclass(frozen=True)
class Change:
    """One line of a plan."""

    action: str
    """Add, Modify or Remove"""
    resource: str
    type: str
    replacement: bool = False
    """The resource would be replaced, which loses what it holds."""
    properties: tuple[str, ...] = ()
    """What would change in it, where AWS says so."""


@dataclass(frozen=True)
class Plan:
    """What `apply` would do; `changes` empty means nothing."""

    stack: str
    change_set: str
    creates: bool
    changes: list[Change] = field(default_factory=list)


@dataclass(frozen=True)
class Progress:
    """One event of a running change."""

    resource: str
    type: str
    status: str
    reason: str


def describe(aws: Aws, name: str = DEFAULT_NAME) -> StackState | None:
    """The stack, or None if this region of this account has none of that name."""
    from botocore.exceptions import ClientError

    with aws_errors(f"Reading stack {name}", aws.region):
        try:
            stack = aws.client("cloudformation").describe_stacks(StackName=name)["Stacks"][0]
        except ClientError as error:
            if "does not exist" in str(error):
                return None
            raise
    if stack["StackStatus"] == "DELETE_COMPLETE":
        return None
    return StackState(
        name=name,
        region=aws.region,
        status=stack["StackStatus"],
        reason=stack.get("StackStatusReason", ""),
        outputs={output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])},
        parameters={item["ParameterKey"]: item["ParameterValue"] for item in stack.get("Parameters", [])},
    )


def require(aws: Aws, name: str = DEFAULT_NAME) -> StackState:
    """The stack, ready to be used. Raises `AwsError` if it is not there or not whole."""
    state = describe(aws, name)
    if state is None or state.status == "REVIEW_IN_PROGRESS":
        raise AwsError(
            f"stack = {name!r}: account {aws.account} has no such stack in {aws.region}: create it with "
            f"`crucible aws up --region {aws.region}`, or name the region it is in with --region"
        )
    if not state.usable:
        raise AwsError(
            f"stack {name} in {aws.region} is {state.status}: {state.reason or 'see its events in the console'}"
        )
    return state


def plan(aws: Aws, name: str, parameters: Mapping[str, str], *, template: Path = TEMPLATE) -> Plan:
    """Ask AWS what creating or updating the stack would do. Parameters not named keep their value.

    Leaves a change set behind, which `apply` executes and `discard` removes. Raises `AwsError`.
    """
    if not template.exists():
        raise AwsError(
            f"{template} is missing: run from a checkout of the project (an installed wheel has no template)"
        )
    state = describe(aws, name)
    if state is not None and state.status in ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED"):
        raise AwsError(
            f"stack {name} is {state.status} after a failed creation: run `crucible aws down`, then up again"
        )
    if state is not None and state.status.endswith("_IN_PROGRESS") and state.status != "REVIEW_IN_PROGRESS":
        raise AwsError(f"stack {name} is {state.status}: wait for that to end (`crucible aws status`), then try again")
    creates = state is None or state.status == "REVIEW_IN_PROGRESS"
    given: list[dict[str, Any]] = [{"ParameterKey": k, "ParameterValue": v} for k, v in parameters.items()]
    if state is not None and not creates:
        kept = [key for key in state.parameters if key not in parameters]
        given += [{"ParameterKey": key, "UsePreviousValue": True} for key in kept]
    change_set = f"crucible-{int(time.time() * 1000)}"
    client = aws.client("cloudformation")
    with aws_errors(f"Planning stack {name}", aws.region):
        client.create_change_set(
            StackName=name,
            ChangeSetName=change_set,
            ChangeSetType="CREATE" if creates else "UPDATE",
            TemplateBody=template.read_text(encoding="utf-8"),
            Capabilities=["CAPABILITY_IAM"],
            Parameters=given,
            Tags=[{"Key": "crucible:stack", "Value": name}],
        )
        while (answer := client.describe_change_set(StackName=name, ChangeSetName=change_set))["Status"] in (
            "CREATE_PENDING",
            "CREATE_IN_PROGRESS",
        ):
            time.sleep(POLL_SECONDS)
        changes = list(answer.get("Changes", []))
        while token := answer.get("NextToken"):
            answer = client.describe_change_set(StackName=name, ChangeSetName=change_set, NextToken=token)
            changes += answer.get("Changes", [])
    made = Plan(name, change_set, creates, [_change(entry["ResourceChange"]) for entry in changes])
    if answer["Status"] == "FAILED":
        discard(aws, made)
        if any(words in answer.get("StatusReason", "") for words in NO_CHANGES):
            return Plan(name, "", creates=False)
        raise AwsError(f"Planning stack {name} in {aws.region}: {answer.get('StatusReason', 'AWS gave no reason')}")
    return made


def _change(entry: dict[str, Any]) -> Change:
    targets = [detail.get("Target", {}) for detail in entry.get("Details", [])]
    names = {target.get("Name") or target.get("Attribute", "") for target in targets}
    return Change(
        action=entry["Action"],
        resource=entry["LogicalResourceId"],
        type=entry["ResourceType"],
        replacement=entry.get("Replacement") == "True",
        properties=tuple(sorted(name for name in names if name)),
    )


def discard(aws: Aws, plan: Plan) -> None:
    """Remove the plan's change set, and the empty stack that a plan to create leaves behind."""
    client = aws.client("cloudformation")
    with aws_errors(f"Discarding the plan for {plan.stack}", aws.region):
        if plan.change_set:
            client.delete_change_set(StackName=plan.stack, ChangeSetName=plan.change_set)
        if plan.creates:
            client.delete_stack(StackName=plan.stack)


def apply(aws: Aws, plan: Plan, on_progress: Callable[[Progress], None] = lambda _: None) -> StackState:
    """Execute a plan and wait until it is done. Raises `AwsError` naming the first resource that failed and why."""
    client = aws.client("cloudformation")
    seen = _events_so_far(client, plan.stack)
    with aws_errors(f"Changing stack {plan.stack}", aws.region):
        client.execute_change_set(StackName=plan.stack, ChangeSetName=plan.change_set)
    return _wait(aws, plan.stack, seen, on_progress)


def delete(aws: Aws, name: str, on_progress: Callable[[Progress], None] = lambda _: None) -> None:
    """Delete the stack and wait until it is gone. The bucket stays. Raises `AwsError`."""
    client = aws.client("cloudformation")
    seen = _events_so_far(client, name)
    with aws_errors(f"Deleting stack {name}", aws.region):
        stack_id = client.describe_stacks(StackName=name)["Stacks"][0]["StackId"]  # the name alone is lost at the end
        client.delete_stack(StackName=name)
    _wait(aws, stack_id, seen, on_progress)


def _events_so_far(client: Any, name: str) -> set[str]:
    with aws_errors(f"Reading the events of stack {name}"):
        return {event["EventId"] for event in client.describe_stack_events(StackName=name)["StackEvents"]}


def _wait(aws: Aws, name: str, seen: set[str], on_progress: Callable[[Progress], None]) -> StackState:
    client = aws.client("cloudformation")
    failures: list[Progress] = []
    while True:
        with aws_errors(f"Watching stack {name}", aws.region):
            events = client.describe_stack_events(StackName=name)["StackEvents"]  # newest first, one page is 100
            status = client.describe_stacks(StackName=name)["Stacks"][0]
        for event in reversed(events):
            if event["EventId"] in seen:
                continue
            seen.add(event["EventId"])
            progress = Progress(
                event["LogicalResourceId"],
                event["ResourceType"],
                event["ResourceStatus"],
                event.get("ResourceStatusReason", ""),
            )
            on_progress(progress)
            if progress.status.endswith("_FAILED") and "cancelled" not in progress.reason.lower():
                failures.append(progress)
        if not status["StackStatus"].endswith("_IN_PROGRESS"):
            break
        time.sleep(POLL_SECONDS)
    if "ROLLBACK" in status["StackStatus"] or status["StackStatus"].endswith("_FAILED"):
        first = failures[0] if failures else None
        why = f"{first.resource} ({first.type}): {first.reason}" if first else status.get("StackStatusReason", "")
        raise AwsError(f"stack {status['StackName']} in {aws.region} is {status['StackStatus']}: {why}")
    outputs = {output["OutputKey"]: output["OutputValue"] for output in status.get("Outputs", [])}
    parameters = {item["ParameterKey"]: item["ParameterValue"] for item in status.get("Parameters", [])}
    return StackState(status["StackName"], aws.region, status["StackStatus"], "", outputs, parameters)
