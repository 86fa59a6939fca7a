"""Teach moto's CloudFormation what our template needs, and to refuse what it does not know.

Out of the box moto skips unknown resource types with a Python warning and still reports CREATE_COMPLETE; it ignores the
settings and tags of ECS clusters, and does not split the default of a list parameter. A stack that "deploys" there
proves nothing. After `install()`, an unknown resource type fails the stack, and the types below are real.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from moto.budgets.models import budgets_backends
from moto.cloudformation import parsing
from moto.cloudformation.exceptions import ValidationError
from moto.core.common_models import CloudFormationModel
from moto.core.utils import pascal_to_camelcase, remap_nested_keys
from moto.ec2.models import ec2_backends
from moto.ec2.models.route_tables import RouteTable
from moto.ec2.models.security_groups import SecurityGroup
from moto.ecr.models import Repository, ecr_backends
from moto.ecs.models import Cluster, ecs_backends
from moto.iam.access_control import IAMPolicy, PermissionResult
from moto.s3.models import FakeBucket, s3_backends
from moto.sqs.models import sqs_backends

from crucible.rehearsal.aws.patching import class_method, replace

Properties = dict[str, Any]
Apply = Callable[[str, Properties, str, str], str | None]
"""Gets a resource's name, properties, account and region."""


@functools.cache
def install() -> None:
    """Change moto in this process. Calling it again does nothing."""
    _define("AWS::ECS::CapacityProvider", _create_capacity_provider, _delete_capacity_provider, name_property="Name")
    _define("AWS::ECS::ClusterCapacityProviderAssociations", _associate_providers)
    _define("AWS::SQS::QueuePolicy", _set_queue_policy)
    _define("AWS::S3::BucketPolicy", _set_bucket_policy)
    _define("AWS::Budgets::Budget", _create_budget, _delete_budget)
    replace(Cluster, create_from_cloudformation_json=class_method(_create_cluster))
    replace(RouteTable, delete_from_cloudformation_json=class_method(_delete_route_table))
    replace(Repository, delete=_delete_repository)
    replace(FakeBucket, get_permission=_permission_over_tls)
    _complete(FakeBucket, _complete_bucket)
    _complete(Repository, _complete_repository)
    _complete(SecurityGroup, _complete_security_group)
    replace(parsing.ResourceMap, load_parameters=_split_list_defaults(parsing.ResourceMap.load_parameters))
    replace(
        parsing,
        parse_resource=_refuse_unknown_types(parsing.parse_resource),
        clean_json=_drop_no_value(parsing.clean_json),
    )
    parsing.get_model_list.cache_clear()
    parsing.get_model_map.cache_clear()
    parsing.get_name_type_map.cache_clear()


def _define(
    cloudformation_type: str,
    apply: Apply,
    remove: Callable[[str, str, str], None] = lambda *_: None,
    *,
    name_property: str = "",
) -> None:
    """Register one resource type; `apply` gets (name, properties, account, region), may return a better physical name,
    with which `remove` is called as (name, account, region).

    moto finds models as direct subclasses of CloudFormationModel, and its metaclass takes the service's name from the
    second part of `__module__`.
    """

    def create(
        cls: Any, resource_name: str, cloudformation_json: Any, account_id: str, region_name: str, **_: Any
    ) -> Any:
        return cls(apply(resource_name, cloudformation_json["Properties"], account_id, region_name) or resource_name)

    def delete(cls: Any, resource_name: str, cloudformation_json: Any, account_id: str, region_name: str) -> None:
        remove(resource_name, account_id, region_name)

    def initialise(self: Any, name: str) -> None:
        self.name = name

    type(
        cloudformation_type.replace("::", ""),
        (CloudFormationModel,),
        {
            "__module__": f"moto.{cloudformation_type.split('::')[1].lower()}.crucible",
            "__init__": initialise,
            "physical_resource_id": property(lambda self: self.name),
            "is_created": lambda self: True,
            "cloudformation_type": staticmethod(lambda: cloudformation_type),
            "cloudformation_name_type": staticmethod(lambda: name_property),
            "has_cfn_attr": classmethod(lambda cls, attr: False),
            "create_from_cloudformation_json": class_method(create),
            "update_from_cloudformation_json": class_method(_update(apply, lambda _, name: name)),
            "delete_from_cloudformation_json": class_method(delete),
        },
    )


