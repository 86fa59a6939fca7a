"""The stack, deployed into the rehearsed AWS and looked at through the services it is made of."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from crucible.catalog.ec2 import spot_price
from crucible.catalog.offers import load_catalog
from crucible.pools.aws import stack
from crucible.pools.aws.errors import AwsError
from crucible.pools.aws.session import Aws
from crucible.pools.aws.stack import TEMPLATE, StackState
from crucible.rehearsal.aws.client import AwsRehearsal


def group(aws: Aws, name: str) -> dict[str, Any]:
    found = aws.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[name])
    return dict(found["AutoScalingGroups"][0])


def test_groups_start_at_zero_and_buy_what_they_are_named_for(aws: Aws, stack_state: StackState) -> None:
    spot, on_demand = (group(aws, stack_state.outputs[name]) for name in ("SpotGroup", "OnDemandGroup"))
    assert [spot["MinSize"], spot["DesiredCapacity"], spot["MaxSize"]] == [0, 0, 3]
    assert [on_demand["MinSize"], on_demand["DesiredCapacity"], on_demand["MaxSize"]] == [0, 0, 2]
    assert spot["MixedInstancesPolicy"]["InstancesDistribution"] == {
        "OnDemandBaseCapacity": 0,
        "OnDemandPercentageAboveBaseCapacity": 0,
        "SpotAllocationStrategy": "price-capacity-optimized",
    }
    assert on_demand["MixedInstancesPolicy"]["InstancesDistribution"]["OnDemandPercentageAboveBaseCapacity"] == 100
    types = [override["InstanceType"] for override in spot["MixedInstancesPolicy"]["LaunchTemplate"]["Overrides"]]
    assert {name.split(".")[0] for name in types} == {"g4dn", "g5", "g6"}
    assert len(spot["AvailabilityZones"]) == 3
    assert not spot.get("CapacityRebalance", False)
    assert spot["NewInstancesProtectedFromScaleIn"]


def test_every_allowed_type_holds_the_pools_task(aws: Aws, stack_state: StackState) -> None:
    from crucible.pools.aws.pools import PoolOptions

    options = PoolOptions(image="x")
    names = [name for name in stack_state.outputs["InstanceTypes"].split(",") if name]
    for kind in aws.client("ec2").describe_instance_types(InstanceTypes=names)["InstanceTypes"]:
        assert kind["VCpuInfo"]["DefaultVCpus"] * 1024 >= options.cpu_units
        assert kind["MemoryInfo"]["SizeInMiB"] * 0.94 >= options.memory_mib
        assert sum(gpu["Count"] for gpu in kind["GpuInfo"]["Gpus"]) >= options.gpus


def test_machines_require_metadata_tokens_encrypt_and_carry_cost_tags(aws: Aws) -> None:
    versions = aws.client("ec2").describe_launch_template_versions(LaunchTemplateName="crucible-nodes")
    data = versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]
    assert data["MetadataOptions"]["HttpTokens"] == "required"
    assert data["BlockDeviceMappings"][0]["Ebs"]["Encrypted"]
    tags = {s["ResourceType"]: {t["Key"]: t["Value"] for t in s["Tags"]} for s in data["TagSpecifications"]}
    for kind in ("instance", "volume"):
        assert tags[kind]["crucible:owner"] == "tests"
        assert tags[kind]["crucible:stack"] == "crucible"
    assert data["ImageId"].startswith("ami-")


def test_nothing_can_come_in(aws: Aws) -> None:
    groups = aws.client("ec2").describe_security_groups(
        Filters=[{"Name": "description", "Values": ["Crucible instances*"]}]
    )["SecurityGroups"]
    assert len(groups) == 1
    assert groups[0]["IpPermissions"] == []
    assert sorted(rule["FromPort"] for rule in groups[0]["IpPermissionsEgress"] if "FromPort" in rule) == [
        80,
        443,
        4200,
    ]


def test_the_store_is_private_encrypted_versioned_and_tidied(aws: Aws, stack_state: StackState) -> None:
    s3, bucket = aws.client("s3"), stack_state.outputs["StoreUri"].removeprefix("s3://")
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    assert all(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values())
    rule = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"][0]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    rules = {r["ID"] for r in s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]}
    assert rules == {"unfinished-uploads", "replaced-versions"}
    policy = json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])
    assert policy["Statement"][0]["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_capacity_providers_scale_and_protect(aws: Aws, stack_state: StackState) -> None:
    ecs = aws.client("ecs")
    cluster = ecs.describe_clusters(clusters=[stack_state.outputs["ClusterArn"]])["clusters"][0]
    assert set(cluster["capacityProviders"]) == {"crucible-spot", "crucible-on-demand"}
    for provider in ecs.describe_capacity_providers(capacityProviders=cluster["capacityProviders"])[
        "capacityProviders"
    ]:
        settings = provider["autoScalingGroupProvider"]
        assert settings["managedScaling"]["status"] == "ENABLED"
        assert settings["managedTerminationProtection"] == "ENABLED"


def test_events_reach_queues_that_only_eventbridge_may_fill(aws: Aws, stack_state: StackState) -> None:
    events, sqs = aws.client("events"), aws.client("sqs")
    for rule, output in (("crucible-task-events", "TaskEventsQueue"), ("crucible-spot-warnings", "SpotWarningsQueue")):
        url = sqs.get_queue_url(QueueName=stack_state.outputs[output])["QueueUrl"]
        attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn", "Policy"])["Attributes"]
        assert events.list_targets_by_rule(Rule=rule)["Targets"][0]["Arn"] == attributes["QueueArn"]
        statement = json.loads(attributes["Policy"])["Statement"][0]
        assert statement["Principal"] == {"Service": "events.amazonaws.com"}
        assert statement["Condition"]["ArnEquals"]["aws:SourceArn"].endswith(rule)


@pytest.mark.parametrize(
    ("role", "action"),
    [("WorkerRole", "ec2:GetSpotPlacementScores"), ("StoreAccessPolicy", "ec2:DescribeSpotPriceHistory")],
)
def test_roles_may_ask_for_prices_and_capacity(role: str, action: str) -> None:
    allowed = [statement["Action"] for name, statement in statements() if name == role]
    assert any(action == given or action in given for given in allowed if isinstance(given, str | list))


def test_roles_may_do_what_they_are_for_and_no_star_writes() -> None:
    """Read from the template itself: what a wildcard resource may be used for is a closed list."""
    anywhere = {
        # no resource-level permissions exist for these
        "ecr:GetAuthorizationToken",
        "ecs:DiscoverPollEndpoint",
        "ec2:DescribeSpotPriceHistory",
        "ecs:RegisterTaskDefinition",
        "ecs:DeregisterTaskDefinition",
        "ecs:DescribeTaskDefinition",
        "ssm:UpdateInstanceInformation",
    }
    for name, statement in statements():
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert not any(action.endswith("*") for action in actions), name
        if statement["Resource"] != "*" or "Condition" in statement:
            continue
        for action in actions:
            reads = action.split(":")[1].startswith(("Describe", "Get"))
            assert reads or action in anywhere or action.startswith("ssmmessages:"), f"{name}: {action} on *"


def statements() -> list[tuple[str, dict[str, Any]]]:
    """(resource, statement) of every Allow in the template's roles and managed policies."""
    found = []
    for name, resource in load_template()["Resources"].items():
        properties = resource.get("Properties", {})
        documents = [properties["PolicyDocument"]] if resource["Type"] == "AWS::IAM::ManagedPolicy" else []
        for policy in properties.get("Policies", []):
            policy = policy[1] if isinstance(policy, list) else policy  # !If [condition, policy, nothing]
            documents.append(policy["PolicyDocument"])
        found += [(name, statement) for document in documents for statement in document["Statement"]]
    return found


