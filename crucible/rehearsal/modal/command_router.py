"""The second gRPC server of Modal's newer backend: what a V2 sandbox prints does not pass the control plane."""

from __future__ import annotations

from typing import Any

from grpclib import GRPCError, Status
from modal_proto import task_command_router_grpc as router_grpc
from modal_proto import task_command_router_pb2 as router_pb

from crucible.rehearsal.modal.cloud import Cloud
from crucible.rehearsal.modal.output import follow
from crucible.rehearsal.modal.unknown_calls import refuse_unknown


@refuse_unknown
class CommandRouter(router_grpc.TaskCommandRouterBase):
    """The gRPC service that the SDK dials on the sandbox's host."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud

    async def SandboxStdioReadV2(self, stream: Any) -> None:  # noqa: N802
        request = await stream.recv_message()
        sandbox = next((s for s in self.cloud.sandboxes.values() if s.task_id == request.task_id), None)
        if sandbox is None:
            raise GRPCError(Status.NOT_FOUND, f"Task {request.task_id} not found")
        stderr = request.file_descriptor == router_pb.SANDBOX_STDIO_FILE_DESCRIPTOR_STDERR
        async for after, chunk in follow(sandbox, "stderr" if stderr else "stdout", request.offset, None):
            response = router_pb.SandboxStdioReadV2Response(data=chunk, starting_offset=after - len(chunk))
            await stream.send_message(response)