def _camel_case(value: Any) -> Any:
    return remap_nested_keys(value, pascal_to_camelcase)


def _create_capacity_provider(name: str, properties: Properties, account: str, region: str) -> None:
    group = properties["AutoScalingGroupProvider"]
    if group.get("ManagedTerminationProtection") == "ENABLED" and group["ManagedScaling"].get("Status") != "ENABLED":
        raise ValueError("managed termination protection needs managed scaling")  # as ECS does
    backend = ecs_backends[account][region]
    backend.create_capacity_provider(name, _camel_case(group), _camel_case(properties.get("Tags")))


def _delete_capacity_provider(name: str, account: str, region: str) -> None:
    ecs_backends[account][region].delete_capacity_provider(name)


def _associate_providers(name: str, properties: Properties, account: str, region: str) -> None:
    ecs_backends[account][region].put_cluster_capacity_providers(
        properties["Cluster"],
        properties["CapacityProviders"],
        _camel_case(properties["DefaultCapacityProviderStrategy"]),
    )


def _set_queue_policy(name: str, properties: Properties, account: str, region: str) -> None:
    for url in properties["Queues"]:
        policy = {"Policy": json.dumps(properties["PolicyDocument"])}
        sqs_backends[account][region].set_queue_attributes(url.split("/")[-1], policy)


def _set_bucket_policy(name: str, properties: Properties, account: str, region: str) -> None:
    policy = json.dumps(properties["PolicyDocument"]).encode()
    s3_backends[account]["aws"].put_bucket_policy(properties["Bucket"], policy)


def _create_budget(name: str, properties: Properties, account: str, region: str) -> str:
    name = properties["Budget"]["BudgetName"]
    if name in budgets_backends[account]["aws"].budgets[account]:
        _delete_budget(name, account, region)
    budgets_backends[account]["aws"].create_budget(
        account, properties["Budget"], properties["NotificationsWithSubscribers"]
    )
    return name


def _delete_budget(name: str, account: str, region: str) -> None:
    budgets_backends[account]["aws"].delete_budget(account, name)


def _create_cluster(
    cls: Any, resource_name: str, cloudformation_json: Any, account_id: str, region_name: str, **_: Any
) -> Any:
    properties = cloudformation_json["Properties"]
    return ecs_backends[account_id][region_name].create_cluster(
        cluster_name=resource_name,
        tags=_camel_case(properties.get("Tags")),
        cluster_settings=_camel_case(properties.get("ClusterSettings")),
    )


def _delete_route_table(
    cls: Any, resource_name: str, cloudformation_json: Any, account_id: str, region_name: str
) -> None:
    ec2_backends[account_id][region_name].delete_route_table(resource_name)


def _update(apply: Apply, name_of: Callable[[Any, str], str]) -> Callable[..., Any]:
    def update(cls: Any, original_resource: Any, new_resource_name: str, **kwargs: Any) -> Any:
        name = name_of(original_resource, new_resource_name)
        apply(name, kwargs["cloudformation_json"]["Properties"], kwargs["account_id"], kwargs["region_name"])
        return original_resource

    return update


def _complete(model: Any, apply: Apply) -> None:
    """Let `apply` set the properties that moto's own constructor of that resource leaves out."""
    create = model.create_from_cloudformation_json

    def create_whole(
        cls: Any, resource_name: str, cloudformation_json: Any, account_id: str, region_name: str, **kwargs: Any
    ) -> Any:
        resource = create(resource_name, cloudformation_json, account_id, region_name, **kwargs)
        apply(resource.physical_resource_id, cloudformation_json["Properties"], account_id, region_name)
        return resource

    replace(
        model,
        create_from_cloudformation_json=class_method(create_whole),
        update_from_cloudformation_json=class_method(_update(apply, lambda resource, _: resource.physical_resource_id)),
    )