def load_template() -> dict[str, Any]:
    """The template with its tags (`!Ref x`) as plain values."""

    class Loader(yaml.SafeLoader):
        pass

    def plain(loader: Any, suffix: str, node: Any) -> Any:
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        return node.value

    Loader.add_multi_constructor("!", plain)
    return dict(yaml.load(TEMPLATE.read_text(), Loader=Loader))


def test_a_rehearsed_machine_costs_what_the_catalog_says(cloud: AwsRehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    prices = {offer.instance: offer.usd_per_hour for offer in load_catalog() if offer.pool == "ec2-spot"}
    assert spot_price("g4dn.xlarge", "us-east-1b") == prices["g4dn.xlarge"] > 0.05


def test_the_budget_watches_ec2(aws: Aws) -> None:
    budgets = aws.client("budgets")
    budget = budgets.describe_budget(AccountId=aws.account, BudgetName="crucible-ec2")["Budget"]
    assert float(budget["BudgetLimit"]["Amount"]) == 100
    warnings = budgets.describe_notifications_for_budget(AccountId=aws.account, BudgetName="crucible-ec2")
    assert len(warnings["Notifications"]) == 3


def test_a_plan_names_what_a_parameter_changes_and_changes_nothing(aws: Aws, stack_state: StackState) -> None:
    plan = stack.plan(aws, "crucible", {"MaxSpotInstances": "7"})
    assert [(change.action, change.resource) for change in plan.changes] == [("Modify", "SpotGroup")]
    stack.discard(aws, plan)
    assert group(aws, stack_state.outputs["SpotGroup"])["MaxSize"] == 3


def test_without_changes_a_plan_is_empty(aws: Aws) -> None:
    assert stack.plan(aws, "crucible", {}).changes == []


def test_a_second_stack_in_the_users_own_network_comes_and_goes(aws: Aws) -> None:
    ec2 = aws.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.9.0.0/24", AvailabilityZone="us-east-1d")["Subnet"]["SubnetId"]
    parameters = {"VpcId": vpc, "SubnetIds": subnet, "Type2": "", "Type3": "", "PrefectApiPort": "443"}
    plan = stack.plan(aws, "mine", parameters)
    assert "Vpc" not in {change.resource for change in plan.changes}
    heard: list[stack.Progress] = []
    state = stack.apply(aws, plan, heard.append)
    assert {"SpotGroup", "Cluster"} <= {progress.resource for progress in heard}
    mine = group(aws, "mine-spot")
    assert mine["AvailabilityZones"] == ["us-east-1d"]
    assert len(mine["MixedInstancesPolicy"]["LaunchTemplate"]["Overrides"]) == 4
    groups = ec2.describe_security_groups(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["SecurityGroups"]
    (rules,) = (g["IpPermissionsEgress"] for g in groups if g["GroupName"] != "default")
    assert sorted(rule["FromPort"] for rule in rules) == [80, 443]  # EC2 refuses the same port twice
    stack.delete(aws, "mine")
    assert stack.describe(aws, "mine") is None
    assert aws.client("s3").head_bucket(Bucket=state.outputs["StoreUri"].removeprefix("s3://"))  # data outlives it


def test_a_stack_that_cannot_be_made_says_which_resource_and_why(aws: Aws) -> None:
    plan = stack.plan(aws, "broken", {"VpcCidr": "10.42.0.0/99"})
    with pytest.raises(AwsError, match=r"ROLLBACK_COMPLETE.*10\.42\.0\.0/99"):
        stack.apply(aws, plan)
    with pytest.raises(AwsError, match="crucible aws down"):
        stack.plan(aws, "broken", {})
    stack.delete(aws, "broken")


def test_a_missing_stack_is_named_with_region_and_mend(aws: Aws) -> None:
    with pytest.raises(AwsError, match=r"'elsewhere'.*us-east-1.*crucible aws up"):
        stack.require(aws, "elsewhere")


def test_the_template_passes_cfn_lint() -> None:
    command = shutil.which("cfn-lint", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("cfn-lint is not installed")
    done = subprocess.run([command, str(TEMPLATE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_policy_findings_that_are_let_pass_say_why() -> None:
    skips = TEMPLATE.with_name("checkov.yaml").read_text().splitlines()
    checks = [line for line in skips if line.strip().startswith("- CKV")]
    assert checks
    assert all(len(line.partition("#")[2].split()) >= 5 for line in checks)
