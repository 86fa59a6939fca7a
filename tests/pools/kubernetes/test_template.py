"""The pool's template against prefect-kubernetes 0.8.0: its recorded default template, and the package where it is."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.utilities.templating import find_placeholders

from crucible.errors import ConfigError
from crucible.local.state import PROJECT
from crucible.pools.kubernetes import OFFERED, TEMPLATE, PoolOptions, pool_template

THEIRS: dict[str, Any] = json.loads(Path(__file__).with_name("prefect_kubernetes-0.8.0.json").read_text())
OURS: dict[str, Any] = json.loads((PROJECT / TEMPLATE).read_text())
ADDED = {"gpus", "node_selector", "tolerations", "grace_seconds"}


def test_the_template_is_the_packages_own_with_what_a_training_needs_added() -> None:
    mine, theirs = OURS["variables"]["properties"], THEIRS["variables"]["properties"]
    assert set(mine) - set(theirs) == ADDED
    assert set(theirs) <= set(mine)
    for name, field in theirs.items():
        kept = {key for key in field if key not in ("default", "description")}
        assert {key: mine[name][key] for key in kept} == {key: field[key] for key in kept}, name
    places = {place.name for place in find_placeholders(OURS["job_configuration"])}
    assert places == {place.name for place in find_placeholders(THEIRS["job_configuration"])} | ADDED
    assert places == set(mine)
    assert set(OURS["job_configuration"]) == set(THEIRS["job_configuration"])


def test_a_pod_begins_with_our_entrypoint_and_is_never_started_again() -> None:
    spec = OURS["job_configuration"]["job_manifest"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "crucible.agent.entrypoint", "--"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"
    assert pod["restartPolicy"] == "Never"
    assert OURS["variables"]["properties"]["backoff_limit"]["default"] == 0


def test_a_run_may_choose_its_machine_and_not_what_runs_there() -> None:
    made = pool_template(PoolOptions(PROJECT, {"CRUCIBLE_STORE": "s3://mine"}, settings={"grace_seconds": 60}))
    assert set(made["variables"]["properties"]) == set(OFFERED)
    assert made["job_configuration"]["env"] == {"CRUCIBLE_STORE": "s3://mine", "CRUCIBLE_STOP_GRACE_SECONDS": "60"}
    pod = made["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 60
    assert made["job_configuration"]["job_manifest"]["spec"]["backoffLimit"] == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"backoff_limit": 3}, "must be 0"), ({"grace_seconds": "soon"}, "whole number"), ({"gpu": 1}, "no such setting")],
    ids=["backoff", "grace", "unknown"],
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        pool_template(PoolOptions(PROJECT, settings=settings))


@pytest.mark.slow
def test_the_package_fills_the_template() -> None:
    """Where prefect-kubernetes is installed, as by `make test-slow`: its own configuration makes the manifest."""
    worker = pytest.importorskip("prefect_kubernetes.worker", reason="prefect-kubernetes is not installed here")
    made = asyncio.run(worker.KubernetesWorkerJobConfiguration.from_template_and_values(OURS, {}, client=object()))
    made.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="attempt"))
    pod = made.job_manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][-2:] == ["crucible.agent.entrypoint", "--"]
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert (pod["terminationGracePeriodSeconds"], pod["nodeSelector"]["cloud.google.com/gke-spot"]) == (15, "true")