def _complete_bucket(name: str, properties: Properties, account: str, region: str) -> None:
    backend = s3_backends[account]["aws"]
    backend.put_bucket_versioning(name, properties["VersioningConfiguration"]["Status"])
    backend.put_public_access_block(
        name, {key: str(value).lower() for key, value in properties["PublicAccessBlockConfiguration"].items()}
    )
    ownership = properties["OwnershipControls"]["Rules"][0]["ObjectOwnership"]
    backend.put_bucket_ownership_controls(name, ownership)
    rules = []
    for rule in properties["LifecycleConfiguration"]["Rules"]:
        days = rule.pop("ExpirationInDays", None)
        rule = {"ID": rule.pop("Id"), "Filter": {"Prefix": rule.pop("Prefix", "")}, **rule}
        rules.append(rule | ({"Expiration": {"Days": days}} if days else {}))
    backend.put_bucket_lifecycle_configuration(name, rules)


def _complete_security_group(name: str, properties: Properties, account: str, region: str) -> None:
    """Egress: what is listed, and not the "everything" that a group has of itself."""
    backend = ec2_backends[account][region]
    group: Any = backend.get_security_group_from_id(name)
    group.egress_rules.clear()
    for rule in properties["SecurityGroupEgress"]:
        ports = (str(rule["FromPort"]), str(rule["ToPort"]))
        backend.authorize_security_group_egress(name, rule["IpProtocol"], *ports, [{"CidrIp": rule["CidrIp"]}])


def _complete_repository(name: str, properties: Properties, account: str, region: str) -> None:
    backend, repository = ecr_backends[account][region], properties["RepositoryName"]
    backend.put_lifecycle_policy(account, repository, properties["LifecyclePolicy"]["LifecyclePolicyText"])
    backend.repositories[repository].empty_on_delete = properties.get("EmptyOnDelete", False)  # type: ignore[attr-defined]


def _delete_repository(repository: Any, account_id: str, region_name: str) -> None:
    force = getattr(repository, "empty_on_delete", False)
    ecr_backends[account_id][region_name].delete_repository(repository.name, force=force)


def _split_list_defaults(load_parameters: Callable[[Any], None]) -> Callable[[Any], None]:
    def load_and_split(self: Any) -> None:
        load_parameters(self)
        for name, slot in self._template.get("Parameters", {}).items():
            value = self.resolved_parameters[name]
            if isinstance(value, str) and slot.get("Type") == "CommaDelimitedList":
                self.resolved_parameters[name] = self._parsed_resources[name] = value.split(",")

    return load_and_split


def _refuse_unknown_types(parse_resource: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def parse_or_fail(resource_json: Any, resources_map: Any) -> Any:
        if parsing.resource_class_from_type(resource_json["Type"]) is None:
            raise ValidationError(message=f"the stand-in's CloudFormation does not know {resource_json['Type']}")
        return parse_resource(resource_json, resources_map)

    return parse_or_fail


def _drop_no_value(clean_json: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """`AWS::NoValue` in a list means that there is no such item; moto leaves None in its place."""

    def clean_and_drop(resource_json: Any, resources_map: Any) -> Any:
        cleaned = clean_json(resource_json, resources_map)
        return [item for item in cleaned if item is not None] if isinstance(resource_json, list) else cleaned

    return clean_and_drop


def _permission_over_tls(bucket: Any, action: str, resource: str) -> Any:
    """moto applies a Deny without looking at its condition; "deny what is not TLS" would deny everything here."""
    if bucket.policy is None:
        return PermissionResult.NEUTRAL
    policy = json.loads(bucket.policy)
    policy["Statement"] = [s for s in policy["Statement"] if "aws:SecureTransport" not in str(s.get("Condition"))]
    return IAMPolicy(json.dumps(policy)).is_action_permitted(action, resource)
