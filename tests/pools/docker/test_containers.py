"""Stopping the containers of a set-up, on an engine that refuses one of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import docker.errors
import pytest
from requests.exceptions import ReadTimeout

from crucible.pools.docker import containers


def test_a_container_that_cannot_be_stopped_is_named_and_ends_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = []

    def container(name: str, error: Exception | None = None) -> SimpleNamespace:
        def stop(timeout: int) -> None:
            if error is not None:
                raise error
            stopped.append((name, timeout))

        return SimpleNamespace(name=name, stop=stop, attrs={"Config": {"StopTimeout": 600}})

    refused = docker.errors.APIError("500 Server Error", explanation="cannot stop container: permission denied")
    running = [
        container("refused", refused),
        container("silent", ReadTimeout("no answer")),
        container("gone", docker.errors.NotFound("no such container")),
        container("well"),
    ]
    engine = SimpleNamespace(
        containers=SimpleNamespace(list=lambda filters, ignore_removed: running), close=lambda: None
    )
    monkeypatch.setattr(containers, "connect", lambda: engine)
    said: list[str] = []
    containers.stop_containers(tmp_path, said.append)
    assert stopped == [("well", 600)]
    assert said[0] == "stopping 4"
    assert sorted(said[1:]) == [
        "refused could not be stopped: cannot stop container: permission denied",
        "silent could not be stopped: no answer",
    ]
