"""CloudFormation change sets as AWS has them: moto applies one without outputs, and sees no change of a parameter.

After `install()`, a change set lists what a changed parameter touches and leaves out resources whose condition is
false; executing it fills in outputs and tags, reports every resource's progress in the stack's events, and a failure
ends in ROLLBACK_COMPLETE with its reason instead of an error to the caller.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from moto.cloudformation.models import Change, ChangeSet, CloudFormationBackend, Event, Stack
from moto.cloudformation.parsing import ResourceMap
from moto.cloudformation.responses import CloudFormationResponse

from crucible.rehearsal.aws.patching import replace


@functools.cache
def install() -> None:
    """Change moto in this process. Calling it again does nothing."""
    replace(ChangeSet, diff=_diff)
    replace(
        CloudFormationBackend,
        create_change_set=_fail_if_empty(CloudFormationBackend.create_change_set),
        execute_change_set=_execute,
    )
    replace(CloudFormationResponse, _validate_different_update=lambda *_: None)  # AWS answers with a failed change set
    replace(Stack, stack_parameters=property(_parameters), parameter_list=property(_parameter_list))


def _parameters(stack: Any) -> dict[str, str]:
    """What was given, or the default, as text: moto returns resolved values, which cannot be given back."""
    slots = stack.template_dict.get("Parameters", {})
    return {name: str(stack.parameters.get(name, slot.get("Default", ""))) for name, slot in slots.items()}


def _parameter_list(stack: Any) -> list[dict[str, str]]:
    return [{"ParameterKey": name, "ParameterValue": value} for name, value in _parameters(stack).items()]


def _wanted(change_set: Any) -> set[str]:
    """Logical ids of the template's resources whose condition holds."""
    template, stack = change_set.template_dict, change_set.stack
    resources = ResourceMap(
        stack.stack_id,
        stack.name,
        change_set.parameters,
        {},
        region_name=stack.region_name,
        account_id=stack.account_id,
        template=template,
        cross_stack_resources={},
    )
    resources.load()
    conditions = resources.lazy_condition_map
    return {
        name
        for name, resource in template["Resources"].items()
        if "Condition" not in resource or conditions[resource["Condition"]]
    }


def _references(value: Any) -> set[str]:
    """Every name that a piece of template may refer to."""
    if isinstance(value, dict):
        return set().union(*(_references(item) for item in value.values())) | (
            {value["Ref"]} if isinstance(value.get("Ref"), str) else set()
        )
    if isinstance(value, list):
        return set().union(*(_references(item) for item in value))
    if isinstance(value, str):
        return {part.split("}")[0] for part in value.split("${")[1:]}
    return set()


def _diff(change_set: Any) -> list[Any]:
    template, stack = change_set.template_dict, change_set.stack
    before: dict[str, Any] = {n: r for n, r in stack.resource_map._resource_json_map.items() if n in _existing(stack)}
    wanted = _wanted(change_set)
    old = _parameters(stack)
    slots = template.get("Parameters", {})
    new = {name: str(change_set.parameters.get(name, slot.get("Default", ""))) for name, slot in slots.items()}
    changed = {name for name in new if old.get(name) != new[name]}
    actions = {
        "Add": [name for name in template["Resources"] if name in wanted and name not in before],
        "Modify": [
            name
            for name, resource in template["Resources"].items()
            if name in wanted
            and name in before
            and (_body(resource) != _body(before[name]) or _references(resource) & changed)
        ],
        "Remove": [name for name in before if name not in wanted],
    }
    types = {name: resource["Type"] for name, resource in {**before, **template["Resources"]}.items()}
    return [
        Change(action=action, logical_resource_id=name, resource_type=types[name])
        for action, names in actions.items()
        for name in names
    ]


def _body(resource: dict[str, Any]) -> dict[str, Any]:
    return {"Properties": {}, **resource}  # moto adds empty properties while it creates


def _fail_if_empty(create_change_set: Callable[..., tuple[str, str]]) -> Callable[..., tuple[str, str]]:
    def create_and_look(backend: Any, *arguments: Any, **named: Any) -> tuple[str, str]:
        change_set_id, stack_id = create_change_set(backend, *arguments, **named)
        change_set = backend.change_sets[change_set_id]
        if not change_set.changes:
            change_set.status, change_set.execution_status = "FAILED", "UNAVAILABLE"
            change_set.status_reason = (
                "The submitted information didn't contain changes. Submit different information to create a change set."
            )
        return change_set_id, stack_id

    return create_and_look


def _existing(stack: Any) -> set[str]:
    parsed = stack.resource_map._parsed_resources
    return {name for name, resource in parsed.items() if hasattr(resource, "cf_resource_type")}


def _execute(backend: Any, change_set_name: str, stack_name: str | None = None) -> None:
    change_set = backend.describe_change_set(change_set_name)
    stack, kind = change_set.stack, change_set.change_set_type
    stack.status = f"{kind}_IN_PROGRESS"
    stack._add_stack_event(stack.status, resource_status_reason="User Initiated")
    change_set.execution_status = "EXECUTE_IN_PROGRESS"
    try:
        stack.resource_map.update(change_set.template_dict, change_set.parameters)
    except Exception as error:  # noqa: BLE001 - whatever a resource cannot do is that stack's failure, reported in its events
        stack._add_stack_event(f"{kind}_FAILED", resource_status_reason=str(getattr(error, "message", error)))
        stack.status = "ROLLBACK_COMPLETE" if kind == "CREATE" else "UPDATE_ROLLBACK_COMPLETE"
        stack._add_stack_event(stack.status)
        change_set.execution_status = "EXECUTE_FAILED"
        return
    for change in change_set.changes:
        _tell(stack, change, {"Add": "CREATE", "Modify": "UPDATE", "Remove": "DELETE"}[change.action])
    stack.template, stack.parameters = change_set.template, change_set.parameters
    stack.tags = change_set.tags or stack.tags
    stack._parse_template()
    stack.output_map = stack._create_output_map()
    stack.status = f"{kind}_COMPLETE"
    stack._add_stack_event(stack.status)
    change_set.execution_status = "EXECUTE_COMPLETE"


def _tell(stack: Any, change: Any, kind: str) -> None:
    resource = stack.resource_map._parsed_resources.get(change.logical_resource_id)
    stack.events.append(
        Event(
            stack_id=stack.stack_id,
            stack_name=stack.name,
            logical_resource_id=change.logical_resource_id,
            physical_resource_id=getattr(resource, "physical_resource_id", ""),
            resource_type=change.resource_type,
            resource_status=f"{kind}_COMPLETE",
            resource_status_reason=None,
            resource_properties=None,
        )
    )
