"""Modal's control plane, as far as a worker of sandboxes needs it, for the unmodified `modal` SDK.

GPU sandboxes are created by the calls without suffix, all others by the `V2` ones; both are here.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from grpclib.events import RecvRequest
from modal_proto import api_grpc
from modal_proto import api_pb2 as pb

from crucible.rehearsal.modal.cloud import Cloud, Result, Sandbox, new_id
from crucible.rehearsal.modal.output import follow
from crucible.rehearsal.modal.unknown_calls import refuse_unknown

_BUILDER = "2025.06"
_LONGEST_LIFETIME_SECONDS = 24 * 3600
_CREATE_ANONYMOUS = (pb.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP, pb.OBJECT_CREATION_TYPE_EPHEMERAL)
Stream = Any  # grpclib.server.Stream of the call's own message types


def _router_jwt() -> str:
    """A token that looks like Modal's: the SDK reads its expiry and nothing else."""

    def part(content: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    return f"{part({'alg': 'none'})}.{part({'exp': int(time.time()) + 3600})}.signature"


@refuse_unknown
class ControlPlane(api_grpc.ModalClientBase):
    """The gRPC service; all state is in `cloud`."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud

    async def admit(self, event: RecvRequest) -> None:
        """Look at every call before it is served: is the API up, is the token good."""
        self.cloud.calls.append(event.method_name.rsplit("/", 1)[1])
        if self.cloud.down:
            raise GRPCError(Status.UNAVAILABLE, "the API is down")
        token = (event.metadata.get("x-modal-token-id"), event.metadata.get("x-modal-token-secret"))
        if token != self.cloud.token:
            raise GRPCError(Status.UNAUTHENTICATED, "Token ID and secret are not valid")

    async def ClientHello(self, stream: Stream) -> None:  # noqa: N802
        await stream.recv_message()
        await stream.send_message(pb.ClientHelloResponse())

    async def AuthTokenGet(self, stream: Stream) -> None:  # noqa: N802
        await stream.recv_message()
        await stream.send_message(pb.AuthTokenGetResponse(token=_router_jwt()))

    async def EnvironmentGetOrCreate(self, stream: Stream) -> None:  # noqa: N802
        name = (await stream.recv_message()).deployment_name or "main"
        settings = pb.EnvironmentSettings(image_builder_version=_BUILDER)
        metadata = pb.EnvironmentMetadata(name=name, settings=settings)
        await stream.send_message(pb.EnvironmentGetOrCreateResponse(environment_id=f"en-{name}", metadata=metadata))

    async def AppGetOrCreate(self, stream: Stream) -> None:  # noqa: N802
        request = await stream.recv_message()
        if request.app_name not in self.cloud.apps:
            if request.object_creation_type != pb.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
                raise GRPCError(Status.NOT_FOUND, f"No app named {request.app_name!r}")
            self.cloud.apps[request.app_name] = new_id("ap")
        await stream.send_message(pb.AppGetOrCreateResponse(app_id=self.cloud.apps[request.app_name]))

    # Images: nothing is built, the steps are remembered and can be made to fail.

    async def ImageGetOrCreate(self, stream: Stream) -> None:  # noqa: N802
        request = await stream.recv_message()
        image_id = next((i for i, image in self.cloud.images.items() if image == request.image), None) or new_id("im")
        self.cloud.images[image_id] = request.image
        response = pb.ImageGetOrCreateResponse(
            image_id=image_id, metadata=pb.ImageMetadata(image_builder_version=request.builder_version)
        )
        if image_id in self.cloud.built:
            response.result.status = Result.GENERIC_STATUS_SUCCESS
        await stream.send_message(response)

    async def ImageJoinStreaming(self, stream: Stream) -> None:  # noqa: N802
        image_id = (await stream.recv_message()).image_id
        for entry, command in enumerate(self.cloud.images[image_id].dockerfile_commands):
            log = pb.TaskLogs(data=f"{command}\n", file_descriptor=pb.FILE_DESCRIPTOR_INFO)
            await stream.send_message(pb.ImageJoinStreamingResponse(entry_id=str(entry), task_logs=[log]))
            if any(text in command for text in self.cloud.failing_builds):
                failed = Result(status=Result.GENERIC_STATUS_FAILURE, exception=f"command failed: {command}")
                await stream.send_message(pb.ImageJoinStreamingResponse(result=failed))
                return
        self.cloud.built.add(image_id)
        await stream.send_message(
            pb.ImageJoinStreamingResponse(
                result=Result(status=Result.GENERIC_STATUS_SUCCESS),
                metadata=pb.ImageMetadata(image_builder_version=_BUILDER),
            )
        )

    async def ImageFromId(self, stream: Stream) -> None:  # noqa: N802
        image_id = (await stream.recv_message()).image_id
        if image_id not in self.cloud.images:
            raise GRPCError(Status.NOT_FOUND, f"Image {image_id} not found")
        await stream.send_message(pb.ImageFromIdResponse(image_id=image_id))

    async def MountGetOrCreate(self, stream: Stream) -> None:  # noqa: N802
        await stream.recv_message()
        metadata = pb.MountHandleMetadata(content_checksum_sha256_hex="0" * 64)
        await stream.send_message(pb.MountGetOrCreateResponse(mount_id=new_id("mo"), handle_metadata=metadata))

    async def MountPutFile(self, stream: Stream) -> None:  # noqa: N802
        await stream.recv_message()
        await stream.send_message(pb.MountPutFileResponse(exists=True))

    async def MountBatchedCheckExistence(self, stream: Stream) -> None:  # noqa: N802
        await stream.recv_message()
        await stream.send_message(pb.MountBatchedCheckExistenceResponse())

    # Secrets and volumes.

    async def SecretGetOrCreate(self, stream: Stream) -> None:  # noqa: N802
        request = await stream.recv_message()
        name, cloud = request.deployment_name, self.cloud
        if request.object_creation_type in _CREATE_ANONYMOUS:
            secret_id = new_id("st")
            cloud.secrets[secret_id] = dict(request.env_dict)
        elif name not in cloud.named_secrets:
            raise GRPCError(Status.NOT_FOUND, f"Secret {name!r} not found")
        else:
            secret_id = cloud.named_secrets[name]
        await stream.send_message(
            pb.SecretGetOrCreateResponse(secret_id=secret_id, metadata=pb.SecretMetadata(name=name))
        )

    async def VolumeGetOrCreate(self, stream: Stream) -> None:  # noqa: N802
        request = await stream.recv_message()
        name = request.deployment_name
        if name not in self.cloud.volumes and request.object_creation_type == pb.OBJECT_CREATION_TYPE_UNSPECIFIED:
            raise GRPCError(Status.NOT_FOUND, f"Volume {name!r} not found")
        volume_id = self.cloud.volumes.setdefault(name, f"vo-{name}")
        version = request.version or pb.VOLUME_FS_VERSION_V1
        metadata = pb.VolumeMetadata(version=version, name=name)
        await stream.send_message(pb.VolumeGetOrCreateResponse(volume_id=volume_id, version=version, metadata=metadata))

    # Sandboxes.

    async def SandboxCreate(self, stream: Stream) -> None:  # noqa: N802
        request = await stream.recv_message()
        sandbox = await self._create(request, self._environment(request.definition.secret_ids), v2=False)
        await stream.send_message(pb.SandboxCreateResponse(sandbox_id=sandbox.id, metadata=_metadata(sandbox)))

    async def SandboxCreateV2(self, stream: Stream) -> None:  # noqa: N802
        request = await stream.recv_message()
        if request.definition.resources.gpu_config.gpu_type:
            raise GRPCError(Status.INVALID_ARGUMENT, "GPUs are not supported by V2 sandboxes")
        env: dict[str, str] = {}
        for source in request.secret_sources:
            env |= self._environment([source.secret_id]) if source.secret_id else dict(source.env.contents)
        sandbox = await self._create(request, env, v2=True)
        access = pb.CommandRouterAccess(url=self.cloud.router_url, jwt=_router_jwt())
        await stream.send_message(
            pb.SandboxCreateV2Response(
                sandbox_id=sandbox.id,
                task_id=sandbox.task_id,
                metadata=_metadata(sandbox),
                command_router_access=access,
            )
        )

    async def SandboxGetTaskId(self, stream: Stream) -> None:  # noqa: N802
        sandbox = self._sandbox((await stream.recv_message()).sandbox_id)
        response = pb.SandboxGetTaskIdResponse(task_id=sandbox.task_id if sandbox.started else None)
        if sandbox.result is not None:
            response.task_result.CopyFrom(sandbox.result)
        await stream.send_message(response)

    async def SandboxWait(self, stream: Stream) -> None:  # noqa: N802
        request = await stream.recv_message()
        sandbox = self._sandbox(request.sandbox_id)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(request.timeout):
                await sandbox.over.wait()
        await stream.send_message(pb.SandboxWaitResponse(result=sandbox.result, metadata=_metadata(sandbox)))

    async def SandboxTerminate(self, stream: Stream) -> None:  # noqa: N802
        sandbox = self._sandbox((await stream.recv_message()).sandbox_id)
        before = sandbox.result
        await self.cloud.stop(sandbox, Result.GENERIC_STATUS_TERMINATED)
        await stream.send_message(pb.SandboxTerminateResponse(existing_result=before))

    async def SandboxGetLogs(self, stream: Stream) -> None:  # noqa: N802
        request = await stream.recv_message()
        sandbox = self._sandbox(request.sandbox_id)
        name = "stderr" if request.file_descriptor == pb.FILE_DESCRIPTOR_STDERR else "stdout"
        offset = int(request.last_entry_id or 0)
        async for offset, chunk in follow(sandbox, name, offset, request.timeout):  # noqa: B020
            log = pb.TaskLogs(data=chunk.decode("utf-8", "replace"), file_descriptor=request.file_descriptor)
            await stream.send_message(pb.TaskLogsBatch(entry_id=str(offset), items=[log]))
        if sandbox.result is not None:
            await stream.send_message(pb.TaskLogsBatch(entry_id=str(offset), eof=True))

    async def SandboxGetCommandRouterAccess(self, stream: Stream) -> None:  # noqa: N802
        await stream.recv_message()
        await stream.send_message(
            pb.SandboxGetCommandRouterAccessResponse(url=self.cloud.router_url, jwt=_router_jwt())
        )

    async def SandboxTagsSet(self, stream: Stream) -> None:  # noqa: N802
        request = await stream.recv_message()
        self._sandbox(request.sandbox_id).tags = {tag.tag_name: tag.tag_value for tag in request.tags}
        await stream.send_message(Empty())

    async def SandboxTagsGet(self, stream: Stream) -> None:  # noqa: N802
        sandbox = self._sandbox((await stream.recv_message()).sandbox_id)
        await stream.send_message(pb.SandboxTagsGetResponse(tags=_tags(sandbox)))

    async def SandboxList(self, stream: Stream) -> None:  # noqa: N802
        request = await stream.recv_message()
        wanted = {tag.tag_name: tag.tag_value for tag in request.tags}
        found = [
            sandbox
            for sandbox in self._newest_first()
            if (not request.app_id or sandbox.app_id == request.app_id)
            and (request.include_finished or sandbox.result is None)
            and wanted.items() <= sandbox.tags.items()
            and (not request.before_timestamp or sandbox.created < request.before_timestamp)
        ]
        await stream.send_message(
            pb.SandboxListResponse(
                sandboxes=[
                    pb.SandboxInfo(
                        id=sandbox.id,
                        created_at=sandbox.created,
                        app_id=sandbox.app_id,
                        name=sandbox.definition.name,
                        task_info=pb.TaskInfo(id=sandbox.task_id, result=sandbox.result),
                        metadata=_metadata(sandbox),
                        tags=_tags(sandbox),
                    )
                    for sandbox in found
                ]
            )
        )

    async def SandboxGetFromName(self, stream: Stream) -> None:  # noqa: N802
        request = await stream.recv_message()
        app_id = self.cloud.apps.get(request.app_name)
        for sandbox in self._newest_first():
            if (sandbox.definition.name, sandbox.app_id) != (request.sandbox_name, app_id):
                continue
            if request.include_terminated or sandbox.result is None:
                await stream.send_message(
                    pb.SandboxGetFromNameResponse(sandbox_id=sandbox.id, metadata=_metadata(sandbox))
                )
                return
        raise GRPCError(Status.NOT_FOUND, f"Sandbox {request.sandbox_name!r} not found")

    async def SandboxGetStats(self, stream: Stream) -> None:  # noqa: N802
        sandbox = self._sandbox((await stream.recv_message()).sandbox_id)
        dollars = self.cloud.cost(sandbox)
        response = pb.SandboxGetStatsResponse(
            cost=_exact(sum(dollars.values())) if dollars else None,
            cost_by_resource={name: _exact(value) for name, value in dollars.items()},
            num_datapoints=len(dollars),
        )
        response.since.FromSeconds(int(sandbox.created))
        response.until.FromSeconds(int(sandbox.finished or time.time()))
        await stream.send_message(response)

    async def SandboxGetTimeRangeStats(self, stream: Stream) -> None:  # noqa: N802
        request = await stream.recv_message()
        groups: dict[tuple[str | None, ...], dict[str, float]] = {}
        for sandbox in self.cloud.sandboxes.values():
            if sandbox.app_id == request.app_id and dict(request.tags).items() <= sandbox.tags.items():
                sums = groups.setdefault(tuple(sandbox.tags.get(name) for name in request.group_by_tags), {})
                for name, value in self.cloud.cost(sandbox).items():
                    sums[name] = sums.get(name, 0.0) + value
        response = pb.SandboxGetTimeRangeStatsResponse()
        for values, sums in groups.items():
            group = response.groups.add(
                cost_str=_exact(sum(sums.values())),
                cost_by_resource_str={name: _exact(value) for name, value in sums.items()},
            )
            for name, tag in zip(request.group_by_tags, values, strict=True):
                group.tags[name].SetInParent()
                if tag is not None:
                    group.tags[name].value = tag
        await stream.send_message(response)

    # One implementation serves both backends where their messages are the same.
    SandboxWaitV2, SandboxTerminateV2, SandboxGetTaskIdV2 = SandboxWait, SandboxTerminate, SandboxGetTaskId
    SandboxTagsSetV2, SandboxTagsGetV2 = SandboxTagsSet, SandboxTagsGet
    SandboxListV2, SandboxGetFromNameV2 = SandboxList, SandboxGetFromName

    async def _create(
        self, request: pb.SandboxCreateRequest | pb.SandboxCreateV2Request, env: dict[str, str], *, v2: bool
    ) -> Sandbox:
        definition = request.definition
        if definition.name and any(
            (sandbox.definition.name, sandbox.app_id) == (definition.name, request.app_id) and sandbox.result is None
            for sandbox in self.cloud.sandboxes.values()
        ):
            raise GRPCError(Status.ALREADY_EXISTS, f"Sandbox with name {definition.name!r} already exists")
        if not 0 < definition.timeout_secs <= _LONGEST_LIFETIME_SECONDS:
            raise GRPCError(Status.INVALID_ARGUMENT, "timeout must be at most 24 hours")
        return self.cloud.create(request, env, v2)

    def _environment(self, secret_ids: Any) -> dict[str, str]:
        env: dict[str, str] = {}
        for secret_id in secret_ids:
            env |= self.cloud.secrets[secret_id]
        return env

    def _sandbox(self, sandbox_id: str) -> Sandbox:
        if sandbox_id not in self.cloud.sandboxes:
            raise GRPCError(Status.NOT_FOUND, f"Sandbox {sandbox_id} not found")
        return self.cloud.sandboxes[sandbox_id]

    def _newest_first(self) -> list[Sandbox]:
        return sorted(self.cloud.sandboxes.values(), key=lambda sandbox: -sandbox.created)


def _metadata(sandbox: Sandbox) -> pb.SandboxHandleMetadata:
    return pb.SandboxHandleMetadata(app_id=sandbox.app_id, result=sandbox.result)


def _tags(sandbox: Sandbox) -> list[pb.SandboxTag]:
    return [pb.SandboxTag(tag_name=name, tag_value=value) for name, value in sandbox.tags.items()]


def _exact(dollars: float) -> str:
    return f"{dollars:.9f}"
