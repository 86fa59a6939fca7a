"""ECS tasks that really run: placed on the rehearsed machines, started as local processes, described as ECS does.

moto keeps the records and answers Describe and List; RunTask and StopTask are answered here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from moto.core.exceptions import JsonRESTError
from moto.ecr.models import ecr_backends
from moto.ecs.exceptions import InvalidParameterException
from moto.ecs.models import EC2ContainerServiceBackend, Task, ecs_backends
from moto.iam.models import iam_backends
from moto.logs.models import logs_backends
from moto.moto_api import state_manager
from moto.secretsmanager.models import secretsmanager_backends

from crucible.rehearsal.aws.containers import Container
from crucible.rehearsal.aws.machines import Machine, Machines
from crucible.rehearsal.aws.patching import replace
from crucible.rehearsal.aws.runs import Run
from crucible.rehearsal.aws.settings import ACCOUNT, Settings

SHIP_SECONDS = 1.0
DEFAULT_STOP_TIMEOUT = 30.0


class Tasks:
    """Every task of the account's clusters, from RunTask to STOPPED."""

    def __init__(
        self,
        settings: Settings,
        machines: Machines,
        image_environment: dict[str, str],
        put_event: Callable[[str, str, dict[str, Any]], None],
        say: Callable[[str], None],
    ) -> None:
        self.settings, self.machines = settings, machines
        self.image_environment, self.put_event, self.say = image_environment, put_event, say
        self.runs: dict[str, Run] = {}
        self._ecs = ecs_backends[ACCOUNT][settings.region]
        self._logs = logs_backends[ACCOUNT][settings.region]
        state_manager.set_transition("ecs::task", {"progression": "manual", "times": 10**9})
        machines.on_lost = self._lose_machine
        replace(EC2ContainerServiceBackend, run_task=self._answer_run_task(), stop_task=self._answer_stop_task())

    # What the API asks

    def _answer_run_task(self) -> Callable[..., list[Any]]:
        def run_task(
            backend: Any,
            cluster_str: str,
            task_definition_str: str,
            count: int,
            overrides: dict[str, Any] | None,
            started_by: str,
            tags: list[dict[str, str]] | None,
            launch_type: str | None,
            networking_configuration: Any = None,
            group: str | None = None,
            platform_version: str | None = None,
            capacity_provider_strategy: list[dict[str, Any]] | None = None,
        ) -> list[Any]:
            cluster = backend._get_cluster(cluster_str)
            definition = backend.describe_task_definition(task_definition_str)
            strategy = capacity_provider_strategy or ([] if launch_type else cluster.default_capacity_provider_strategy)
            if not strategy:
                raise InvalidParameterException("No Container Instances were found in your cluster.")
            provider = backend._get_provider(strategy[0]["capacityProvider"])
            if provider is None or provider.name not in (cluster.capacity_providers or []):
                raise InvalidParameterException("The specified capacity provider was not found.")
            overrides = overrides or {}
            for role in (overrides.get("taskRoleArn") or definition.task_role_arn, definition.execution_role_arn):
                self._require_role(role)
            runs = []
            for _ in range(count):
                task: Any = Task(
                    cluster,
                    definition,
                    None,
                    backend._calculate_task_resource_requirements(definition),
                    backend=backend,
                    group=group or f"family:{definition.family}",
                    overrides=overrides,
                    started_by=started_by or "",
                    tags=tags or [],
                    launch_type="EC2",
                    capacity_provider_name=provider.name,
                )
                task.last_status = "PROVISIONING"
                task.created_at = time.time()
                task.containers[0].exitCode = None
                backend.tasks.setdefault(cluster.name, {})[task.task_arn] = task
                asg = provider.auto_scaling_group_provider["autoScalingGroupArn"].rsplit("/", 1)[-1]
                run = Run(task, definition, asg, time.monotonic())
                self.runs[task.task_arn] = run
                runs.append(task)
                self._announce(run)
            return runs

        return run_task

    def _answer_stop_task(self) -> Callable[..., Any]:
        def stop_task(backend: Any, cluster_str: str, task_str: str, reason: str | None) -> Any:
            run = next((run for arn, run in self.runs.items() if arn.endswith(task_str.rsplit("/", 1)[-1])), None)
            if run is None:
                raise InvalidParameterException("The referenced task was not found.")
            self.stop(run, "UserInitiated", reason or "Task stopped by user")
            return run.task

        return stop_task

    def _require_role(self, arn: str | None) -> None:
        roles = iam_backends[ACCOUNT]["aws"].roles.values()
        if arn and all(role.arn != arn for role in roles):
            raise JsonRESTError(
                "ClientException",
                f"ECS was unable to assume the role '{arn}' that was provided for this task. Please verify that the "
                "role being passed has the proper trust relationship and permissions and that your IAM user has "
                "permissions to pass this role.",
            )

    # What time does

    def tick(self) -> None:
        """Scale, place, watch, kill what is due, and announce changes."""
        now = time.monotonic()
        waiting = self.waiting()
        self._register_booted(now)
        for run in waiting:
            if run.task.desired_status == "STOPPED":
                self._finish(run, None)
            elif not self._place(run) and now - run.created > self.settings.provisioning_seconds:
                self.give_up(run)
        self._scale(waiting)
        for run in self.runs.values():
            if run.task.last_status == "RUNNING":
                self._watch(run, now)

    def waiting(self) -> list[Run]:
        """Tasks that no machine has taken yet."""
        return [run for run in self.runs.values() if run.task.last_status == "PROVISIONING"]

    def give_up(self, run: Run) -> None:
        """End a task that found no machine."""
        short = "GPU" if run.gpus_wanted else "CPU"
        self._fail_to_start(run, f"TaskFailedToStart: RESOURCE:{short}", with_container=False)

    def busy(self, instance_id: str) -> bool:
        """Whether a task is on that instance."""
        return any(r.machine is not None and r.machine.instance_id == instance_id for r in self._living())

    def stop(self, run: Run, code: str, reason: str) -> None:
        """StopTask: SIGTERM, and SIGKILL after the container's stop timeout."""
        if run.task.desired_status == "STOPPED":
            return
        run.task.desired_status, run.task.stop_code, run.task.stopped_reason = "STOPPED", code, reason
        if run.container is not None:
            run.container.ask_to_stop()
            run.kill_at = time.monotonic() + float(run.spec.get("stopTimeout", DEFAULT_STOP_TIMEOUT))
        self.say(f"task {run.id[:8]} is asked to stop: {reason}")

    def close(self) -> None:
        """Nothing of any container is left on return."""
        for run in self._living():
            if run.container is not None:
                run.container.kill()

    def _living(self) -> list[Run]:
        return [run for run in self.runs.values() if run.task.last_status != "STOPPED"]

    def _register_booted(self, now: float) -> None:
        for machine in self.machines.machines.values():
            if not machine.registered and now >= machine.ready_at:
                machine.registered = True
                cluster = self._cluster_of(machine.group)
                instance = self._ecs.register_container_instance(cluster, machine.instance_id)
                for resource in (*instance.registered_resources, *instance.remaining_resources):
                    amounts = {"CPU": machine.cpu_units, "MEMORY": machine.memory_mib}
                    resource["integerValue"] = amounts.get(resource["name"], resource["integerValue"])
                gpus = {"name": "GPU", "type": "STRINGSET", "stringSetValue": list(machine.gpus)}
                instance.registered_resources.append(gpus)
                self.say(f"{machine.instance_id} has joined cluster {cluster}")

    def _cluster_of(self, group: str) -> str:
        providers = {
            provider.name
            for provider in self._ecs.capacity_providers.values()
            if provider.auto_scaling_group_provider["autoScalingGroupArn"].rsplit("/", 1)[-1] == group
        }
        return next(c.name for c in self._ecs.clusters.values() if providers & set(c.capacity_providers or []))

    def _scale(self, waiting: list[Run]) -> None:
        """ECS's managed scaling, upwards: a machine for every waiting task that no free one can take."""
        for group in {run.group for run in waiting}:
            unplaced = sum(r.group == group and r.task.last_status == "PROVISIONING" for r in waiting)
            if unplaced == 0:
                continue
            used = [m for m in self.machines.machines.values() if m.group == group and self.busy(m.instance_id)]
            draining = [m for m in self.machines.machines.values() if m.group == group and m.draining and m not in used]
            self.machines.want(group, len(used) + len(draining) + unplaced)

    def _place(self, run: Run) -> bool:
        for machine in self.machines.machines.values():
            if machine.group != run.group or not machine.registered or machine.draining:
                continue
            there = [r for r in self._living() if r.machine is machine]
            free_gpus = [gpu for gpu in machine.gpus if all(gpu not in r.gpus for r in there)]
            fits = (
                len(free_gpus) >= run.gpus_wanted
                and machine.cpu_units - sum(r.cpu_units for r in there) >= run.cpu_units
                and machine.memory_mib - sum(r.memory_mib for r in there) >= run.memory_mib
            )
            if fits:
                run.machine, run.gpus = machine, free_gpus[: run.gpus_wanted]
                self._start(run)
                return True
        return False

    def _start(self, run: Run) -> None:
        assert run.machine is not None
        task = run.task
        instances = self._ecs.container_instances[task.cluster_name].values()
        instance = next(i for i in instances if i.ec2_instance_id == run.machine.instance_id)
        task.container_instance_arn = instance.container_instance_arn
        task.last_status = "PENDING"
        self._announce(run)
        if refusal := self._refuse_image(run.spec["image"]) or self._resolve_environment(run):
            self._fail_to_start(run, refusal, with_container=True)
            return
        scratch = self.settings.folder / "tasks" / run.id
        (scratch / "tmp").mkdir(parents=True)
        environment = {
            **self.image_environment,
            "HOME": str(scratch),
            "TMPDIR": str(scratch / "tmp"),
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.machines.metadata.endpoint(run.machine.instance_id),
            "NVIDIA_VISIBLE_DEVICES": ",".join(run.gpus) or "void",
            **run.environment,
        }
        command = [*run.spec.get("entryPoint", []), *(run.override.get("command") or run.spec.get("command") or [])]
        run.container = Container(
            run.id, command, environment, self.settings.working_directory, scratch / "container.log"
        )
        task.started_at = time.time()
        task.containers[0].last_status = task.last_status = "RUNNING"
        self._announce(run)

    def _refuse_image(self, image: str) -> str | None:
        """ECS's words if an image of this account's registry is not there; others are taken on trust."""
        registry, _, rest = image.partition("/")
        if not registry.startswith(f"{ACCOUNT}.dkr.ecr."):
            return None
        name, _, tag = rest.partition(":")
        repository = ecr_backends[ACCOUNT][self.settings.region].repositories.get(name)
        if repository is not None and any(tag in known.image_tags for known in repository.images):
            return None
        return (
            f"CannotPullContainerError: Error response from daemon: manifest for {image} not found: manifest unknown: "
            "Requested image not found"
        )

    def _resolve_environment(self, run: Run) -> str | None:
        """Fill in the task's environment, secrets included; ECS's words if a secret is not there."""
        items = [*run.spec.get("environment", []), *run.override.get("environment", [])]
        run.environment = {item["name"]: item["value"] for item in items}
        for secret in run.spec.get("secrets", []):
            arn = secret["valueFrom"]
            try:
                value = secretsmanager_backends[ACCOUNT][self.settings.region].get_secret_value(arn, "", "")
            except JsonRESTError:
                return (
                    "ResourceInitializationError: unable to pull secrets or registry auth: unable to retrieve secret "
                    f"from asm: ResourceNotFoundException: Secrets Manager can't find the specified secret {arn}."
                )
            run.environment[secret["name"]] = value["SecretString"]
        return None

    def _watch(self, run: Run, now: float) -> None:
        assert run.container is not None
        if now >= run.kill_at:
            run.container.kill()
        code = run.container.exit_code()
        if code is None:
            if now - run.shipped_at > SHIP_SECONDS:
                run.shipped_at = now
                self._ship_logs(run)
        elif not run.host_gone:
            self._finish(run, code)
        elif now >= run.described_at:
            self._finish(run, None)  # the ECS agent died with its host: nobody learned the exit code

    def _lose_machine(self, machine: Machine, shutdown_seconds: float) -> None:
        """The host is going: its containers get SIGTERM and what time is left, or are gone at once."""
        now = time.monotonic()
        for instances in self._ecs.container_instances.values():
            for key in [k for k, instance in instances.items() if instance.ec2_instance_id == machine.instance_id]:
                del instances[key]
        for run in self._living():
            if run.machine is not machine or run.container is None:
                continue
            run.host_gone = True
            # An EC2 host's end is documented only by its reason; the code is one of several in use.
            run.task.stop_code = "TerminationNotice"
            run.task.stopped_reason = f"Host EC2 (instance {machine.instance_id}) terminated."
            run.kill_at = now + shutdown_seconds
            run.described_at = run.kill_at + self.settings.detect_seconds
            if shutdown_seconds > 0:
                run.container.ask_to_stop()
            else:
                run.container.kill()

    def _fail_to_start(self, run: Run, reason: str, *, with_container: bool) -> None:
        run.task.stop_code, run.task.stopped_reason = "TaskFailedToStart", reason
        if with_container:
            run.task.containers[0].reason = reason
        else:
            run.task.containers = []
        self._finish(run, None)

    def _finish(self, run: Run, code: int | None) -> None:
        task = run.task
        if run.container is not None:
            self._ship_logs(run)
        if not getattr(task, "stop_code", None):
            task.stop_code, task.stopped_reason = "EssentialContainerExited", "Essential container in task exited"
        for container in task.containers:
            container.exitCode, container.last_status = code, "STOPPED"
        task.last_status = task.desired_status = "STOPPED"
        task.stopped_at = time.time()
        self._announce(run)

    # What is announced

    def _ship_logs(self, run: Run) -> None:
        assert run.container is not None
        options = run.spec.get("logConfiguration", {}).get("options", {})
        group = options.get("awslogs-group")
        lines = run.container.new_lines()
        if not group or not lines or group not in self._logs.groups:
            return
        stream = f"{options['awslogs-stream-prefix']}/{run.spec['name']}/{run.id}"
        if stream not in self._logs.groups[group].streams:
            self._logs.create_log_stream(group, stream)
        at = int(time.time() * 1000)
        self._logs.put_log_events(group, stream, [{"timestamp": at, "message": line or " "} for line in lines])

    def _announce(self, run: Run) -> None:
        """Put the task's state on EventBridge, as ECS does."""
        self.put_event("aws.ecs", "ECS Task State Change", run.event_detail())
        self.say(run.words())

    def tell_of_a_dead_predecessor(self, run: Run) -> str:
        """A late STOPPED event of another task of the same flow run, whose host is gone; returns that task's ARN."""
        task = run.task
        predecessor: Any = Task(
            self._ecs.clusters[task.cluster_name],
            run.definition,
            None,
            task.resource_requirements,
            backend=self._ecs,
            group=task.group,
            tags=task.tags,
            launch_type="EC2",
            capacity_provider_name=task.capacity_provider_name,
        )
        self._ecs.tasks[task.cluster_name][predecessor.task_arn] = predecessor
        predecessor.stop_code = "TerminationNotice"
        predecessor.stopped_reason = "Host EC2 (instance i-0dead0dead0dead00) terminated."
        self._finish(Run(predecessor, run.definition, run.group, time.monotonic()), None)
        return str(predecessor.task_arn)
