"""The servers: vLLM where there is an NVIDIA GPU and vLLM is installed, else `transformers serve`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True)
class Engine:
    """A server's command, and how its log shows a request."""

    name: str
    command: Sequence[str]
    request_mark: str = '"POST /v1/'
    """In the line that the server prints for each request to the model."""


def choose_engine(model: str, host: str, port: int) -> Engine:
    """The server for the model in the folder `model` of the working directory, which is also its name for clients.

    Raises `ModuleNotFoundError` where none is installed.
    """
    if shutil.which("nvidia-smi") and find_spec("vllm") is not None:
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        return Engine("vLLM", [*command, "--served-model-name", model, "--host", host, "--port", str(port)])
    for package in ("transformers", "openai"):
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    # -P: a folder of the model's must not stand in for a package.
    command = [sys.executable, "-P", "-m", "transformers.cli.transformers", "serve", model]
    return Engine("transformers serve", [*command, "--host", host, "--port", str(port)])
